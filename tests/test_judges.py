"""Judges: what they are made of, that they learn, and that they survive a save."""

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (CLIPConfig, CLIPImageProcessor, CLIPModel, WhisperConfig, WhisperFeatureExtractor,
                          WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer)

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.cli import main
from omnidiff_lite.config import Budget, JudgeConfig, SpeechEncoderConfig, load_preset, to_dict
from omnidiff_lite.evaluation.alignment import evaluate_pictures, swapped_judges
from omnidiff_lite.evaluation.judges import AlignmentJudge, RecognitionJudge, clip_pixels, load_judges
from omnidiff_lite.evaluation.requests import Settings, reference_images
from omnidiff_lite.evaluation.speech import evaluate_tts
from omnidiff_lite.evaluation.suite import finished_system
from omnidiff_lite.media import Waveform
from omnidiff_lite.notebook import parse_overrides
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.text import train_text_tokenizer
from omnidiff_lite.training.alignment_judge import contrastive_loss, train_alignment_judge
from omnidiff_lite.weights import CheckpointError
from omnidiff_lite.world.dataset import samples

COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220), "yellow": (240, 220, 30)}
SMALL_EAR = SpeechEncoderConfig(dim=32, heads=2, ffn=32, blocks=2, tp_blocks=1, dropout=0.0, ctc_vocabulary=32)
NOISE = Waveform(np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1, 16000)


def squares(n: int, seed: int) -> list[tuple[PIL.Image.Image, str]]:
    """One coloured square somewhere on white, with its caption."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(n):
        color = str(rng.choice(list(COLORS)))
        picture = PIL.Image.new("RGB", (64, 64), "white")
        x, y = (int(v) for v in rng.integers(0, 32, 2))
        picture.paste(COLORS[color], (x, y, x + 30, y + 30))
        pictures.append((picture, f"a {color} square"))
    return pictures


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer([f"a {color} square" for color in COLORS], 300)


@pytest.fixture(scope="module")
def trained(tokenizer):
    config = JudgeConfig(clip_dim=32, clip_layers=1)
    return train_alignment_judge(config, tokenizer, squares(64, seed=0), Budget(80, 16, 3e-3), seed=0)


def test_the_alignment_judge_learns_to_find_held_out_pictures(trained):
    judge, history = trained
    assert history["accuracy"].iloc[0] < 0.7 and history["accuracy"].iloc[-10:].mean() > 0.95
    pictures = squares(24, seed=1)
    images, captions = [p for p, _ in pictures], [c for _, c in pictures]
    found = (judge.text_features(captions) @ judge.features(images).T).argmax(axis=1)
    assert np.mean([captions[best] == caption for best, caption in zip(found, captions)]) > 0.9  # chance: 0.25
    right, wrong = judge.similarity(captions, images), judge.similarity(["a red square"] * 24, images)
    assert (right >= wrong - 1e-6).mean() > 0.9 and np.abs(right).max() <= 1 + 1e-5


def test_pictures_are_compared_in_pairs(trained):
    judge, _ = trained
    images = [p for p, _ in squares(3, seed=2)]
    assert judge.image_similarity(images, images) == pytest.approx([1, 1, 1], abs=1e-5)
    features = judge.features(images)
    assert features.shape == (3, 32) and np.linalg.norm(features, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert judge.features([]).shape == (0, 32)
    with pytest.raises(ValueError, match="taken in pairs"):
        judge.image_similarity(images, images[:2])


def test_the_alignment_judge_survives_a_save(trained, tmp_path):
    judge, _ = trained
    judge.save_pretrained(tmp_path)
    again = AlignmentJudge.from_pretrained(tmp_path)
    pictures = squares(4, seed=3)
    images, captions = [p for p, _ in pictures], [c for _, c in pictures]
    assert again.similarity(captions, images) == pytest.approx(judge.similarity(captions, images), abs=1e-5)


def test_a_text_is_read_at_its_end_whatever_stands_beside_it(trained):
    judge, _ = trained
    alone = judge.text_features(["a red square"])
    beside = judge.text_features(["a red square", "a yellow square and a blue square and a green square"])
    assert beside[0] == pytest.approx(alone[0], abs=1e-5)
    ids = judge.tokenize(["a red square " * 200])["input_ids"]
    assert ids.shape == (1, 77) and ids[0, -1] == judge.tokenizer.eos_token_id


def test_equal_captions_are_right_answers_to_each_other():
    unit = torch.eye(4)
    features = unit[[0, 0, 1]]
    shared, figures = contrastive_loss(features, features, torch.tensor(50.0), torch.tensor([0, 0, 1]))
    split, _ = contrastive_loss(features, features, torch.tensor(50.0), torch.arange(3))
    assert figures["accuracy"] == 1 and shared.item() == pytest.approx(split.item())  # log 2 for each of the twins
    wrong, _ = contrastive_loss(unit[[0, 2, 1]], features, torch.tensor(50.0), torch.tensor([0, 0, 1]))
    assert wrong > shared


def test_preprocessing_is_clips():
    rng = np.random.default_rng(0)
    picture = PIL.Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    official = processor(picture, return_tensors="np")["pixel_values"][0]
    assert np.abs(clip_pixels(picture, 24).numpy() - official).max() < 0.05  # under two grey levels


def tiny_clip(tokenizer, directory, image_size: int = 32) -> CLIPModel:
    """A random CLIP in the layout of a released one."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = tokenizer.eos_token_id
    clip = CLIPModel(CLIPConfig(text_config={**size, "vocab_size": len(tokenizer), "eos_token_id": end},
                                vision_config={**size, "image_size": image_size, "patch_size": 16},
                                projection_dim=16)).eval()
    clip.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return clip


