"""Who speaks: espeak-ng, or any speech synthesiser that a package provides under the entry point group
`omnidiff_lite.synthesisers`.

    # pyproject.toml of a package with CosyVoice2 in it
    [project.entry-points."omnidiff_lite.synthesisers"]
    cosyvoice2 = "my_package:CosyVoice2"        # a class or function: no arguments in, a `Synthesiser` out

Voices are names: of espeak-ng's speakers here, of recordings to clone in the paper's CosyVoice2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import entry_points
from typing import Protocol

from omnidiff_lite.media import Waveform
from omnidiff_lite.world.voices import ANSWER_VOICE, Voice, VoiceError, speak, train_voices

GROUP = "omnidiff_lite.synthesisers"
VOICES = 1000  # the paper's number of GigaSpeech clips whose voices ask the questions


class Synthesiser(Protocol):
    """Text to speech in named voices."""

    voices: Sequence[str]  # ask questions and say captions
    answer_voice: str  # answers

    def speak(self, text: str, voice: str) -> Waveform:
        """The sound of a text. Raises `VoiceError` if it cannot be spoken."""


class Espeak:
    """The kit's own synthesiser, which needs no download."""

    answer_voice = ANSWER_VOICE.name

    @cached_property
    def _known(self) -> dict[str, Voice]:
        return {voice.name: voice for voice in [*train_voices(VOICES), ANSWER_VOICE]}

    @property
    def voices(self) -> Sequence[str]:
        return [name for name in self._known if name != self.answer_voice]

    def speak(self, text: str, voice: str) -> Waveform:
        return speak(text, self._known[voice])


def synthesiser(name: str = "espeak") -> Synthesiser:
    """The synthesiser of that name. Raises `VoiceError` if no installed package provides it."""
    offered = {point.name: point for point in entry_points(group=GROUP)}
    if name in offered:
        return offered[name].load()()
    if name == "espeak":
        return Espeak()
    raise VoiceError(f"no synthesiser {name!r}; there are {', '.join(['espeak', *offered])}. A package offers one "
                     f"under the entry point group {GROUP!r}")
