"""Captions of scenes in several wordings, read back into facts, and compared with a scene.

The language is deliberately small and regular: lower-case words, no digits, one sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Protocol

import numpy as np

from omnidiff_lite.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, Object, Scene, holds
from omnidiff_lite.world.splits import ABOVE, BELOW, LEFT, RIGHT

# The first wording of each list is the plain one.
PAIR_WORDINGS = ("{a} {relation} {b}{rest} on {ground}",
                 "there is {a} {relation} {b}{rest} on {ground}",
                 "{a} is {relation} {b}{rest} on {ground}",
                 "on {ground} there is {a} {relation} {b}{rest}")
LONE_WORDINGS = ("{a} at the {position} of {ground}",
                 "there is {a} at the {position} of {ground}",
                 "{a} is at the {position} of {ground}",
                 "on {ground} there is {a} at the {position}")
RELATION_WORDINGS = {LEFT: ("left of", "to the left of"), RIGHT: ("right of", "to the right of"),
                     ABOVE: ("above", "over"), BELOW: ("below", "under")}
_RELATION_OF = {"left of": LEFT, "right of": RIGHT, "above": ABOVE, "over": ABOVE, "below": BELOW, "under": BELOW}
_RELATION = re.compile(r"\b(left of|right of|above|over|below|under)\b")
_PLACE = re.compile(r"\b((?:top|middle|bottom) (?:left|center|right)|center)\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})(?:e?s)?\b")
_GROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)})\b")


class Placed(Protocol):
    """What is needed of an object to look for it; None: not said."""

    shape: str
    color: str | None
    size: str | None
    texture: str | None


@dataclass(frozen=True)
class Described:
    """An object as a text describes it; None where the text is silent."""

    shape: str
    color: str | None = None
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True)
class Parsed:
    """What a text says: objects as mentioned, the relation of the first to the second, the place of a lone one."""

    objects: tuple[Described, ...]
    relation: str | None = None
    position: str | None = None
    background: str | None = None


def article(words: str) -> str:
    """The words preceded by "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(item: Object) -> str:
    """All of an object's attributes: "a small striped red circle"; a plain texture is not mentioned."""
    texture = [] if item.texture == "plain" else [item.texture]
    return article(" ".join([item.size, *texture, item.color, item.shape]))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in one of the wordings."""
    wordings = LONE_WORDINGS if scene.relation is None else PAIR_WORDINGS
    wording = wordings[int(rng.integers(len(wordings)))]
    return _word(scene, wording, int(rng.integers(2)))


def plain(scene: Scene) -> str:
    """The canonical caption: "a small red circle above a large blue square on a grey ground"."""
    return _word(scene, (LONE_WORDINGS if scene.relation is None else PAIR_WORDINGS)[0], 0)


def wordings(scene: Scene) -> list[str]:
    """Every caption that `caption` can give, the plain one first."""
    if scene.relation is None:
        return [_word(scene, wording, 0) for wording in LONE_WORDINGS]
    return [_word(scene, wording, variant) for wording in PAIR_WORDINGS for variant in (0, 1)]


def _word(scene: Scene, wording: str, variant: int) -> str:
    first, *others = map(describe, scene.objects)
    ground = f"{article(scene.background)} ground"
    if scene.relation is None:
        return wording.format(a=first, position=scene.position(scene.objects[0]), ground=ground)
    rest = " with " + " and ".join(others[1:]) if others[1:] else ""
    relation = RELATION_WORDINGS[scene.relation][variant]
    return wording.format(a=first, relation=relation, b=others[0], rest=rest, ground=ground)


def parse(text: str) -> Parsed | None:
    """Read a caption in any wording; None if it names no shape. Tolerates capitals, punctuation and stray words.

    An object's attributes are the words since the last named object. The relation is sought between the first two.
    """
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    nouns = list(_SHAPE.finditer(text))
    if not nouns:
        return None
    starts = [0, *(noun.end() for noun in nouns)]
    objects = tuple(_described(text[start:noun.start()], noun[1]) for start, noun in zip(starts, nouns))
    relation = _RELATION.search(text, nouns[0].end(), nouns[1].start()) if len(nouns) > 1 else None
    place, ground = _PLACE.search(text), _GROUND.search(text)
    return Parsed(objects, _RELATION_OF[relation[1]] if relation else None,
                  place[1] if place and len(nouns) == 1 else None, ground[1] if ground else None)


def _described(words: str, shape: str) -> Described:
    said = words.split()

    def last(known: Iterable[str]) -> str | None:
        return next((word for word in reversed(said) if word in known), None)

    return Described(shape, last(COLORS), last(SIZES), last(TEXTURES) or "plain")


def matches(text: str, scene: Scene) -> dict[str, bool]:
    """Whether a caption is right about a scene; garbage is wrong in everything.

    Keys: "objects_right" (the same shapes, equally often), "attributes_right" (also their colours, sizes and textures),
    "relation_right" (the stated relation holds between the two objects it names; for a lone object, its position),
    "background_right", "all_right".
    """
    said = parse(text)
    if said is None:
        return verdict(False, False, False, False)
    relation = said.position == scene.position(scene.objects[0])
    if scene.relation is not None:
        pair = [find(item, scene.objects) for item in said.objects[:2]]
        relation = bool(said.relation and len(pair) == 2 and None not in pair
                        and holds(said.relation, pair[0].cell, pair[1].cell))
    return verdict(same_shapes(said.objects, scene.objects), same_objects(said.objects, scene.objects), relation,
                   said.background == scene.background)


def verdict(objects: bool, attributes: bool, relation: bool, background: bool) -> dict[str, bool]:
    """The scores of one picture or caption, with "all_right" if everything is right."""
    return {"objects_right": objects, "attributes_right": attributes, "relation_right": relation,
            "background_right": background, "all_right": attributes and relation and background}


def find(item: Placed, objects: Iterable[Object]) -> Object | None:
    """The scene's object of the same shape and colour."""
    return next((each for each in objects if (each.shape, each.color) == (item.shape, item.color)), None)


def same_shapes(said: Iterable[Placed], objects: Iterable[Placed]) -> bool:
    """Whether the shapes are the same, equally often."""
    return Counter(item.shape for item in said) == Counter(item.shape for item in objects)


def same_objects(said: Iterable[Placed], objects: Iterable[Placed]) -> bool:
    """Whether the objects are the same, each with the same shape, colour, size and texture."""
    return _bag(said) == _bag(objects)


def _bag(items: Iterable[Placed]) -> Counter:
    return Counter((item.shape, item.color, item.size, item.texture) for item in items)
