"""Where tokenizers and judges compute: on a GPU if there is one, and always with inputs and results on the CPU."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

from omnidiff_lite.config import JudgeConfig
from omnidiff_lite.data.encode import encode_samples
from omnidiff_lite.evaluation.judges import AlignmentJudge, RecognitionJudge
from omnidiff_lite.tokenizers.bundle import Tokenizers
from omnidiff_lite.training.alignment_judge import _clip
from omnidiff_lite.world.dataset import samples
from omnidiff_lite.world.voices import ANSWER_VOICE, speak

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture(params=DEVICES)
def parts(request, tiny_tokenizers):
    yield tiny_tokenizers.to(request.param)
    tiny_tokenizers.to("cpu")


@pytest.fixture(scope="module")
def stored(tiny_tokenizers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    tiny_tokenizers.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("has_gpu, named, expected", [
    (True, None, "cuda"), (True, "cpu", "cpu"), (False, None, "cpu"), (False, torch.device("cpu"), "cpu")])
def test_tokenizers_go_to_a_gpu_unless_told_otherwise(stored, monkeypatch, has_gpu, named, expected):
    went = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(Tokenizers, "to", lambda self, device: went.append(str(device)) or self)
    Tokenizers.from_pretrained(stored, device=named)
    assert went == [expected]


def test_data_are_encoded_where_the_tokenizers_are(parts, tiny_preset):
    drawn = [s for task in ("svqa", "t2i") for s in samples(task, "train", 2, 0, tiny_preset.world)]
    sizes = tiny_preset.image_tokenizer.understanding_size, tiny_preset.image_tokenizer.generation_size
    for sample in encode_samples(drawn, parts, sizes, draw_size=tiny_preset.world.image_size):
        assert sample.ids.dtype == np.int32 and sample.frames.dtype == np.float16
        assert (sample.ids < parts.vocabulary.size).all()


def test_every_part_takes_and_gives_media_wherever_it_is(parts):
    wave = speak("a red circle", ANSWER_VOICE)
    codes = parts.speech_tokenizer.encode(wave)
    assert codes.device.type == "cpu"
    assert [len(w.samples) > 0 for w in parts.speech_decoder.decode_many([codes, codes[:3]])] == [True, True]
    assert len(parts.speech_decoder.decode(codes).samples)
    pixels = torch.zeros(1, 3, 64, 64)
    assert parts.image.decode(parts.image.encode(pixels).cpu()).shape == pixels.shape
    assert isinstance(RecognitionJudge(parts.speech_encoder).transcribe([wave])[0], str)


@pytest.mark.parametrize("device", DEVICES)
def test_the_alignment_judge_compares_wherever_it_is(device, tiny_tokenizers):
    judge = AlignmentJudge(_clip(JudgeConfig(clip_dim=32, clip_layers=1), tiny_tokenizers.text), tiny_tokenizers.text)
    pictures = [PIL.Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    assert judge.to(device).similarity(["a red circle", "a blue square"], pictures).shape == (2,)
    assert judge.image_similarity(pictures, pictures) == pytest.approx(1, abs=1e-4)
