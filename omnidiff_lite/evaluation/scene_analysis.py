"""Reading a picture of the embedded world back into objects, by colour and by comparison with drawn shapes.

No learning: every model is read in the same way. Each cell of the lattice is looked at alone: its foreground is what
differs from the ground, its colour the one that most of the foreground's inner pixels are nearest to, its shape and
size those of the drawn template that overlaps it best once both are centred. What resembles no template is no object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image
from scipy import ndimage

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.captions import find, same_objects, same_shapes, verdict
from omnidiff_lite.world.scenes import (BACKGROUNDS, COLORS, RGB, SHAPES, SIZES, Scene, draw_shape, holds,
                                        mark_color, position, textures)

SMOOTHING = 0.8  # pixels, standard deviation of the blur against noise
PURITY = 0.5, 0.8  # least share of the object's colour, not the ground's, in its pixels: plain and textured worlds
FOREGROUND = 45  # least RGB distance from the ground
LEAST_AREA = 0.03  # of a cell; the smallest shape covers 0.08
RESEMBLANCE = 0.6  # least overlap (intersection over union) with the best template; blobs of noise mostly have less
MARKED = 0.1  # a plain object has no larger share of mark-coloured pixels
STRIPED = 0.6  # least share of the marks' variance that lies between rows: stripes are rows, dots are not


@dataclass(frozen=True)
class Found:
    """An object that a picture shows; `cell` is (row, column)."""

    shape: str
    color: str
    size: str
    cell: tuple[int, int]
    texture: str = "plain"


@dataclass(frozen=True)
class Reading:
    """Everything a picture shows."""

    background: str
    objects: tuple[Found, ...]


def analyse(image: Image.Image, config: WorldConfig) -> list[Found]:
    """The objects of a square picture of any size, row by row. Only `config.grid` and the cell's pixels matter."""
    return list(read(image, config).objects)


def read(image: Image.Image, config: WorldConfig) -> Reading:
    """The objects and the ground of a picture."""
    pixels = _pixels(image, config.grid)
    side = len(pixels) // config.grid
    smooth = ndimage.gaussian_filter(pixels, (SMOOTHING, SMOOTHING, 0))
    ground = _ground(smooth)
    known = textures(config)
    objects = []
    for row, column in product(range(config.grid), repeat=2):
        window = np.s_[row * side:(row + 1) * side, column * side:(column + 1) * side]
        found = _read_cell(smooth[window], np.array(BACKGROUNDS[ground], float), (row, column), len(known) > 1)
        objects += [found] if found else []
    return Reading(ground, tuple(objects))


def score(image: Image.Image, scene: Scene, config: WorldConfig) -> dict[str, bool]:
    """Whether a picture shows a scene: the keys of `captions.matches`, read off the picture.

    "objects_right": the same shapes, equally often; "attributes_right": also their colours, sizes and textures;
    "relation_right": the first two objects are there by shape and colour and stand as they should (a lone object
    stands at its position); "background_right"; "all_right". Other objects may stand in any cell.
    """
    seen = read(image, config)
    pair = [find(item, seen.objects) for item in scene.objects[:2]]
    if None in pair:
        relation = False
    elif scene.relation is None:
        relation = position(pair[0].cell, config.grid) == scene.position(scene.objects[0])
    else:
        relation = holds(scene.relation, pair[0].cell, pair[1].cell)
    return verdict(same_shapes(seen.objects, scene.objects), same_objects(seen.objects, scene.objects), relation,
                   seen.background == scene.background)


def repeats(image: Image.Image, scene: Scene, config: WorldConfig) -> bool:
    """Whether a picture shows any object, by shape and colour, more often than the scene has it."""
    shown, wanted = (Counter((item.shape, item.color) for item in objects)
                     for objects in (analyse(image, config), scene.objects))
    return any(shown[kind] > wanted[kind] > 0 for kind in shown)


def _pixels(image: Image.Image, grid: int) -> np.ndarray:
    """Float RGB [S, S, 3] in 0..255, S a multiple of the lattice."""
    side = grid * max(1, round(min(image.size) / grid))
    image = image.convert("RGB")
    return np.asarray(image if image.size == (side, side) else image.resize((side, side)), dtype=float)


