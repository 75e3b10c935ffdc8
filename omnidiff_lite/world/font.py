"""A 5 x 7 pixel font: letters and digits that look the same on every machine and stay legible at 64 pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

WIDTH, HEIGHT, ADVANCE = 5, 7, 6  # pixels of a glyph, and from one glyph to the next

# One row of seven 5-pixel lines per letter; "#" is ink.
GLYPHS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#", "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".#### #.... #.... #.... #.... #.... .####", "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####", "F": "##### #.... #.... ####. #.... #.... #....",
    "G": ".#### #.... #.... #..## #...# #...# .####", "H": "#...# #...# #...# ##### #...# #...# #...#",
    "I": ".###. ..#.. ..#.. ..#.. ..#.. ..#.. .###.", "J": "..### ...#. ...#. ...#. ...#. #..#. .##..",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#", "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #.#.# #...# #...# #...#", "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.", "P": "####. #...# #...# ####. #.... #.... #....",
    "Q": ".###. #...# #...# #...# #.#.# #..#. .##.#", "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.", "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.", "V": "#...# #...# #...# #...# .#.#. .#.#. ..#..",
    "W": "#...# #...# #...# #.#.# #.#.# ##.## #...#", "X": "#...# .#.#. .#.#. ..#.. .#.#. .#.#. #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..", "Z": "##### ....# ...#. ..#.. .#... #.... #####",
    "0": ".###. #...# #..## #.#.# ##..# #...# .###.", "1": "..#.. .##.. #.#.. ..#.. ..#.. ..#.. #####",
    "2": ".###. #...# ....# ..##. .#... #.... #####", "3": "####. ....# ....# .###. ....# ....# ####.",
    "4": "...#. ..##. .#.#. #..#. ##### ...#. ...#.", "5": "##### #.... ####. ....# ....# #...# .###.",
    "6": "..##. .#... #.... ####. #...# #...# .###.", "7": "##### ....# ...#. ...#. ..#.. ..#.. ..#..",
    "8": ".###. #...# #...# .###. #...# #...# .###.", "9": ".###. #...# #...# .#### ....# ...#. .##..",
}


@lru_cache(maxsize=None)
def _bitmap(text: str) -> Image.Image:
    ink = np.zeros((HEIGHT, ADVANCE * len(text) - 1), np.uint8)
    for index, character in enumerate(text.upper()):
        rows = GLYPHS[character].split()
        ink[:, ADVANCE * index:ADVANCE * index + WIDTH] = [[255 * (dot == "#") for dot in row] for row in rows]
    return Image.fromarray(ink)


def draw_text(canvas: Image.Image, text: str, box: tuple[float, float, float, float],
              color: tuple[int, int, int]) -> None:
    """Write letters and digits, upper case, centred in a box (left, top, right, bottom; pixels) and as large as fit.

    A dot of the font is a whole number of canvas pixels. Raises KeyError for a character without a glyph.
    """
    bitmap = _bitmap(text)
    left, top, right, bottom = box
    dot = max(1, int(min((right - left) / bitmap.width, (bottom - top) / bitmap.height)))
    mask = bitmap.resize((bitmap.width * dot, bitmap.height * dot), Image.Resampling.NEAREST)
    corner = round((left + right - mask.width) / 2), round((top + bottom - mask.height) / 2)
    canvas.paste(color, corner, mask)
