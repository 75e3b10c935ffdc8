"""Bar charts, route maps, web pages and signs: how they are drawn, and questions about them.

The first three are the categories of SEED-Bench-2-Plus (chart, map, web), asked with four choices; signs are for the
OCR subtask of MME. All are drawn to be legible at 64 pixels: one word or number, large.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from omnidiff_lite.world.chart_kinds import (CHARTS, HEIGHTS, NODES, NUMBERS, WORDS, BarChart, Cell, Chart, Map, Page,
                                             Sign, chart_from_dict, sample_chart)
from omnidiff_lite.world.font import draw_text
from omnidiff_lite.world.questions import NO, YES, Question, choose, number_word, with_choices
from omnidiff_lite.world.scenes import BACKGROUNDS, COLORS, RGB, SHAPES, SUPERSAMPLING, draw_shape, position

__all__ = ["CHARTS", "BarChart", "Chart", "Map", "Page", "Sign", "ask_sign", "chart_from_dict", "chart_question",
           "does_say", "readings", "render_chart", "sample_chart"]

INK: RGB = (40, 40, 45)
PAPER: RGB = (252, 252, 252)
LINE: RGB = (190, 192, 198)
ROUTE = COLORS["red"]


def render_chart(chart: Chart, size: int) -> Image.Image:
    """The picture, RGB, `size` x `size` pixels."""
    side = size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[chart.background] if hasattr(chart, "background") else PAPER)
    _DRAW[chart.kind](canvas, ImageDraw.Draw(canvas), chart, side)
    return canvas.reduce(SUPERSAMPLING)


def _draw_bars(canvas: Image.Image, pen: ImageDraw.ImageDraw, chart: BarChart, side: int) -> None:
    left, base, unit, thin = 0.08 * side, 0.93 * side, 0.17 * side, max(1, round(0.012 * side))
    for level in range(1, HEIGHTS + 1):
        pen.line((left, base - level * unit, 0.96 * side, base - level * unit), fill=LINE, width=thin)
    slot = 0.88 * side / len(chart.colors)
    for index, (color, height) in enumerate(zip(chart.colors, chart.heights)):
        x = left + (index + 0.18) * slot
        pen.rectangle((x, base - height * unit, x + 0.64 * slot, base), fill=COLORS[color])
    pen.line((left, 0.04 * side, left, base), fill=INK, width=2 * thin)
    pen.line((left, base, 0.96 * side, base), fill=INK, width=2 * thin)


def _draw_map(canvas: Image.Image, pen: ImageDraw.ImageDraw, chart: Map, side: int) -> None:
    def at(cell: Cell) -> tuple[float, float]:
        row, column = cell
        return (column + 0.5) * side / NODES, (row + 0.5) * side / NODES

    low, high = at((0, 0))[0], at((NODES - 1, NODES - 1))[0]
    for index in range(NODES):
        middle = at((index, index))[0]
        pen.line((low, middle, high, middle), fill=LINE, width=side // 24)
        pen.line((middle, low, middle, high), fill=LINE, width=side // 24)
    pen.line([at(cell) for cell in chart.route], fill=ROUTE, width=side // 16, joint="curve")
    for shape, color, cell in chart.landmarks:
        draw_shape(canvas, "circle", at(cell), 0.09 * side, BACKGROUNDS[chart.background])  # no road inside a ring
        draw_shape(canvas, shape, at(cell), 0.125 * side, COLORS[color])


def _draw_page(canvas: Image.Image, pen: ImageDraw.ImageDraw, page: Page, side: int) -> None:
    pen.rectangle((0, 0, side, 0.3 * side), fill=COLORS[page.header])
    draw_text(canvas, page.word, (0.06 * side, 0.05 * side, 0.94 * side, 0.25 * side), _ink_on(COLORS[page.header]))
    draw_text(canvas, str(page.number), (0.1 * side, 0.36 * side, 0.9 * side, 0.68 * side), INK)
    pen.rounded_rectangle((0.2 * side, 0.75 * side, 0.8 * side, 0.93 * side), 0.06 * side, fill=COLORS[page.button])


def _draw_sign(canvas: Image.Image, pen: ImageDraw.ImageDraw, sign: Sign, side: int) -> None:
    pen.rectangle((0.46 * side, 0.6 * side, 0.54 * side, side), fill=INK)
    pen.rounded_rectangle((0.04 * side, 0.16 * side, 0.96 * side, 0.72 * side), 0.06 * side, fill=COLORS[sign.board])
    draw_text(canvas, sign.text, (0.09 * side, 0.21 * side, 0.91 * side, 0.67 * side), _ink_on(COLORS[sign.board]))


def _ink_on(color: RGB) -> RGB:
    return INK if np.dot(color, (0.3, 0.59, 0.11)) > 140 else PAPER


_DRAW = {"chart": _draw_bars, "map": _draw_map, "web": _draw_page, "sign": _draw_sign}


# --- questions --------------------------------------------------------------------------------------------------------


def chart_question(chart: Chart, rng: np.random.Generator) -> Question:
    """A question with four choices; `kind` is the chart's: "chart", "map", "web" (of SEED-Bench-2-Plus), or "ocr"."""
    return _ASK[chart.kind](chart, rng)


