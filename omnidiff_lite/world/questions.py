"""Questions about scenes with known answers: yes/no, open, and multiple choice.

Kinds: existence, count, position, color, shape, size, relation, and texture where a picture shows any. (OCR, reading
words and numbers, is asked about signs: `charts.ask_sign`.) Half of the yes/no questions have the answer yes.

A reply repeats what was asked about before it answers: "the circle is red", not "red"; "no, the circle is nowhere", not
"no". From bare answers a small model learns which words may follow a question, but not to look at the thing that the
question names (notebook 04).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np

from omnidiff_lite.world.captions import article
from omnidiff_lite.world.scenes import COLORS, SHAPES, Object, Scene, holds
from omnidiff_lite.world.splits import INVERSE, LEFT, RIGHT, choose

YES, NO = "yes", "no"
YES_NO_SUFFIX = " please answer yes or no."
LETTERS = "ABCD"
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Question:
    """`answer` is always in words; `choices` are the four options of a multiple-choice question, including it.

    `sentence`: the answer in a sentence that begins with what was asked about ("" where the words stand alone).
    """

    text: str
    answer: str
    kind: str
    choices: tuple[str, ...] = ()
    sentence: str = ""

    @property
    def prompt(self) -> str:
        """The question as typed: with its lettered choices, or with a yes/no question's request for yes or no."""
        if self.choices:
            options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices))
            return f"{self.text}{options}\nanswer with the letter."
        return self.text + YES_NO_SUFFIX if self.answer in (YES, NO) else self.text

    @property
    def reply(self) -> str:
        """The answer as written: the letter for a multiple-choice question, else the sentence, or the words alone."""
        return LETTERS[self.choices.index(self.answer)] if self.choices else self.sentence or self.answer


