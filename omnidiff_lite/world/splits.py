"""Which (shape, colour, relation) combinations are held out of training, and seeds derived from names.

The choice is a hash of the words themselves: no seed, no state, the same in every process and preset. About a tenth of
the combinations belong to the test split and a twentieth to validation; every shape in every colour still occurs in
training, in other relations, so a test score measures recombination, not unseen words.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Iterable, Literal, Sequence

import numpy as np

Split = Literal["train", "validation", "test", "judge"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "judge")

LEFT, RIGHT, ABOVE, BELOW = "left of", "right of", "above", "below"
RELATIONS = (LEFT, RIGHT, ABOVE, BELOW)
INVERSE = {LEFT: RIGHT, RIGHT: LEFT, ABOVE: BELOW, BELOW: ABOVE}
ALONE = "alone"  # stands for the relation if a scene has only one object


def digest(*parts: object) -> int:
    """A 64-bit number from the parts' text, the same on every machine (Python's own `hash` is salted)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(*parts: object) -> np.random.Generator:
    """The random generator that belongs to a name: `stream("vqa", "train", seed, index)`."""
    return np.random.default_rng(digest(*parts))


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


@lru_cache(maxsize=None)
def combination_split(shape: str, color: str, relation: str) -> Split:
    """Where a combination belongs: "test", "validation", or "train" (which "judge" shares).

    Half of the (shape, colour) pairs hold out one of the five relations for the test, a quarter one for validation.
    """
    chosen = min((*RELATIONS, ALONE), key=lambda each: digest("held out", shape, color, each))
    if relation != chosen:
        return "train"
    return ("test", "test", "validation", "train")[digest("kept for", shape, color) % 4]


def combinations_split(combinations: Iterable[tuple[str, str, str]]) -> Split:
    """The split of a scene from its combinations: test if any belongs there, else validation, else train."""
    found = {combination_split(*each) for each in combinations}
    return next(split for split in ("test", "validation", "train") if split in found)


def item_split(key: str) -> Split:
    """The split of a chart or a sentence, by a hash of its whole content: 70 / 10 / 20 %."""
    share = digest("item", key) % 10
    return "test" if share < 2 else "validation" if share < 3 else "train"


def training_part(split: str) -> Split:
    """The part of the world that a split draws from; judges see other seeds of the training part."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")
    return "train" if split == "judge" else split  # type: ignore[return-value]
