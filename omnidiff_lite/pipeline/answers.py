"""What an answer holds: text, speech, image, and the canvas step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from omnidiff_lite.diffusion.canvas import fit_image_codes
from omnidiff_lite.diffusion.canvas import read_answer as read_tokens
from omnidiff_lite.diffusion.decoding import DecodeResult
from omnidiff_lite.media import Waveform
from omnidiff_lite.tokenizers.image import to_image
from omnidiff_lite.tokenizers.text import decode_text

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers import Tokenizers


@dataclass(frozen=True)
class TraceStep:
    """The canvas after one step: `ids` [N], which positions this step `decided`, bool [N], and the `confidence` [N]
    with which each position was decided, in whichever step that was."""

    ids: np.ndarray
    decided: np.ndarray
    confidence: np.ndarray


class Trace(Sequence[TraceStep]):
    """The steps of one answer, built on access."""

    def __init__(self, result: DecodeResult, row: int) -> None:
        self.history, self.row, n = result.history, row, result.lengths[row]
        self.decided, self.confidence = result.decided[row, :n].numpy(), result.confidence[row, :n].numpy()

    def __len__(self) -> int:
        return len(self.history)

    def __getitem__(self, step: int | slice) -> TraceStep | list[TraceStep]:
        numbers = range(len(self))[step]
        return self._step(numbers) if isinstance(numbers, int) else [self._step(n) for n in numbers]

    def _step(self, number: int) -> TraceStep:
        ids = self.history[number][self.row, :len(self.decided)].numpy()
        return TraceStep(ids, self.decided == number, self.confidence)


@dataclass
class Answer:
    """One answer; a modality that was not requested, or not produced, is None."""

    text: str | None = None
    speech: Waveform | None = None
    image: PIL.Image.Image | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, int), repr=False)
    trace: Sequence[TraceStep] = field(default_factory=list, repr=False)

    def save(self, folder: str | Path) -> list[str]:
        """Write answer.txt, answer.wav, answer.png into `folder`; returns one line about each."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("txt", "wav", "png"):  # from an earlier answer, which would pass for part of this one
            (folder / f"answer.{suffix}").unlink(missing_ok=True)
        lines = []
        if self.text is not None:
            (folder / "answer.txt").write_text(self.text + "\n")
            lines.append(f"{folder / 'answer.txt'}: {self.text or '(nothing)'}")
        if self.speech is not None:
            lines.append(f"{self.speech.save(folder / 'answer.wav')}: {self.speech.seconds:.1f} s of speech")
        if self.image is not None:
            self.image.save(folder / "answer.png")
            lines.append(f"{folder / 'answer.png'}: {self.image.width} x {self.image.height} pixels")
        return lines or ["the model gave an empty answer"]


def read_answer(result: DecodeResult, row: int, side: int, tokenizers: Tokenizers, outputs: Sequence[str],
                seed: int, released: bool = False) -> Answer:
    """Row `row` of a decoded batch as media; a picture has `side` x `side` tokens.

    A picture with too few tokens is filled up with its last one (inference.py:313-320). `released`: the ids of each
    modality count wherever they stand, even past the ends of text and speech.
    """
    n = result.lengths[row]
    ids = result.ids[row, :n].tolist()
    text, speech, image = read_tokens(tokenizers.vocabulary, ids, released)
    answer = Answer(ids=np.array(ids), trace=Trace(result, row))
    if "text" in outputs:
        answer.text = decode_text(tokenizers.text, text)
    if "speech" in outputs and speech:
        answer.speech = tokenizers.speech_decoder.decode(torch.tensor(speech), seed=seed)
    if "image" in outputs and image:
        codes = torch.tensor(fit_image_codes(image, side * side)).view(1, side, side)
        device = next(tokenizers.image.parameters()).device
        answer.image = to_image(tokenizers.image.decode(codes.to(device))[0])
    return answer
