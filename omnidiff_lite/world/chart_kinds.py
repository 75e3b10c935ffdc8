"""What bar charts, route maps, web pages and signs hold, and random samples of each; `charts` draws them and asks
questions."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Union

import numpy as np

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.font import GLYPHS
from omnidiff_lite.world.questions import choose, number_word
from omnidiff_lite.world.scenes import BACKGROUNDS, COLORS, SHAPES
from omnidiff_lite.world.splits import item_split, training_part

WORDS = ("open", "shop", "park", "taxi", "exit", "stop", "cafe", "bank", "sale", "food", "bus", "zoo")
NUMBERS = tuple(range(1, 21))
HEIGHTS = 5  # units of a chart's axis
NODES = 3  # a map's crossings along one side
CELLS = tuple((row, column) for row in range(NODES) for column in range(NODES))

Cell = tuple[int, int]


class _Json:
    """What all charts share: a kind, and conversion to and from plain values."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def to_json(self) -> str:
        """One line, the same for equal charts."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True)

    @property
    def split(self) -> str:
        """"train", "validation" or "test": no picture belongs to two of these."""
        return item_split(self.to_json())


@dataclass(frozen=True)
class BarChart(_Json):
    """Three or four bars, each with its own colour and its own height, 1 to 5 grid lines."""

    kind = "chart"
    colors: tuple[str, ...]
    heights: tuple[int, ...]
    background: str


@dataclass(frozen=True)
class Map(_Json):
    """Landmarks (shape, colour, cell) on crossings of a road grid, and a route from the first to the second."""

    kind = "map"
    landmarks: tuple[tuple[str, str, Cell], ...]
    route: tuple[Cell, ...]
    background: str


@dataclass(frozen=True)
class Page(_Json):
    """A web page: a word in its header, a number, a button."""

    kind = "web"
    word: str
    number: int
    header: str
    button: str


@dataclass(frozen=True)
class Sign(_Json):
    """A board with one word or one number (as digits)."""

    kind = "sign"
    text: str
    board: str
    background: str

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()

    @property
    def spoken(self) -> str:
        """What the sign says, in words."""
        return number_word(int(self.text)) if self.is_number else self.text


Chart = Union[BarChart, Map, Page, Sign]
CHARTS: dict[str, type] = {each.kind: each for each in (BarChart, Map, Page, Sign)}


def chart_from_dict(tree: dict[str, Any]) -> Chart:
    """The inverse of `to_dict`, also after a trip through JSON. Raises ValueError naming what is wrong."""
    if not isinstance(tree, dict):
        raise ValueError(f"not a chart: a {type(tree).__name__}; write it with to_dict")
    fields = dict(tree)
    kind = fields.pop("kind", None)
    if kind not in tuple(CHARTS):
        raise ValueError(f"not a chart: kind {kind!r}; choose one of {', '.join(CHARTS)}")
    try:
        chart = CHARTS[kind](**{name: _tuples(value) for name, value in fields.items()})
        _check(chart)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a {kind}: {error}; write it with to_dict") from None
    return chart


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _check(chart: Chart) -> None:
    """Raises ValueError for what cannot be drawn, TypeError for a value of another type."""
    for value, known, what in _held(chart):
        if value not in tuple(known):
            raise ValueError(f"no {what} {value!r}; choose one of {', '.join(map(str, known))}")


def _held(chart: Chart) -> Iterator[tuple[Any, Collection[Any], str]]:
    """(value, drawable values, what it is) for everything a chart holds."""
    if not isinstance(chart, Page):
        yield chart.background, BACKGROUNDS, "background"
    if isinstance(chart, BarChart):
        yield len(chart.colors), (3, 4), "number of bars"
        yield len(chart.heights), (len(chart.colors),), "number of heights"
        yield from ((color, COLORS, "color") for color in chart.colors)
        yield from ((height, range(1, HEIGHTS + 1), "height") for height in chart.heights)
    elif isinstance(chart, Map):
        for shape, color, cell in chart.landmarks:
            yield from ((shape, SHAPES, "shape"), (color, COLORS, "color"), (cell, CELLS, "crossing"))
        yield from ((cell, CELLS, "crossing") for cell in chart.route)
    elif isinstance(chart, Page):
        yield from ((color, COLORS, "color") for color in (chart.header, chart.button))
        yield from ((letter, GLYPHS, "letter") for letter in str.upper(chart.word) + str(chart.number))
    else:
        yield chart.board, COLORS, "color"
        yield from ((letter, GLYPHS, "letter") for letter in str.upper(chart.text))


# --- sampling ---------------------------------------------------------------------------------------------------------


def sample_chart(rng: np.random.Generator, config: WorldConfig, kind: str | None = None, split: str = "train") -> Chart:
    """A random chart of a split, of kind "chart", "map", "web" or "sign" (default: any of them).

    `config` is currently unused: every kind is legible at the smallest picture size. Raises ValueError for an unknown
    kind or split.
    """
    part = training_part(split)
    kind = choose(rng, tuple(CHARTS)) if kind is None else kind
    if kind not in CHARTS:
        raise ValueError(f"no chart of kind {kind!r}: choose one of {', '.join(CHARTS)}")
    while True:
        chart = _SAMPLE[kind](rng)
        if chart.split == part:
            return chart


def _some(rng: np.random.Generator, options: Any, count: int) -> list[Any]:
    options = list(options)
    return [options[i] for i in rng.permutation(len(options))[:count]]


def _sample_bars(rng: np.random.Generator) -> BarChart:
    count = int(rng.integers(3, 5))
    return BarChart(tuple(_some(rng, COLORS, count)), tuple(_some(rng, range(1, HEIGHTS + 1), count)),
                    choose(rng, tuple(BACKGROUNDS)))


def _sample_map(rng: np.random.Generator) -> Map:
    cells = _some(rng, [(row, column) for row in range(NODES) for column in range(NODES)], 4)
    route = _route(cells[0], cells[1], rows_first=bool(rng.integers(2)))
    if set(route) & set(cells[2:]):  # the route would pass a third landmark
        return _sample_map(rng)
    kinds = zip(_some(rng, SHAPES, 4), _some(rng, [color for color in COLORS if color != "red"], 4), cells)
    return Map(tuple(kinds), route, choose(rng, tuple(BACKGROUNDS)))


def _route(start: Cell, end: Cell, rows_first: bool) -> tuple[Cell, ...]:
    """All cells from start to end: along one axis, then along the other."""
    def walk(a: int, b: int) -> range:
        return range(a, b + 1) if a <= b else range(a, b - 1, -1)

    rows, columns = walk(start[0], end[0]), walk(start[1], end[1])
    if rows_first:
        cells = [(row, start[1]) for row in rows] + [(end[0], column) for column in columns]
    else:
        cells = [(start[0], column) for column in columns] + [(row, end[1]) for row in rows]
    return tuple(dict.fromkeys(cells))


def _sample_page(rng: np.random.Generator) -> Page:
    header, button = _some(rng, COLORS, 2)
    return Page(choose(rng, WORDS), choose(rng, NUMBERS), header, button)


def _sample_sign(rng: np.random.Generator) -> Sign:
    text = choose(rng, WORDS) if rng.random() < 0.5 else str(choose(rng, NUMBERS))
    return Sign(text, choose(rng, tuple(COLORS)), choose(rng, tuple(BACKGROUNDS)))


_SAMPLE = {"chart": _sample_bars, "map": _sample_map, "web": _sample_page, "sign": _sample_sign}
