"""What comes back: text, speech, image, and the canvas step by step."""

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
    """The canvas after one step: `ids` [N], which positions this step `decided` bool [N], and how sure it was [N]."""

    ids: np.ndarray
    decided: np.ndarray
    confidence: np.ndarray


@dataclass
class Answer:
    """One answer; a modality that was not asked for, or did not come out, is None."""

    text: str | None = None
    speech: Waveform | None = None
    image: PIL.Image.Image | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, int), repr=False)
    trace: list[TraceStep] = field(default_factory=list, repr=False)

    def save(self, folder: str | Path) -> list[str]:
        """Write answer.txt, answer.wav, answer.png into `folder`; returns a line about each."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("txt", "wav", "png"):  # of an earlier answer, which would pass for part of this one
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

    A picture short of tokens is filled with its last one (inference.py:313-320). `released`: the ids of each modality
    count wherever they stand, also past the ends of text and speech.
    """
    n = result.lengths[row]
    ids = result.ids[row, :n].tolist()
    text, speech, image = read_tokens(tokenizers.vocabulary, ids, released)
    answer = Answer(ids=np.array(ids), trace=_trace(result, row, n))
    if "text" in outputs:
        answer.text = decode_text(tokenizers.text, text)
    if "speech" in outputs and speech:
        answer.speech = tokenizers.speech_decoder.decode(torch.tensor(speech), seed=seed)
    if "image" in outputs and image:
        codes = torch.tensor(fit_image_codes(image, side * side)).view(1, side, side)
        device = next(tokenizers.image.parameters()).device
        answer.image = to_image(tokenizers.image.decode(codes.to(device))[0])
    return answer


def _trace(result: DecodeResult, row: int, n: int) -> list[TraceStep]:
    steps = []
    for number, canvas in enumerate(result.history):
        decided = result.decided[row, :n].cpu().numpy() == number
        steps.append(TraceStep(canvas[row, :n].cpu().numpy(), decided, result.confidence[row, :n].cpu().numpy()))
    return steps
