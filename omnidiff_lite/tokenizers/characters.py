"""CTC over characters: the alphabet, the loss, and reading a part's speech back as text."""

from __future__ import annotations

import unicodedata
from typing import Protocol, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from omnidiff_lite.media import Waveform

BLANK = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz '"
SYMBOLS = 1 + len(LETTERS)


class Recogniser(Protocol):
    """A part that reads speech: `SpeechEncoder`, and `SpeechTokenizer` with a recognition head."""

    def recognise(self, waveforms: list[Waveform]) -> list[Tensor]: ...


def normalise(text: str) -> str:
    """Lower-case letters, apostrophes and single spaces; accents are dropped, other marks become spaces.

    Raises `ValueError` on digits: numbers must be written as spoken words.
    """
    if any(c.isdigit() for c in text):
        raise ValueError(f"{text!r}: write numbers as words, the alphabet of the recogniser has no digits")
    plain = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    letters = (c if c in LETTERS else " " for c in plain if not unicodedata.combining(c))
    return " ".join("".join(letters).split())


def encode(text: str) -> Tensor:
    """Symbols 1.. of the normalised text, int64 [n]; 0 is the blank."""
    return torch.tensor([1 + LETTERS.index(c) for c in normalise(text)], dtype=torch.int64)


def decode(ids: Tensor | Sequence[int]) -> str:
    """Greedy CTC: repeats merged, then blanks dropped. ids [T]: the best symbol of every step.

    A head may have more symbols than the alphabet; those never train and are dropped too.
    """
    kept = torch.unique_consecutive(torch.as_tensor(ids)).tolist()
    return " ".join("".join(LETTERS[i - 1] for i in kept if BLANK < i < SYMBOLS).split())


def steps_needed(symbols: Tensor) -> int:
    """The fewest CTC steps that can spell `symbols` [n]: a blank must separate two equal neighbours."""
    return len(symbols) + int((symbols[1:] == symbols[:-1]).sum())


def target_symbols(texts: Sequence[str], steps: Sequence[int]) -> list[Tensor]:
    """Encoded texts, each checked against the number of CTC steps in its recording. Raises `ValueError`."""
    encoded = [encode(text) for text in texts]
    for text, symbols, given in zip(texts, encoded, steps):
        if not len(symbols) or steps_needed(symbols) > given:
            raise ValueError(f"{text!r} needs {steps_needed(symbols)} CTC steps (at least 1 symbol), its recording "
                             f"gives {given}: check the text, or raise ctc_steps in the configuration")
    return encoded


def ctc_loss(log_probs: Tensor, steps: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Mean over the batch of the negative log-likelihood per symbol.

    log_probs [B, T, symbols], whose first steps [B] count; targets: B tensors from `encode`.
    """
    lengths = torch.tensor([len(t) for t in targets])
    flat = torch.cat(list(targets)).to(log_probs.device)
    return F.ctc_loss(log_probs.transpose(0, 1), flat, steps.cpu(), lengths, blank=BLANK)


def transcribe(part: Recogniser, waveforms: list[Waveform]) -> list[str]:
    """What `part` hears in every recording, greedily decoded."""
    return [decode(log_probs.argmax(-1).cpu()) for log_probs in part.recognise(waveforms)]


def check_alphabet(symbols: int, where: str) -> None:
    """Raise `ValueError` if a CTC head has too few symbols for the alphabet."""
    if symbols < SYMBOLS:
        raise ValueError(f"{where}.ctc_vocabulary is {symbols}; training on characters needs {SYMBOLS} or more")