def _ask_bars(chart: BarChart, rng: np.random.Generator) -> Question:
    form, words = int(rng.integers(4)), [number_word(n) for n in range(1, 8)]
    index = int(rng.integers(len(chart.colors)))
    color, height = chart.colors[index], chart.heights[index]
    if form == 0:
        return with_choices(Question(f"how high is the {color} bar?", number_word(height), "chart"), words[:5], rng)
    if form == 1:
        bars = number_word(len(chart.colors))
        return with_choices(Question("how many bars are there?", bars, "chart"), words[1:6], rng)
    if form == 2:
        text, answer = choose(rng, (("which bar is the highest?", max), ("which bar is the lowest?", min)))
        color = chart.colors[chart.heights.index(answer(chart.heights))]
    else:
        text = f"which bar is {number_word(height)} high?"
    others = [other for other in COLORS if other not in chart.colors]
    wrong = [other for other in chart.colors if other != color] + others[:4 - len(chart.colors)]
    return with_choices(Question(text, color, "chart"), wrong, rng)


def _ask_map(chart: Map, rng: np.random.Generator) -> Question:
    start, end = (shape for shape, *_ in chart.landmarks[:2])
    absent = [shape for shape in SHAPES if shape not in {landmark[0] for landmark in chart.landmarks}]
    shapes = [shape for shape, *_ in chart.landmarks]
    form = int(rng.integers(3))
    if form == 0:
        start, end = choose(rng, ((start, end), (end, start)))
        text, answer = f"the route starts at the {start}. where does it end?", end
        shapes = [shape for shape in shapes if shape != start] + absent[:1]
    elif form == 1:
        answer, _, cell = choose(rng, chart.landmarks)
        text = f"what is at the {position(cell, NODES)} of the map?"
    else:
        answer, color, _ = choose(rng, chart.landmarks)
        text = f"which place on the map is {color}?"
    return with_choices(Question(text, answer, "map"), shapes, rng)


def _ask_page(page: Page, rng: np.random.Generator) -> Question:
    text, answer, wrong = choose(rng, (
        ("which word is at the top of the page?", page.word, WORDS),
        ("which number is on the page?", number_word(page.number), [number_word(n) for n in NUMBERS]),
        ("what color is the button?", page.button, [page.header, *COLORS])))
    return with_choices(Question(text, answer, "web"), wrong, rng)


def _ask_sign_choices(sign: Sign, rng: np.random.Generator) -> Question:
    return with_choices(Question("what does the sign say?", sign.spoken, "ocr"), readings(sign), rng)


_ASK = {"chart": _ask_bars, "map": _ask_map, "web": _ask_page, "sign": _ask_sign_choices}


def ask_sign(sign: Sign, rng: np.random.Generator, yes_no: bool | None = None) -> Question:
    """An OCR question without choices: open ("what does the sign say?"), or yes/no (default: either), in words."""
    if rng.random() < 0.5 if yes_no is None else yes_no:
        answer = choose(rng, (YES, NO))
        said = sign.spoken if answer == YES else choose(rng, [word for word in readings(sign) if word != sign.spoken])
        return Question(does_say(sign, said), answer, "ocr", sentence=f"{answer}, the {_what(sign)} is {sign.spoken}")
    wording = choose(rng, ("what does the sign say?", "which {} is on the sign?", "read the {} on the sign."))
    return Question(wording.format(_what(sign)), sign.spoken, "ocr")


def does_say(sign: Sign, words: str) -> str:
    """"is the word on the sign taxi?", as MME's OCR subtask asks."""
    return f"is the {_what(sign)} on the sign {words}?"


def _what(sign: Sign) -> str:
    return "number" if sign.is_number else "word"


def readings(sign: Sign) -> list[str]:
    """Everything a sign of this kind may say."""
    return [number_word(n) for n in NUMBERS] if sign.is_number else list(WORDS)