def test_similarity_of_a_released_layout_is_clips_own(tokenizer, tmp_path):
    """A CLIP directory as transformers writes it: our cosines are the model's own logits without the scale."""
    clip = tiny_clip(tokenizer, tmp_path)
    judge = AlignmentJudge.from_pretrained(tmp_path)
    picture, caption = squares(1, seed=4)[0]
    with torch.no_grad():
        logits = clip(**judge.tokenize([caption]), pixel_values=clip_pixels(picture, 32)[None]).logits_per_image
        cosine = logits.item() / clip.logit_scale.exp().item()
    assert judge.similarity([caption], [picture])[0] == pytest.approx(cosine, abs=1e-5)


def test_the_recognition_judge_reads_a_ctc_head_and_survives_a_save(tmp_path):
    torch.manual_seed(0)
    judge = RecognitionJudge(SpeechEncoder(SMALL_EAR), batch=2)
    judge.save_pretrained(tmp_path)
    waves = [NOISE, Waveform(NOISE.samples[:8000], 22050), NOISE]
    texts = judge.transcribe(waves)
    assert len(texts) == 3 and texts[0] == texts[2]
    assert RecognitionJudge.from_pretrained(tmp_path).transcribe(waves) == texts


def tiny_whisper(directory) -> None:
    """A random Whisper of bytes, in the layout of a released one."""
    (directory / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer.from_pretrained(directory)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(directory)
    end = tokenizer.eos_token_id
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=16, bos_token_id=end,
        decoder_start_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=None,
        begin_suppress_tokens=None))
    model.generation_config.max_length = 8
    model.save_pretrained(directory)


def test_whisper_is_read_from_a_directory(tmp_path):
    tiny_whisper(tmp_path)
    judge = RecognitionJudge.from_pretrained(tmp_path)
    assert isinstance(judge.model, WhisperForConditionalGeneration)
    one, two = judge.transcribe([NOISE, Waveform(NOISE.samples, 22050)])
    assert isinstance(one, str) and isinstance(two, str) and judge.transcribe([NOISE]) == [one]


def test_a_presets_judges_are_loaded_and_shared(trained, tmp_path):
    preset = load_preset("smoke")
    with pytest.raises(CheckpointError, match="no recognition judge there; train the judges first"):
        load_judges(preset, tmp_path)
    torch.manual_seed(0)
    RecognitionJudge(SpeechEncoder(SMALL_EAR)).save_pretrained(tmp_path / "recognition")
    with pytest.raises(CheckpointError, match="no alignment judge there"):
        load_judges(preset, tmp_path)
    trained[0].save_pretrained(tmp_path / "alignment")
    judges = load_judges(preset, tmp_path)
    assert judges.clip_i is judges.clip_t and judges.recognition.processor is None


