"""Questions that need no picture: what the embedded world knows beyond what it shows.

A closed table of facts, each asked in several wordings. One wording of every fact is held out (for validation or for
test), so a test question asks something that training has taught, in a wording that training never used for it.
All text is lower-case letters and spaces, as it is spoken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

from omnidiff_lite.world.captions import article
from omnidiff_lite.world.questions import number_word
from omnidiff_lite.world.splits import digest, training_part

NUMBERS = [number_word(number) for number in range(21)]
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
COLORS = {"ripe lemon": "yellow", "banana": "yellow", "ripe tomato": "red", "fire engine": "red", "strawberry": "red",
          "cherry": "red", "frog": "green", "leaf in summer": "green", "cucumber": "green", "clear sky": "blue",
          "blueberry": "blue", "pumpkin": "orange", "carrot": "orange", "piece of coal": "black", "raven": "black",
          "plum": "purple", "flamingo": "pink", "pig": "pink", "snowman": "white", "swan": "white", "elephant": "grey"}
OPPOSITES = ("big small, hot cold, up down, left right, day night, fast slow, open closed, old young, wet dry, "
             "full empty, early late, happy sad, near far, hard soft, light dark, high low, long short, loud quiet, "
             "clean dirty, rich poor, strong weak, first last, front back, true false, thick thin, inside outside")
LEGS = {"spider": "eight", "dog": "four", "cat": "four", "bird": "two", "bee": "six", "snake": "zero", "horse": "four",
        "ant": "six", "person": "two", "fish": "zero", "table": "four", "beetle": "six"}
SIDES = {"triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five", "hexagon": "six",
         "octagon": "eight", "diamond": "four"}
SOUNDS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "lion": "roar", "owl": "hoot",
          "snake": "hiss", "bee": "buzz", "mouse": "squeak"}
CAPITALS = {"france": "paris", "italy": "rome", "spain": "madrid", "germany": "berlin", "japan": "tokyo",
            "china": "beijing", "egypt": "cairo", "greece": "athens", "russia": "moscow", "england": "london",
            "norway": "oslo", "poland": "warsaw"}
KINDS = {"animal": "dog horse whale sparrow frog ant".split(), "fruit": "apple pear banana cherry plum lemon".split(),
         "tool": "hammer saw spade drill wrench".split(), "instrument": "piano violin drum flute guitar".split(),
         "vehicle": "car train bicycle boat truck".split(), "shape": "circle square triangle star diamond".split()}
BY_SIZE = "ant mouse cat sheep horse elephant whale".split()
BY_SPEED = "snail turtle person horse train plane".split()
BY_WEIGHT = "feather apple brick chair piano house".split()


@dataclass(frozen=True)
class TextQuestion:
    """A question and its one-line answer; `kind` names the table it comes from."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class _Table:
    """Facts of one kind: `wordings` have slots {0}, {1} for a fact's subjects; the fact's last entry is the answer."""

    wordings: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]


def _pairs(table: dict[str, str], named: bool = False) -> tuple[tuple[str, ...], ...]:
    return tuple((key if named else article(key), value) for key, value in table.items())


def _compare(ranks: list[str]) -> tuple[tuple[str, ...], ...]:
    """All pairs from an ascending list, in both orders; the answer is the greater."""
    return tuple((article(ranks[i]), article(ranks[j]), article(ranks[max(i, j)]))
                 for i, j in permutations(range(len(ranks)), 2))


def _next(cycle: list[str], step: int) -> tuple[tuple[str, ...], ...]:
    return tuple((word, cycle[(i + step) % len(cycle)]) for i, word in enumerate(cycle))


def _opposites() -> tuple[tuple[str, ...], ...]:
    pairs = [tuple(pair.split()) for pair in OPPOSITES.split(", ")]
    return tuple(pairs + [pair[::-1] for pair in pairs])


