"""The speaking half of the embedded world: repeatable, in several sets of voices that share no timbre."""

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omnidiff_lite.world import voices
from omnidiff_lite.world.voices import ANSWER_VOICE, MARGIN, RATE, Voice, VoiceError, speak, speech, speech_ref

ROOT = Path(__file__).parents[1]
TEXT = "a red circle above a blue square"


def fingerprint(text, voice):
    return hashlib.sha256(speak(text, voice).samples.tobytes()).hexdigest()


def test_same_samples_whatever_was_said_before():
    for voice in (ANSWER_VOICE, voices.train_voices(2)[1], voices.test_voices()[0]):
        first = fingerprint(TEXT, voice)
        speak("something else entirely", voices.judge_voices()[3])
        assert fingerprint(TEXT, voice) == first


def test_every_voice_is_repeatable_and_no_two_sound_alike():
    everybody = [*voices.train_voices(24), *voices.test_voices(), *voices.judge_voices(), ANSWER_VOICE]
    prints = [fingerprint("a ring", voice) for voice in everybody]
    assert prints == [fingerprint("a ring", voice) for voice in everybody]
    assert len(set(prints)) == len(everybody)


def test_same_samples_in_another_process():
    code = ("from tests.test_voices import *\n"
            "print(fingerprint(TEXT, ANSWER_VOICE), fingerprint(TEXT, voices.train_voices(9)[8]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == [fingerprint(TEXT, ANSWER_VOICE), fingerprint(TEXT, voices.train_voices(9)[8])]


def test_wave_format_and_trimmed_ends():
    wave = speak(TEXT, ANSWER_VOICE)
    assert (wave.rate, wave.samples.dtype, wave.samples.ndim) == (RATE, np.float32, 1)
    assert 1.0 < wave.seconds < 3.0 and 0.05 < np.abs(wave.samples).max() <= 1.0
    loud = np.flatnonzero(np.abs(wave.samples) > voices.QUIET * np.abs(wave.samples).max())
    margin = round(MARGIN * RATE)
    assert (loud[0], len(wave.samples) - 1 - loud[-1]) == (margin, margin)


def test_voice_sets_share_no_timbre():
    groups = [voices.train_voices(200), voices.test_voices(), voices.judge_voices(), [ANSWER_VOICE]]
    for one, other in itertools.combinations(groups, 2):
        assert not {v.variant for v in one} & {v.variant for v in other}
    for group in groups:
        assert len({v.name for v in group}) == len(group)


def test_train_voices_are_a_prefix_of_more_train_voices():
    assert voices.train_voices(50)[:10] == voices.train_voices(10)


def test_rate_and_pitch_are_heard():
    slow, fast = (speak(TEXT, Voice("x", "en-us", "m1", rate=rate)) for rate in (130, 220))
    assert slow.seconds > 1.3 * fast.seconds
    low, high = (fingerprint(TEXT, Voice("x", "en-us", "m1", pitch=pitch)) for pitch in (20, 80))
    assert low != high


def test_a_recipe_says_it_all():
    ref = speech_ref(TEXT, ANSWER_VOICE)
    assert ref.startswith("speech:{") and voices.parse_speech(ref) == (TEXT, ANSWER_VOICE)
    assert np.array_equal(speech(ref).samples, speak(TEXT, ANSWER_VOICE).samples)


@pytest.mark.parametrize("ref", [
    "speech:{", 'speech:{"text": "a"}', 'speech:{"text": "a", "voice": {"colour": 1}}', "speech:[]"])
def test_a_broken_recipe_is_one_clear_error(ref):
    with pytest.raises(VoiceError, match="not a speech recipe.*speech_ref"):
        speech(ref)


@pytest.mark.parametrize("text, voice, message", [
    ("...", ANSWER_VOICE, "makes no sound of '...'"),
    (TEXT, Voice("x", "xx-nowhere", "m1"), "no language 'xx-nowhere'"),
    (TEXT, Voice("x", "en-us", "nobody"), "no variant 'nobody'"),
])
def test_what_cannot_be_said_is_one_clear_error(text, voice, message):
    with pytest.raises(VoiceError, match=message):
        speak(text, voice)


def test_a_library_that_does_not_load_names_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(VoiceError, match="did not load.*pip install"):
        speak(TEXT, ANSWER_VOICE)
