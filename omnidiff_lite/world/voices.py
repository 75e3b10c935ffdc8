"""Who speaks in the embedded world: espeak-ng, with the same samples every time, everywhere.

espeak-ng keeps state between utterances (random noise, filters), so a text spoken twice in one process differs, even
in length. Here the library is loaded, seeded, used and unloaded once per utterance, which makes an utterance a pure
function of its text and its voice, at about 5 ms each.

Four sets of speakers share no variant (timbre): training, test, judges, and the one voice that answers.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from omnidiff_lite.media import Waveform
from omnidiff_lite.world.splits import stream

RATE = 22050  # Hz, fixed by espeak-ng
MARGIN = 0.05  # seconds of silence kept at each end
QUIET = 0.01  # of the peak; below this, an end counts as silence
SEED = 1
PREFIX = "speech:"

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# Variants that sound human: no robots, no whispers, and none of the Klatt ones, which are not repeatable.
TRAIN_VARIANTS = ("m1", "f1", "m5", "f2", "m7", "f5", "m6", "Annie", "max", "aunty", "Alex", "linda",
                  "Mario", "grandma", "Michael", "anika", "boris", "shelby", "robert", "Mike", "iven3", "marcelo",
                  "quincy", "travis")
TEST_VARIANTS = ("m4", "f4", "rob", "belinda", "Denis", "Andrea", "grandpa", "Nguyen")
JUDGE_VARIANTS = ("m2", "f3", "m8", "Andy", "ian", "iven4", "kaukovalta", "victor", "croak", "michel", "miguel")


class VoiceError(RuntimeError):
    """Speech that cannot be made; the message names what is wrong and the fix."""


@dataclass(frozen=True)
class Voice:
    """One speaker: accent (`language`) and timbre (`variant`) of espeak-ng, `rate` in words a minute, `pitch` 0..99."""

    name: str
    language: str
    variant: str
    rate: int = 175
    pitch: int = 50


ANSWER_VOICE = Voice("answer", "en-us", "m3", rate=175, pitch=50)


def train_voices(n: int) -> list[Voice]:
    """The first `n` training speakers; past the first 24 the timbres repeat with another accent, rate and pitch."""
    return [_draw("train", TRAIN_VARIANTS, i) for i in range(n)]


def test_voices() -> list[Voice]:
    """Speakers whose timbres occur in no training utterance."""
    return [_draw("test", TEST_VARIANTS, i) for i in range(2 * len(TEST_VARIANTS))]


def judge_voices() -> list[Voice]:
    """Speakers that only the learned judges hear."""
    return [_draw("judge", JUDGE_VARIANTS, i) for i in range(2 * len(JUDGE_VARIANTS))]


test_voices.__test__ = False  # pytest would take it for a test by its name


def _draw(group: str, variants: tuple[str, ...], i: int) -> Voice:
    rng = stream("voice", group, i)
    accent = ACCENTS[rng.integers(len(ACCENTS))]
    return Voice(f"{group}-{i:03d}", accent, variants[i % len(variants)],
                 rate=int(rng.integers(150, 206)), pitch=int(rng.integers(35, 66)))


# --- recipes ---------------------------------------------------------------------------------------------------------

def speech_ref(text: str, voice: Voice) -> str:
    """The recipe of an utterance, `speech:{json}`: everything that `speech` needs, in one line."""
    return PREFIX + json.dumps({"text": text, "voice": asdict(voice)}, ensure_ascii=False, sort_keys=True)


def parse_speech(ref: str) -> tuple[str, Voice]:
    """The text and the voice of a recipe. Raises `VoiceError` for anything that `speech_ref` did not write."""
    try:
        recipe = json.loads(ref.removeprefix(PREFIX))
        return recipe["text"], Voice(**recipe["voice"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise VoiceError(f"not a speech recipe ({error}): {ref[:120]!r}; write one with speech_ref") from None


def speech(ref: str) -> Waveform:
    """The sound of a recipe."""
    return speak(*parse_speech(ref))


# --- synthesis -------------------------------------------------------------------------------------------------------

def speak(text: str, voice: Voice) -> Waveform:
    """`text` in `voice`: float32 at 22,050 Hz with `MARGIN` seconds of silence at each end.

    Depends only on the text and the voice, not on what was said before. Raises `VoiceError` if espeak-ng cannot be
    loaded, does not know the voice, or makes no sound from the text.
    """
    with _library() as library:
        samples = _synthesise(library, text, voice)
    return Waveform(_trim(samples.astype(np.float32) / 32768, text), RATE)


def _trim(samples: np.ndarray, text: str) -> np.ndarray:
    """The sound with exactly `MARGIN` seconds before the first and after the last sample that is not `QUIET`."""
    level = np.abs(samples)
    loud = np.flatnonzero(level > QUIET * level.max(initial=0.0))
    if not len(loud):
        raise VoiceError(f"espeak-ng makes no sound of {text!r}; give words")
    margin = round(MARGIN * RATE)
    return np.pad(samples, margin)[loud[0]:loud[-1] + 1 + 2 * margin]


# Values of speak_lib.h, espeak-ng 1.52.
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _BY_CHARACTER = 2, 0x8000, 1, 1
_RATE_PARAMETER, _PITCH_PARAMETER = 1, 3
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()  # the library's state is global to the process


def _synthesise(library: ctypes.CDLL, text: str, voice: Voice) -> np.ndarray:
    """16-bit samples [n]."""
    chunks: list[np.ndarray] = []

    def collect(samples, count, events) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(collect)  # bound to a name, so that it outlives the call
    library.espeak_SetSynthCallback(callback)
    _set_voice(library, voice)
    library.espeak_SetParameter(_RATE_PARAMETER, voice.rate, 0)  # after the voice, which sets its own
    library.espeak_SetParameter(_PITCH_PARAMETER, voice.pitch, 0)
    library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _BY_CHARACTER, 0, _UTF8, None, None)
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int16)


def _set_voice(library: ctypes.CDLL, voice: Voice) -> None:
    if library.espeak_SetVoiceByName(f"{voice.language}+{voice.variant}".encode()):
        raise VoiceError(f"espeak-ng has no language {voice.language!r}; choose one of {', '.join(ACCENTS)}")
    variants = Path(_data_path(), "voices", "!v")  # espeak-ng silently ignores an unknown variant
    if not (variants / voice.variant).is_file():
        raise VoiceError(f"espeak-ng has no variant {voice.variant!r}; choose one like {', '.join(TRAIN_VARIANTS[:4])}")


@contextmanager
def _library() -> Iterator[ctypes.CDLL]:
    """A fresh espeak-ng, loaded on entry and unloaded on exit."""
    with _LOCK:
        library = _load()
        try:
            if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(_data_path()), _DONT_EXIT) < 0:
                raise VoiceError(f"espeak-ng cannot read its data in {_data_path()}; {_MEND}")
            yield library
        finally:
            library.espeak_Terminate()
            _unload(library._handle)


_MEND = "install it afresh with `pip install --force-reinstall espeakng-loader`"
_unload = _ctypes.FreeLibrary if sys.platform == "win32" else _ctypes.dlclose


def _load() -> ctypes.CDLL:
    try:
        import espeakng_loader

        return ctypes.CDLL(espeakng_loader.get_library_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise VoiceError(f"the world's speech needs espeak-ng, which did not load ({error}); {_MEND}") from None


def _data_path() -> str:
    import espeakng_loader

    return espeakng_loader.get_data_path()
