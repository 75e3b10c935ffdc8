"""What the embedded world says aloud: captions, questions, statements, and short phrases for variety.

Spoken text is lower-case letters and single spaces, so that transcripts are compared word by word without further
rules. A sentence belongs to one split, by a hash of its words: no test sentence has been trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.captions import article, caption
from omnidiff_lite.world.questions import ask, choose, number_word
from omnidiff_lite.world.scenes import COLORS, SHAPES, SIZES, sample_scene
from omnidiff_lite.world.splits import RELATIONS, item_split, training_part
from omnidiff_lite.world.text_qa import DAYS, MONTHS, sample_text_question

SHARES = {"caption": 0.35, "question": 0.2, "text question": 0.2, "statement": 0.15, "phrase": 0.1}
STATEMENTS = ("the {shape} is {color}", "i see {a}", "the {color} {shape} is {size}", "{a} and {number} more",
              "there are {number} {color} objects", "this is {a} of {day}", "i drew {a} in {month}")


def spoken(text: str) -> str:
    """The words of a text: lower-case, without punctuation."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def sample_sentence(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    """One sentence that belongs to a split (judges share the training part), of a kind drawn with `SHARES`.

    Its scenes and questions are also those of the split. In training `config.short_share` are one to three words in any
    order: these teach which sound belongs to which word in a fraction of the time, for use in sentences.
    """
    part = training_part(split)
    while True:
        if part == "train" and rng.random() < config.short_share:
            text = _any_words(rng, 1, 3)
        else:
            kind = str(rng.choice(tuple(SHARES), p=tuple(SHARES.values())))
            text = spoken(_SENTENCES[kind](rng, config, split))
        if item_split(text) == part:
            return text


def _caption(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    return caption(sample_scene(rng, config, split), rng)


def _question(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    return ask(sample_scene(rng, config, split), rng).text


def _text_question(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    return sample_text_question(rng, split).question


def _statement(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    item = choose(rng, sample_scene(rng, config, split).objects)
    return choose(rng, STATEMENTS).format(
        shape=item.shape, color=item.color, size=item.size, a=article(item.name), day=choose(rng, DAYS),
        month=choose(rng, MONTHS), number=number_word(int(rng.integers(2, 100))))


def _phrase(rng: np.random.Generator, config: WorldConfig, split: str) -> str:
    """Two to five words in any order: a recogniser must hear them and cannot guess them."""
    return _any_words(rng, 2, 5)


def _any_words(rng: np.random.Generator, fewest: int, most: int) -> str:
    words = [*COLORS, *SHAPES, *SIZES, *RELATIONS, *DAYS, *MONTHS, "yes", "no", number_word(int(rng.integers(100)))]
    return spoken(" ".join(choose(rng, words) for _ in range(int(rng.integers(fewest, most + 1)))))


_SENTENCES: dict[str, Callable[[np.random.Generator, WorldConfig, str], str]] = {
    "caption": _caption, "question": _question, "text question": _text_question, "statement": _statement,
    "phrase": _phrase}