TABLES: dict[str, _Table] = {
    "color": _Table(("what color is {0}", "tell me the color of {0}", "which color does {0} have",
                     "what is the color of {0}", "name the color of {0}"), _pairs(COLORS)),
    "opposite": _Table(("what is the opposite of {0}", "tell me the opposite of {0}", "name the opposite of {0}",
                        "which word means the opposite of {0}", "what word is the opposite of {0}"), _opposites()),
    "next number": _Table(("what number comes after {0}", "which number follows {0}", "count on from {0}",
                           "what is the next number after {0}"), tuple(zip(NUMBERS[:-1], NUMBERS[1:]))),
    "previous number": _Table(("what number comes before {0}", "which number is just before {0}", "count back from {0}",
                               "what is the number before {0}"), tuple(zip(NUMBERS[1:], NUMBERS[:-1]))),
    "next day": _Table(("what day comes after {0}", "which day follows {0}", "if today is {0} what day is tomorrow",
                        "what is the day after {0}"), _next(DAYS, 1)),
    "previous day": _Table(("what day comes before {0}", "which day is just before {0}", "what is the day before {0}",
                            "if today is {0} what day was yesterday"), _next(DAYS, -1)),
    "next month": _Table(("what month comes after {0}", "which month follows {0}", "what is the month after {0}",
                          "if it is {0} now what is the next month"), _next(MONTHS, 1)),
    "previous month": _Table(("what month comes before {0}", "which month is just before {0}",
                              "what is the month before {0}", "if it is {0} now what was the last month"),
                             _next(MONTHS, -1)),
    "sum": _Table(("what is {0} plus {1}", "how much is {0} plus {1}", "add {0} and {1}", "what do {0} and {1} make",
                   "what is the sum of {0} and {1}"),
                  tuple((NUMBERS[a], NUMBERS[b], NUMBERS[a + b]) for a in range(1, 10) for b in range(1, 10))),
    "difference": _Table(("what is {0} minus {1}", "how much is {0} minus {1}", "take {1} from {0}",
                          "what is left of {0} without {1}"),
                         tuple((NUMBERS[a], NUMBERS[b], NUMBERS[a - b])
                               for a in range(1, 11) for b in range(1, a + 1))),
    "larger": _Table(("which is larger {0} or {1}", "which of the two is larger {0} or {1}",
                      "what is bigger {0} or {1}", "tell me which is bigger {0} or {1}"), _compare(BY_SIZE)),
    "faster": _Table(("which is faster {0} or {1}", "which of the two is faster {0} or {1}",
                      "what moves faster {0} or {1}", "tell me which is faster {0} or {1}"), _compare(BY_SPEED)),
    "heavier": _Table(("which is heavier {0} or {1}", "which of the two is heavier {0} or {1}",
                       "what weighs more {0} or {1}", "tell me which is heavier {0} or {1}"), _compare(BY_WEIGHT)),
    "legs": _Table(("how many legs does {0} have", "tell me how many legs {0} has", "what number of legs does {0} have",
                    "count the legs of {0}"), _pairs(LEGS)),
    "sides": _Table(("how many sides does {0} have", "tell me how many sides {0} has", "count the sides of {0}",
                     "what number of sides does {0} have"), _pairs(SIDES)),
    "sound": _Table(("what does {0} say", "what sound does {0} make", "tell me what {0} says",
                     "which sound comes from {0}"), _pairs(SOUNDS)),
    "capital": _Table(("what is the capital of {0}", "name the capital of {0}", "tell me the capital of {0}",
                       "which city is the capital of {0}"), _pairs(CAPITALS, named=True)),
    "kind": _Table(("what is {0}", "what kind of thing is {0}", "tell me what {0} is", "what do we call {0}"),
                   tuple((article(each), article(kind)) for kind, members in KINDS.items() for each in members)),
}


def questions(split: str) -> dict[str, tuple[TextQuestion, ...]]:
    """Every question of a split, by kind. Raises ValueError for an unknown split; judges share the training part."""
    part = training_part(split)
    return {kind: found for kind in TABLES if (found := _questions(kind, part))}


def sample_text_question(rng: np.random.Generator, split: str) -> TextQuestion:
    """One question: first a kind, then a question of that kind, so that large tables (sums) do not crowd out small
    ones."""
    table = questions(split)
    found = table[tuple(table)[int(rng.integers(len(table)))]]
    return found[int(rng.integers(len(found)))]


@lru_cache(maxsize=None)
def _questions(kind: str, part: str) -> tuple[TextQuestion, ...]:
    table = TABLES[kind]
    return tuple(TextQuestion(table.wordings[w].format(*fact), fact[-1], kind)
                 for fact in table.facts for w, owner in enumerate(_owners(kind, fact, len(table.wordings)))
                 if owner == part)


def _owners(kind: str, fact: tuple[str, ...], wordings: int) -> Iterator[str]:
    """The split of each wording of a fact: one is held out, for test (three facts in four) or for validation."""
    held_out = digest("text qa", kind, *fact) % wordings
    keeper = "validation" if digest("text qa keeper", kind, *fact) % 4 == 0 else "test"
    return (keeper if w == held_out else "train" for w in range(wordings))
