"""What the parts before the denoiser are trained on: recordings, one block at a time, and whose voices they have."""

import json

from omnidiff_lite.config import load_preset
from omnidiff_lite.training import parts
from omnidiff_lite.world.dataset import utterances
from omnidiff_lite.world.voices import ANSWER_VOICE, train_voices

PRESET = load_preset("smoke", {"parts.speech_tokenizer.items": 8})


def test_recordings_are_those_of_the_split_whatever_the_block(tmp_path, monkeypatch):
    whole = list(parts.spoken(PRESET, "train", 7, 0, tmp_path / "whole"))
    monkeypatch.setattr(parts, "BLOCK", 3)
    blocks = list(parts.spoken(PRESET, "train", 7, 0, tmp_path / "blocks"))
    assert [text for _, text in blocks] == [u.text for u in utterances("train", 7, 0, PRESET.world)]
    assert all((a.samples == b.samples).all() for (a, _), (b, _) in zip(whole, blocks, strict=True))
    assert len(list((tmp_path / "blocks" / "media").iterdir())) == 3, "one archive a block"


def test_one_block_is_in_memory_at_a_time(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(parts, "BLOCK", 2)
    monkeypatch.setattr(parts, "load_many", lambda refs, **_: loaded.append(len(refs)) or refs)
    stream = parts.spoken(PRESET, "train", 5, 0, tmp_path)
    next(stream)
    assert loaded == [2]
    assert len(list(stream)) == 4 and loaded == [2, 2, 1]


def test_a_quarter_of_what_the_speech_tokenizer_hears_is_the_voice_that_answers(tmp_path, monkeypatch):
    """Else its codes fit that voice least, and all that is spoken goes through them."""
    monkeypatch.setattr(parts, "load_many", lambda refs, **_: refs)
    monkeypatch.setattr(parts, "train_speech_tokenizer", lambda config, heard, budget, seed: list(heard))
    heard = parts.train_part("speech_tokenizer", PRESET, 0, tmp_path)
    speakers = [json.loads(ref.partition(":")[2])["voice"]["name"] for ref, _ in heard]
    assert len(speakers) == 8 and speakers.count(ANSWER_VOICE.name) == 2
    assert set(speakers) - {ANSWER_VOICE.name} <= {voice.name for voice in train_voices(PRESET.world.train_voices)}