@pytest.fixture(scope="module")
def full_size(tokenizer, tmp_path_factory):
    """Directories of a Whisper and of two CLIPs of different sizes, as an override names them."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("recognition", "clip_t", "clip_i")}
    tiny_whisper(places["recognition"])
    tiny_clip(tokenizer, places["clip_t"])
    tiny_clip(tokenizer, places["clip_i"], image_size=48)
    return {f"judges.{name}": str(place) for name, place in places.items()}


def test_judges_named_by_directory_score_a_finished_system(full_size, tiny_model, tmp_path):
    """From the overrides to records; nothing trained is there, and nothing trained is asked for."""
    artifacts = Artifacts.of("smoke", tmp_path)
    tiny_model.save_pretrained(artifacts.checkpoint)
    preset = load_preset("smoke", parse_overrides(" ".join(f"{k}:{v}" for k, v in full_size.items())))
    model, judges = finished_system(preset, artifacts)
    assert not artifacts.judges.exists() and judges.clip_i is not judges.clip_t
    assert isinstance(judges.recognition.model, WhisperForConditionalGeneration)
    settings, drawn = Settings.of(preset, bootstrap=20), samples("t2i", "test", 2, 0, preset.world)
    spoken = evaluate_tts(model, judges.recognition, samples("tts", "test", 2, 0, preset.world), settings)[0]
    assert {r.column: r.n for r in spoken} == {"tts_wer": 2, "tts_silent": 2}
    real = reference_images(drawn, settings)
    scores = {r.column: r.value for r in evaluate_pictures(judges, real, drawn, settings)[0] + swapped_judges(
        judges, real, drawn, settings)}
    captions = [sample.meta["caption"] for sample in drawn]
    assert scores["clip_t"] == pytest.approx(judges.clip_t.similarity(captions, real).mean(), abs=1e-6)
    assert scores["clip_t_other"] == pytest.approx(judges.clip_i.similarity(captions, real).mean(), abs=1e-6)
    assert scores["clip_t"] != pytest.approx(scores["clip_t_other"]) and scores["clip_i"] == pytest.approx(1, abs=1e-5)
    assert swapped_judges(replace(judges, clip_i=judges.clip_t), real, drawn, settings) == []


@pytest.mark.parametrize("key, place, words", [
    ("recognition", "clip_t", "it holds a clip model.; set judges.recognition to 'trained', or to .* of Whisper"),
    ("clip_t", "recognition", "it holds a whisper model.; set judges.clip_t and judges.clip_i to 'trained'"),
    ("clip_i", None, "it holds no config.json of a model"),
    ("recognition", None, "it holds no config.json of a model")])
def test_a_wrong_directory_is_one_clear_line_and_never_random_weights(full_size, tmp_path, key, place, words):
    given = {**full_size, f"judges.{key}": full_size[f"judges.{place}"] if place else str(tmp_path)}
    with pytest.raises(CheckpointError, match=words) as told:
        load_judges(load_preset("smoke", given), tmp_path)
    assert "\n" not in str(told.value)


def test_the_command_line_takes_judges_by_directory(full_size, tiny_preset, tiny_model, tmp_path, monkeypatch, capsys):
    """LibriTTS as published, heard by a Whisper from a directory; and a wrong directory is one line."""
    book = tmp_path / "LibriTTS" / "1" / "2"
    book.mkdir(parents=True)
    NOISE.save(book / "1_2_0_0.wav")
    (book / "1_2_0_0.normalized.txt").write_text("a red circle")
    preset = tmp_path / "tiny.yaml"
    preset.write_text(yaml.safe_dump({**to_dict(tiny_preset), "name": "tiny"}))
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path / "results"))
    tiny_model.save_pretrained(Artifacts.of("tiny").checkpoint)
    asked = ["benchmark", "libritts", str(tmp_path / "LibriTTS"), "--preset", str(preset)]
    given = [word for key, value in full_size.items() for word in ("--set", f"{key}={value}")]
    assert main([*asked, *given]) == 0
    assert "real data (ceiling)" in capsys.readouterr().out
    assert main([*asked, *given, "--set", f"judges.recognition={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert "set judges.recognition to 'trained'" in error and error.count("\n") == 1