def number_word(number: int) -> str:
    """0 to 99 in words: "forty two"."""
    if not 0 <= number < 100:
        raise ValueError(f"no word for {number}: give 0 to 99")
    if number < 20:
        return ONES[number]
    tens = TENS[number // 10 - 2]
    return f"{tens} {ONES[number % 10]}" if number % 10 else tens


def ask(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """A question about a scene, of a random kind unless one is given.

    Raises ValueError for a kind that the scene cannot answer (`kinds` lists those it can).
    """
    known = kinds(scene)
    kind = choose(rng, known) if kind is None else kind
    if kind not in known:
        raise ValueError(f"no {kind!r} question about this scene: choose one of {', '.join(known)}")
    return _ASK[kind](scene, rng)


def kinds(scene: Scene) -> list[str]:
    """The kinds of question that `ask` can ask about a scene."""
    missing = {"relation"} if scene.relation is None else set()
    if all(item.texture == "plain" for item in scene.objects):
        missing.add("texture")
    if not _singled_out(scene, "color"):
        missing.add("shape")
    return [kind for kind in _ASK if kind not in missing]


def is_there(thing: str) -> str:
    """"is there a red circle in the image?", as POPE and MME ask."""
    return f"is there {article(thing)} in the image?"


def are_there(number: int, noun: str) -> str:
    """"are there two circles in the image?", as MME's count subtask asks."""
    what = f"is there one {noun}" if number == 1 else f"are there {number_word(number)} {plural(noun)}"
    return f"{what} in the image?"


def does_stand(first: Object, relation: str, second: Object) -> str:
    """"is the red circle above the blue square in the image?", as MME's position subtask asks."""
    return f"is the {first.name} {relation} the {second.name} in the image?"


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    answer = choose(rng, (YES, NO))
    shapes = sorted({item.shape for item in scene.objects})
    if rng.random() < 0.5:
        thing = choose(rng, shapes if answer == YES else [shape for shape in SHAPES if shape not in shapes])
    else:
        thing = choose(rng, scene.objects).name if answer == YES else _near_miss(scene, rng)
    wording = choose(rng, ("do you see {} in the image?", "does the image show {}?", None))
    text = wording.format(article(thing)) if wording else is_there(thing)
    return Question(text, answer, "existence", sentence=f"{answer}, {_nearest(scene, thing)}")


def _nearest(scene: Scene, thing: str) -> str:
    """What a scene has of a "circle" or a "red circle": "the circle is red", "... blue", or "... nowhere"."""
    shape = thing.split()[-1]
    alike = [item for item in scene.objects if item.shape == shape]
    exact = [item for item in alike if item.name == thing]
    return f"the {shape} is {(exact or alike)[0].color if alike else 'nowhere'}"


def _near_miss(scene: Scene, rng: np.random.Generator) -> str:
    """A coloured shape that is absent, though its shape or its colour occurs."""
    item = choose(rng, scene.objects)
    names = [f"{color} {item.shape}" for color in COLORS] + [f"{item.color} {shape}" for shape in SHAPES]
    return choose(rng, [name for name in names if name not in {each.name for each in scene.objects}])


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    noun, number = "object", len(scene.objects)
    if rng.random() < 0.5:
        noun = choose(rng, [*(item.shape for item in scene.objects), choose(rng, tuple(SHAPES))])
        number = sum(item.shape == noun for item in scene.objects)
    if number and rng.random() < 0.25:
        answer = choose(rng, (YES, NO))
        stated = number if answer == YES else choose(rng, wrong_counts(number))
        return Question(are_there(stated, noun), answer, "count", sentence=f"{answer}, {_so_many(number, noun)}")
    wording = choose(rng, ("how many {} are there?", "how many {} do you see?", "how many {} does the image show?"))
    return Question(wording.format(plural(noun)), number_word(number), "count", sentence=_so_many(number, noun))


def _so_many(number: int, noun: str) -> str:
    return f"the number of {plural(noun)} is {number_word(number)}"


def wrong_counts(number: int) -> list[int]:
    """The numbers next to the right one, none below one."""
    return [other for other in (number - 1, number + 1) if other > 0]


def plural(shape: str) -> str:
    """"circles", "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def _position(scene: Scene, rng: np.random.Generator) -> Question:
    item = choose(rng, scene.objects)
    wording = choose(rng, ("where is the {}?", "where do you see the {}?", "in which part of the image is the {}?"))
    where = scene.position(item)
    return Question(wording.format(item.name), where, "position", sentence=f"the {item.name} is at the {where}")


def _color(scene: Scene, rng: np.random.Generator) -> Question:
    options = _singled_out(scene, "shape")
    if not options or rng.random() < 0.25:
        wording = choose(rng, ("what color is the ground?", "which color does the ground have?"))
        return Question(wording, scene.background, "color", sentence=f"the ground is {scene.background}")
    item, where = choose(rng, options)
    wording = choose(rng, ("what color is the {}?", "which color does the {} have?"))
    return Question(wording.format(where), item.color, "color", sentence=f"the {where} is {item.color}")


def _shape(scene: Scene, rng: np.random.Generator) -> Question:
    item, where = choose(rng, _singled_out(scene, "color"))
    wording = choose(rng, ("what shape is the {}?", "which shape does the {} have?"))
    return Question(wording.format(where), item.shape, "shape", sentence=f"the {where} is {article(item.shape)}")


def _singled_out(scene: Scene, attribute: str) -> list[tuple[Object, str]]:
    """Objects with words that mean them alone: "circle" or "red object"; their place if those words are ambiguous."""
    values = Counter(getattr(item, attribute) for item in scene.objects)
    places = Counter(map(scene.position, scene.objects))
    alone = [(item, item.shape if attribute == "shape" else f"{item.color} object")
             for item in scene.objects if values[getattr(item, attribute)] == 1]
    return alone or [(item, f"object at the {scene.position(item)}")
                     for item in scene.objects if places[scene.position(item)] == 1]


def _size(scene: Scene, rng: np.random.Generator) -> Question:
    item = choose(rng, scene.objects)
    wording = choose(rng, ("what size is the {}?", "is the {} small or large?", "which size does the {} have?"))
    return Question(wording.format(item.name), item.size, "size", sentence=f"the {item.name} is {item.size}")


def _texture(scene: Scene, rng: np.random.Generator) -> Question:
    item = choose(rng, scene.objects)
    wording = choose(rng, ("is the {} plain striped or dotted?", "which texture does the {} have?"))
    return Question(wording.format(item.name), item.texture, "texture", sentence=f"the {item.name} is {item.texture}")


def _relation(scene: Scene, rng: np.random.Generator) -> Question:
    first, second = scene.objects[:2]
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE[relation]
    form = int(rng.integers(3))
    if form == 0 and sum(holds(relation, item.cell, second.cell) for item in scene.objects if item is not second) == 1:
        wording = choose(rng, ("what is {} the {}?", "which object is {} the {}?"))
        return Question(wording.format(relation, second.name), first.name, "relation",
                        sentence=f"{relation} the {second.name} is the {first.name}")
    if form == 1:
        pair = "left or right of" if relation in (LEFT, RIGHT) else "above or below"
        return Question(f"is the {first.name} {pair} the {second.name}?", relation.removesuffix(" of"), "relation",
                        sentence=_fact(first, relation, second))
    return _relation_yes_no(first, relation, second, rng)


def _fact(first: Object, relation: str, second: Object) -> str:
    return f"the {first.name} is {relation} the {second.name}"


def _relation_yes_no(first: Object, relation: str, second: Object, rng: np.random.Generator) -> Question:
    answer = choose(rng, (YES, NO))
    stated = relation if answer == YES else INVERSE[relation]
    return Question(does_stand(first, stated, second), answer, "relation",
                    sentence=f"{answer}, {_fact(first, relation, second)}")


_ASK: dict[str, Callable[[Scene, np.random.Generator], Question]] = {
    "existence": _existence, "count": _count, "position": _position, "color": _color, "shape": _shape, "size": _size,
    "relation": _relation, "texture": _texture}
KINDS = (*_ASK, "ocr")


# --- multiple choice --------------------------------------------------------------------------------------------------


def with_choices(question: Question, wrong: Sequence[str], rng: np.random.Generator) -> Question:
    """The question with four choices: its answer and three of the wrong ones, shuffled.

    Raises ValueError if fewer than three wrong choices are left.
    """
    pool = [choice for choice in dict.fromkeys(wrong) if choice != question.answer]
    if len(pool) < 3:
        raise ValueError(f"{question.text!r} has {len(pool)} wrong choices; give at least three")
    options = [question.answer, *(pool[i] for i in rng.permutation(len(pool))[:3])]
    return replace(question, choices=tuple(options[i] for i in rng.permutation(4)))


def ask_choices(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """A multiple-choice question of kind color, count, position or shape about a scene."""
    pools = {"color": COLORS, "count": ONES[:7], "shape": SHAPES,
             "position": [f"{row} {column}" for row in ("top", "bottom") for column in ("left", "right")]}
    kind = choose(rng, tuple(pools)) if kind is None else kind
    if kind not in pools:
        raise ValueError(f"no multiple-choice question of kind {kind!r}: choose one of {', '.join(pools)}")
    question = ask(scene, rng, kind)
    return with_choices(question, tuple(pools[kind]), rng)
