"""The `gpu` preset's own path (its pictures, lengths, mixes, decoding) with thin layers and few steps, on any machine.

The preset at its full size needs a GPU; this shows that it loads, packs, trains its three stages and answers.
"""

from __future__ import annotations

import pytest
import torch

from omnidiff_lite import Image, OmniDiffusion, Speech
from omnidiff_lite.chat import TASKS, ChatEncoder
from omnidiff_lite.config import load_preset
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.pipeline import AnswerLengths, settings_of
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.tokenizers.text import extend, train_text_tokenizer
from omnidiff_lite.training.stages import run_stage, world_data
from omnidiff_lite.world.dataset import corpus, samples

THIN = {"image_tokenizer.channels": 32, "speech_encoder.dim": 32, "speech_encoder.ffn": 32, "speech_encoder.blocks": 1,
        "speech_encoder.tp_blocks": 1, "speech_tokenizer.dim": 32, "speech_tokenizer.ffn": 32,
        "speech_tokenizer.layers": 1, "speech_decoder.flow.dim": 32, "speech_decoder.flow.ffn": 32,
        "speech_decoder.flow.blocks": 1, "speech_decoder.flow.channels": [32, 32], "speech_decoder.flow.steps": 1,
        "speech_decoder.vocoder.iterations": 1, "denoiser.hidden_size": 96, "denoiser.intermediate_size": 96,
        "denoiser.layers": 1, "training.samples": dict.fromkeys(TASKS, 3), "evaluation.items": 2,
        **{f"training.stage{n}.{key}": value for n in (1, 2, 3) for key, value in (("steps", 2), ("rows", 2))}}


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> OmniDiffusion:
    preset, folder = load_preset("gpu", THIN), tmp_path_factory.mktemp("gpu")
    torch.manual_seed(0)
    text = train_text_tokenizer(corpus(200, 0, preset.world), preset.text_tokenizer.size)
    vocabulary = extend(text, preset.speech_tokenizer.codes, preset.image_tokenizer.codes)
    tokenizers = Tokenizers(text, vocabulary, ImageTokenizer(preset.image_tokenizer).eval(),
                            SpeechEncoder(preset.speech_encoder).eval(),
                            SpeechTokenizer(preset.speech_tokenizer).eval(),
                            SpeechDecoder(preset.speech_decoder).eval())
    denoiser = None
    for stage in (1, 2, 3):
        denoiser, log = run_stage(preset, stage, tokenizers, denoiser, folder / str(stage), folder / "cache",
                                  progress=False)
        assert len(log) == 2 and log["loss"].notna().all() and log["efficiency"].min() > 0
    data = world_data(preset, tokenizers, TASKS, "train", 0, folder / "cache")
    lengths = AnswerLengths.fit(data, ChatEncoder(vocabulary, text))
    return OmniDiffusion(denoiser, tokenizers, settings_of(preset, lengths=lengths))


def test_pictures_have_256_tokens_and_128_pixels(system):
    answer = system.generate("a large red circle above a small blue square", to="image", decoding={"steps": 2})
    assert answer.image.size == (128, 128)
    assert len(system.tokenizers.vocabulary.codes_of_image(answer.ids)) == 256


def test_it_answers_a_spoken_question_about_a_picture(system):
    sample = samples("svqa", "test", 1, 0, load_preset("gpu").world)[0]
    inputs = [Speech(load_speech_ref(sample.audios[0])), Image(load_image_ref(sample.images[0], size=128))]
    answer = system.generate(inputs, to=("text", "speech"), decoding={"steps": 4})
    assert answer.text is not None and len(answer.ids) > 0
