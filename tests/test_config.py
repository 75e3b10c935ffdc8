"""Presets: full size is the default, small ones name what differs, and no misspelling slips through."""

import json

import pytest

from omnidiff_lite.config import ConfigError, Preset, from_dict, load_preset, preset_names, to_dict


def test_defaults_are_the_released_system():
    full = load_preset("full")
    assert full.denoiser.hidden_size == 3584 and full.denoiser.layers == 28
    assert full.image_tokenizer.codes == 8192 and full.image_tokenizer.factor == 16
    assert full.speech_encoder.input_size == 560 and full.speech_tokenizer.codes == 16384
    assert full.training.gamma == 0.6 and full.training.length == 3072
    assert [full.training.stage1.learning_rate, full.training.stage3.learning_rate] == [1e-4, 1e-5]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_plain_values(name):
    preset = load_preset(name)
    assert from_dict(Preset, json.loads(json.dumps(to_dict(preset)))) == preset
    for stage in (preset.training.stage1, preset.training.stage2, preset.training.stage3):
        assert abs(sum(stage.mix.values()) - 1) < 1e-6, "a stage's mix is a set of shares"


def test_an_override_changes_one_value():
    assert load_preset("smoke", {"training.gamma": 0.3}).training.gamma == 0.3


@pytest.mark.parametrize("key, value, words", [
    ("training.gama", 0.3, "did you mean 'gamma'"),
    ("training.gamma", "1e-3", "expected float"),
    ("training.stage1.steps", 2.5, "expected int"),
    ("training.time", "sentence", "none of 'sequence', 'token'"),
    ("training.compile", 1, "expected bool"),
    ("image_tokenizer.encoder_blocks", 3, "expected a list"),
    ("world.image_size.x", 1, "is a value, not a section"),
    ("speech_tokenizer.pooling", 2, "must be 4: the speech decoder speaks 12.5 tokens a second; got 2"),
    ("speech_encoder.stride", 3, "must be 6: answers get their lengths from 60 ms frames; got 3"),
    ("speech_tokenizer.codes", 99, "one codebook, so give both the same"),
    ("world.grid", 0, "expected at least 1, got 0"),
    ("world.max_objects", 0, "expected 1 to 4, got 0"),
    ("world.max_objects", 5, "expected 1 to 4, got 5"),
    ("world.train_voices", 0, "expected at least 1, got 0"),
    ("world.short_share", 3.0, "expected 0 to 1, got 3"),
    ("denoiser.layers", 0, "expected at least 1, got 0"),
    ("denoiser.heads", 0, "expected at least 1, got 0"),
    ("denoiser.heads", 5, "a divisor of hidden_size 96 and a multiple of kv_heads 2, got 5"),
    ("evaluation.steps", [], r"a list of numbers of at least 1, got \[\]"),
    ("evaluation.ratios", [0.5, 0], r"shares above 0 and up to 1, got \[0.5, 0.0\]"),
])
def test_a_wrong_key_or_type_is_named(key, value, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_preset("smoke", {key: value})
    assert key.split(".")[1] in str(error.value)


def test_an_unknown_preset_lists_those_that_exist():
    with pytest.raises(ConfigError, match="smoke"):
        load_preset("laptop")