def _ground(pixels: np.ndarray) -> str:
    """The background that most pixels are nearest to, among backgrounds and object colours."""
    names = [*BACKGROUNDS, *COLORS]
    palette = np.array([*BACKGROUNDS.values(), *COLORS.values()], float)
    step = max(1, len(pixels) // 64)  # a 64 x 64 grid of pixels is plenty for a majority
    some = pixels[::step, ::step].reshape(-1, 1, 3)
    votes = np.bincount(np.linalg.norm(some - palette, axis=2).argmin(axis=1), minlength=len(names))
    return names[int(np.argmax(votes[:len(BACKGROUNDS)]))]


def _read_cell(pixels: np.ndarray, ground: np.ndarray, cell: tuple[int, int], textured: bool) -> Found | None:
    side = len(pixels)
    mask = _largest(np.linalg.norm(pixels - ground, axis=2) > FOREGROUND)
    if mask.sum() < LEAST_AREA * side ** 2:
        return None
    inner = ndimage.binary_erosion(mask)
    if inner.sum() < 0.25 * mask.sum():
        inner = mask
    color, marks = _color(pixels[inner], ground, textured)
    shades = [COLORS[color], *[mark_color(COLORS[color])] * textured]
    coverage = _coverage(pixels, mask, ground, shades)
    if not coverage.any():  # all of it differs from the ground in a direction away from the object's colour
        return None
    shape, size, overlap = _shape(coverage, side)
    if overlap < RESEMBLANCE:
        return None
    return Found(shape, color, size, cell, _texture(marks, inner))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask."""
    labels, parts = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if parts else mask


def _color(inside: np.ndarray, ground: np.ndarray, textured: bool) -> tuple[str, np.ndarray]:
    """The colour's name, and which of the object's inner pixels [n, 3] have that colour's mark shade (bool [n]).

    Each pixel votes for the colour whose mixture with the ground it is nearest to, because blurred red on white
    looks pink.
    """
    shades = list(COLORS.values()) + [mark_color(rgb) for rgb in COLORS.values()] * textured
    away, way = inside[:, None] - ground, np.array(shades, float) - ground
    share = np.clip((away * way).sum(axis=2) / (way ** 2).sum(axis=1), PURITY[textured], 1)
    nearest = np.linalg.norm(away - share[..., None] * way, axis=2).argmin(axis=1)
    best = int(np.bincount(nearest % len(COLORS)).argmax())
    return list(COLORS)[best], nearest == best + len(COLORS)


def _texture(marks: np.ndarray, inner: np.ndarray) -> str:
    """The texture, from which of the inner pixels (bool [side, side]) are marks."""
    if marks.mean() < MARKED:
        return "plain"
    rows = np.nonzero(inner)[0]
    means = np.bincount(rows, marks) / np.maximum(np.bincount(rows), 1)
    return "striped" if means[rows].var() > STRIPED * marks.var() else "dotted"


def _coverage(pixels: np.ndarray, mask: np.ndarray, ground: np.ndarray, shades: list[RGB]) -> np.ndarray:
    """How much of each pixel the object covers, 0..1: its position between the ground's and the object's colour."""
    ways = np.array(shades, float) - ground
    share = np.clip(((pixels - ground) @ ways.T / (ways ** 2).sum(axis=1)).max(axis=2), 0, 1)
    return share * ndimage.binary_dilation(mask, np.ones((3, 3)))


def _shape(coverage: np.ndarray, side: int) -> tuple[str, str, float]:
    """Shape and size of the template that overlaps best, and the overlap (intersection over union) 0..1."""
    centred = _centre(coverage)
    kinds, drawn = _templates(side)
    overlaps = np.minimum(drawn, centred).sum(axis=(1, 2)) / np.maximum(drawn, centred).sum(axis=(1, 2))
    best = int(overlaps.argmax())
    return *kinds[best], float(overlaps[best])


def _centre(coverage: np.ndarray) -> np.ndarray:
    """The same, with its centre of mass in the middle."""
    middle = (len(coverage) - 1) / 2
    return ndimage.shift(coverage, [middle - at for at in ndimage.center_of_mass(coverage)], order=1)


@lru_cache(maxsize=8)
def _templates(side: int) -> tuple[list[tuple[str, str]], np.ndarray]:
    """(shape, size) names, and their coverage [n, side, side], blurred and centred like a picture's."""
    kinds = list(product(SHAPES, SIZES))
    drawn = []
    for shape, size in kinds:
        canvas = Image.new("RGB", (4 * side, 4 * side))
        draw_shape(canvas, shape, (2 * side, 2 * side), SIZES[size] * 4 * side, (255, 255, 255))
        coverage = np.asarray(canvas.reduce(4), dtype=float)[..., 0] / 255
        drawn.append(_centre(ndimage.gaussian_filter(coverage, SMOOTHING)))
    return kinds, np.stack(drawn)
