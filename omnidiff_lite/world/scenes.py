"""Pictures of the embedded world: a few coloured shapes on the cells of a lattice, and how they are drawn.

Shapes have unequal frequencies and favourite partners, because POPE's popular and adversarial questions need a world in
which some objects are more common than others and some occur together (Li et al. 2023, section 4).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.splits import (ABOVE, ALONE, BELOW, INVERSE, LEFT, RELATIONS, RIGHT, choose,
                                        combinations_split, digest, training_part)

RGB = tuple[int, int, int]

SHAPES = {"circle": 0.20, "square": 0.18, "triangle": 0.14, "star": 0.12,  # name -> frequency
          "diamond": 0.10, "cross": 0.10, "heart": 0.08, "ring": 0.08}
PARTNERS = {"circle": "star", "star": "circle", "square": "heart", "heart": "square",
            "triangle": "ring", "ring": "triangle", "diamond": "cross", "cross": "diamond"}
PARTNERED = 0.35  # chance that a further object is the first one's partner
COLORS: dict[str, RGB] = {"red": (222, 40, 40), "orange": (246, 140, 20), "yellow": (240, 212, 20),
                          "green": (30, 155, 70), "blue": (40, 95, 220), "purple": (130, 50, 180),
                          "pink": (240, 100, 175), "black": (40, 40, 45)}
BACKGROUNDS: dict[str, RGB] = {"white": (252, 252, 252), "grey": (206, 208, 212), "cream": (250, 236, 204),
                               "mint": (204, 240, 222), "lilac": (224, 212, 246)}
SIZES = {"small": 0.28, "large": 0.44}  # half an object's height, in cells
TEXTURES = ("plain", "striped", "dotted")
TEXTURE_PIXELS = 48  # a cell with fewer pixels cannot show a texture
MARGIN = 0.02  # of a cell, kept free on every side of an object
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Object:
    """One coloured shape; `cell` is (row, column) from the top left."""

    shape: str
    color: str
    size: str
    texture: str
    cell: tuple[int, int]

    @property
    def name(self) -> str:
        """What distinguishes it from the others in its scene: "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture's content. Two objects of a scene differ in shape or colour; the first two share a row or a column."""

    background: str
    objects: tuple[Object, ...]
    grid: int
    jitter: float  # largest displacement from a cell's centre, in cells

    @property
    def relation(self) -> str | None:
        """The relation of the first object to the second; None if there is only one."""
        if len(self.objects) < 2:
            return None
        first, second = self.objects[:2]
        return next(name for name in RELATIONS if holds(name, first.cell, second.cell))

    @property
    def combinations(self) -> tuple[tuple[str, str, str], ...]:
        """(shape, colour, relation) of each of the first two objects; a lone object's relation is "alone"."""
        relation = self.relation
        if relation is None:
            only = self.objects[0]
            return ((only.shape, only.color, ALONE),)
        first, second = self.objects[:2]
        return (first.shape, first.color, relation), (second.shape, second.color, INVERSE[relation])

    @property
    def split(self) -> str:
        """"test", "validation" or "train", by the held-out combinations in it."""
        return combinations_split(self.combinations)

    def position(self, item: Object) -> str:
        """Where an object stands: "top left" ... "bottom right"; odd lattices also have a middle and a center."""
        return position(item.cell, self.grid)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(tree: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`, also after a trip through JSON. Raises ValueError naming what is wrong."""
        try:
            objects = tuple(Object(**{**each, "cell": tuple(each["cell"])}) for each in tree["objects"])
            scene = Scene(tree["background"], objects, int(tree["grid"]), float(tree["jitter"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a scene: {type(error).__name__} {error}; write it with Scene.to_dict") from None
        _check(scene)
        return scene

    def to_json(self) -> str:
        """One line, the same for equal scenes: the key of caches, refs and jitter."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)


def _check(scene: Scene) -> None:
    named = [(scene.background, BACKGROUNDS, "background")]
    for item in scene.objects:
        named += [(item.shape, SHAPES, "shape"), (item.color, COLORS, "color"), (item.size, SIZES, "size"),
                  (item.texture, TEXTURES, "texture")]
        if len(item.cell) != 2 or not all(index in range(scene.grid) for index in item.cell):
            raise ValueError(f"not a scene: cell {item.cell} lies outside of the {scene.grid} x {scene.grid} lattice")
    for value, known, what in named:
        if value not in tuple(known):
            raise ValueError(f"not a scene: no {what} {value!r}; choose one of {', '.join(known)}")
    if not scene.objects:
        raise ValueError("not a scene: it has no object; give it at least one")
    if len({item.cell for item in scene.objects}) < len(scene.objects):
        raise ValueError("not a scene: two of its objects are in one cell; give each a cell of its own")


def holds(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether cell `first` (row, column) stands in `relation` to cell `second`; a diagonal pair has two relations."""
    (row, column), (other_row, other_column) = first, second
    return {LEFT: column < other_column, RIGHT: column > other_column, ABOVE: row < other_row,
            BELOW: row > other_row}[relation]


def position(cell: tuple[int, int], grid: int) -> str:
    """The name of a cell's position in the picture."""
    row, column = (0 if 2 * i + 1 < grid else 2 if 2 * i + 1 > grid else 1 for i in cell)
    if (row, column) == (1, 1):
        return "center"
    return f"{('top', 'middle', 'bottom')[row]} {('left', 'center', 'right')[column]}"


def textures(config: WorldConfig) -> tuple[str, ...]:
    """The textures that this world's pictures are large enough to show."""
    return TEXTURES if config.image_size / config.grid >= TEXTURE_PIXELS else TEXTURES[:1]


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample_scene(rng: np.random.Generator, config: WorldConfig, split: str, objects: int | None = None) -> Scene:
    """A random scene of a split, with `objects` objects (default: 1 to `config.max_objects`, evenly).

    Train and judge scenes hold no held-out combination (`splits.combination_split`), test scenes at least one of the
    test's. Raises ValueError for an unknown split or more objects than the lattice has room for.
    """
    part = training_part(split)
    room = config.grid ** 2
    count = int(rng.integers(1, config.max_objects + 1)) if objects is None else objects
    if not 1 <= count <= room:
        raise ValueError(f"{count} objects do not fit a {config.grid} x {config.grid} lattice: give 1 to {room}")
    while True:
        scene = _propose(rng, config, count)
        if scene.split == part:
            return scene


def _propose(rng: np.random.Generator, config: WorldConfig, count: int) -> Scene:
    kinds = _sample_kinds(rng, count)
    objects = tuple(Object(shape, color, choose(rng, tuple(SIZES)), choose(rng, textures(config)), cell)
                    for (shape, color), cell in zip(kinds, _sample_cells(rng, config.grid, count)))
    return Scene(choose(rng, tuple(BACKGROUNDS)), objects, config.grid, config.jitter)


def _sample_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Distinct (shape, colour) pairs."""
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        partnered = kinds and rng.random() < PARTNERED
        shape = PARTNERS[kinds[0][0]] if partnered else str(rng.choice(tuple(SHAPES), p=tuple(SHAPES.values())))
        kind = shape, choose(rng, tuple(COLORS))
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _sample_cells(rng: np.random.Generator, grid: int, count: int) -> list[tuple[int, int]]:
    """Distinct cells, the first two in one row or one column (all four relations equally likely)."""
    if count == 1:
        return [(int(rng.integers(grid)), int(rng.integers(grid)))]
    line = int(rng.integers(grid))
    start, end = (int(i) for i in rng.permutation(grid)[:2])
    pair = [(line, start), (line, end)] if rng.random() < 0.5 else [(start, line), (end, line)]
    rest = [(row, column) for row in range(grid) for column in range(grid) if (row, column) not in pair]
    return pair + [rest[i] for i in rng.permutation(len(rest))[:count - 2]]


# --- drawing ----------------------------------------------------------------------------------------------------------


def render(scene: Scene, size: int) -> Image.Image:
    """The picture, RGB, `size` x `size` pixels; equal scenes give equal pixels."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    cell = side / scene.grid
    for index, item in enumerate(scene.objects):
        row, column = (at + 0.5 + by for at, by in zip(item.cell, _displacement(scene, index)))
        draw_shape(canvas, item.shape, (column * cell, row * cell), SIZES[item.size] * cell, COLORS[item.color],
                   item.texture)
    return canvas.reduce(SUPERSAMPLING)


def _displacement(scene: Scene, index: int) -> tuple[float, float]:
    """(down, right) in cells, from the scene's own content; no object leaves its cell."""
    reach = min(scene.jitter, 0.5 - MARGIN - SIZES[scene.objects[index].size])
    down, right = (digest(scene.to_json(), index, axis) / 2 ** 63 - 1 for axis in "yx")
    return down * reach, right * reach


def draw_shape(canvas: Image.Image, shape: str, center: tuple[float, float], half: float, color: RGB,
               texture: str = "plain") -> None:
    """Draw a shape of half-height `half` pixels around `center` (x, y) onto an RGB canvas, in place."""
    x, y = center
    box = tuple(int(round(v)) for v in (x - 1.1 * half, y - 1.1 * half, x + 1.1 * half, y + 1.1 * half))
    mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    pen = ImageDraw.Draw(mask)
    for outline, ink in zip(_outlines(shape), (255, 0)):  # the second outline, where there is one, is a hole
        pen.polygon([(x - box[0] + u * half, y - box[1] + v * half) for u, v in outline], fill=ink)
    canvas.paste(_fill(mask.size, color, texture, half), box[:2], mask)


def mark_color(color: RGB) -> RGB:
    """Stripes and dots: a darker shade; grey on black."""
    return tuple(int(v * 0.5) for v in color) if max(color) > 100 else (150, 150, 155)  # type: ignore[return-value]


def _fill(size: tuple[int, int], color: RGB, texture: str, half: float) -> Image.Image:
    fill = Image.new("RGB", size, color)
    if texture == "plain":
        return fill
    pen, mark, step = ImageDraw.Draw(fill), mark_color(color), 0.55 * half
    width, height = size
    for row in range(math.ceil(height / step)):
        y = row * step
        if texture == "striped":
            pen.rectangle((0, y, width, y + 0.5 * step), fill=mark)
            continue
        for column in range(math.ceil(width / step) + 1):
            x, r = (column + 0.5 * (row % 2)) * step, 0.33 * step
            pen.ellipse((x - r, y + step / 2 - r, x + r, y + step / 2 + r), fill=mark)
    return fill


@lru_cache(maxsize=None)
def _outlines(shape: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Polygons (x, y) in -1..1, y down: the outline, then a hole if the shape has one."""
    turn = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    round_ = np.stack([np.sin(turn), -np.cos(turn)], axis=1)
    tenth = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2, 0.45, 1.1)
    star = np.stack([np.sin(tenth) * radius, 0.08 - np.cos(tenth) * radius], axis=1)
    lobes = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    heart = np.stack([np.sin(turn) ** 3, 0.12 - lobes / 15.5], axis=1)
    a = 0.36
    cross = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    outlines = {
        "circle": [round_], "ring": [round_, round_ * 0.52], "star": [star], "heart": [heart], "cross": [cross],
        "square": [[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]],
        "triangle": [[(0, -0.95), (1, 0.85), (-1, 0.85)]],
        "diamond": [[(0, -1), (0.85, 0), (0, 1), (-0.85, 0)]],
    }[shape]
    return tuple(tuple((float(u), float(v)) for u, v in outline) for outline in outlines)
