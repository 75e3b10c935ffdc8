"""Inpainting, measured: half of a test picture is covered, its caption is given, and the hidden object must come back.

The paper shows inpainting (figure 6) but gives no number. Here the covered half holds exactly one object, which the
caption places in one particular cell, and is painted over with the ground's colour before tokenization: no kept token
has seen what is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, product
from typing import Any, Protocol

import numpy as np
import pandas as pd
import PIL.Image

from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.alignment import reconstruct
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Answer, Settings
from omnidiff_lite.evaluation.scene_analysis import analyse
from omnidiff_lite.evaluation.statistics import proportion_interval
from omnidiff_lite.world.captions import plain
from omnidiff_lite.world.dataset import samples
from omnidiff_lite.world.scenes import BACKGROUNDS, Object, Scene, render
from omnidiff_lite.world.splits import stream

TABLE = "inpainting"
HALVES = {"left": (1, 0), "right": (1, 1), "top": (0, 0), "bottom": (0, 1)}  # axis of the cell, first or second half
DRAWS = 100  # scenes searched for one that has such a half


class Painter(Protocol):
    """`OmniDiffusion`, as far as inpainting needs it."""

    settings: Any
    tokenizers: Any

    def inpaint(self, image: PIL.Image.Image, mask: np.ndarray, prompt: str = "", decoding: Any = None, seed: int = 0
                ) -> Answer: ...

    def image_codes(self, images: Sequence[PIL.Image.Image], size: int) -> list[list[int]]: ...


@dataclass(frozen=True)
class Covered:
    """A picture with one half hidden; `mask` bool [H, W] is true there, `shown` is what the model gets."""

    scene: Scene
    caption: str
    half: str
    hidden: Object
    picture: PIL.Image.Image
    shown: PIL.Image.Image
    mask: np.ndarray

    @property
    def marked(self) -> PIL.Image.Image:
        """The picture with its hidden half in grey, for readers: in the ground's colour, as the model gets it, the half
        would look empty rather than hidden."""
        return PIL.Image.composite(PIL.Image.new("RGB", self.shown.size, "grey"), self.shown,
                                   PIL.Image.fromarray(self.mask))


def covered(n: int, seed: int, world: WorldConfig, size: int) -> list[Covered]:
    """`n` test scenes with a half that holds one whole, placed object and cuts none, `size` x `size` pixels.

    Raises ValueError if the world's scenes hardly ever have such a half.
    """
    cases = list(islice(_cases(DRAWS * n, seed, world, size), n))
    if len(cases) < n:
        raise ValueError(f"only {len(cases)} of {DRAWS * n} scenes have a half with one placed object: "
                         "lower world.max_objects or raise world.grid")
    return cases


def _cases(draws: int, seed: int, world: WorldConfig, size: int) -> Iterator[Covered]:
    page = 64  # sample i of a seed does not depend on how many are drawn
    for start in range(0, draws, page):
        for i, sample in enumerate(samples("t2i", "test", start + page, seed, world)[start:], start):
            scene = Scene.from_dict(sample.meta["scene"])
            options = {half: hidden for half in HALVES if (hidden := _lone(scene, half))
                       and _possible_cells(scene, half, hidden) == [hidden.cell]}
            if options:
                half = tuple(options)[int(stream("inpainting", seed, i).integers(len(options)))]
                yield _cover(scene, sample.meta["caption"], half, options[half], size)


def _lone(scene: Scene, half: str) -> Object | None:
    """The one object in a half of the picture; None where there are none or several, or the edge cuts one."""
    where = [_inside(item.cell, half, scene.grid) for item in scene.objects]
    return scene.objects[where.index(True)] if where.count(True) == 1 and None not in where else None


def _possible_cells(scene: Scene, half: str, hidden: Object) -> list[tuple[int, int]]:
    """Cells of the half where the object could equally stand: the caption would not change, and the two objects it
    relates share a row or a column, as they always do. No caption says where a third object stands."""
    cells = []
    for cell in product(range(scene.grid), repeat=2):
        moved = tuple(replace(item, cell=cell) if item == hidden else item for item in scene.objects)
        (row, column), (other_row, other_column) = moved[0].cell, moved[min(1, len(moved) - 1)].cell
        if (_inside(cell, half, scene.grid) and (row == other_row or column == other_column)
                and plain(replace(scene, objects=moved)) == plain(scene)):
            cells.append(cell)
    return cells


def _inside(cell: tuple[int, int], half: str, grid: int) -> bool | None:
    """Whether a cell lies in a half of the picture; None where the edge cuts it."""
    axis, second = HALVES[half]
    if 2 * cell[axis] + 1 == grid:
        return None
    return (2 * cell[axis] + 1 > grid) == bool(second)


def _cover(scene: Scene, caption: str, half: str, hidden: Object, size: int) -> Covered:
    axis, second = HALVES[half]
    mask = np.zeros((size, size), dtype=bool)
    np.moveaxis(mask, axis, 0)[slice(size // 2, None) if second else slice(size // 2)] = True
    picture = render(scene, size)
    pixels = np.array(picture)
    pixels[mask] = BACKGROUNDS[scene.background]
    return Covered(scene, caption, half, hidden, picture, PIL.Image.fromarray(pixels), mask)


# --- scores -----------------------------------------------------------------------------------------------------------


def restored(picture: PIL.Image.Image | None, case: Covered, world: WorldConfig) -> bool:
    """Whether the covered half shows the hidden object, by shape and colour, in its cell, and nothing else."""
    if picture is None:
        return False
    painted = [(item.shape, item.color, item.cell) for item in analyse(picture, world)
               if _inside(item.cell, case.half, case.scene.grid) is not False]  # None: a cell that the edge cuts
    return painted == [(case.hidden.shape, case.hidden.color, case.hidden.cell)]


def tokens_kept(model: Painter, case: Covered, answer: Answer) -> bool:
    """Whether every uncovered token is unchanged."""
    from omnidiff_lite.pipeline.system import token_mask

    size, factor = model.settings.generation_size, model.tokenizers.image.config.factor
    hidden = token_mask(case.mask, case.shown.size, size, factor).flatten().tolist()
    before, = model.image_codes([case.shown], size)
    after = model.tokenizers.vocabulary.codes_of_image(answer.ids)
    return len(after) == len(before) and all(h or b == a for h, b, a in zip(hidden, before, after))


def evaluate_inpainting(model: Painter, cases: Sequence[Covered], settings: Settings = Settings(), *,
                        world: WorldConfig) -> tuple[list[Record], pd.DataFrame]:
    """Columns inpainting_restored (the object is back, and no kept token changed) and inpainting_kept, in percent.

    Per item: caption, half, hidden, restored, kept, and the picture (or None). Item i is decoded with seed + i.
    """
    answers = [model.inpaint(case.shown, case.mask, prompt=case.caption, decoding=settings.decoding, seed=seed)
               for case, seed in zip(cases, count(settings.seed))]
    kept = [answer.image is not None and tokens_kept(model, case, answer) for case, answer in zip(cases, answers)]
    back = [restored(answer.image, case, world) for case, answer in zip(cases, answers)]
    items = pd.DataFrame({"caption": [c.caption for c in cases], "half": [c.half for c in cases],
                          "hidden": [c.hidden.name for c in cases], "restored": np.logical_and(back, kept),
                          "kept": kept, "picture": [answer.image for answer in answers]})
    return measured(TABLE, settings.row, settings.seed, {
        f"inpainting_{name}": proportion_interval(items[name], **settings.resampling).scaled(100)
        for name in ("restored", "kept")}), items


def evaluate_uncovered(model: Painter, cases: Sequence[Covered], settings: Settings, *, world: WorldConfig
                       ) -> list[Record]:
    """Ceiling of column inpainting_restored: the whole pictures, through image tokens and back."""
    whole = reconstruct(model.tokenizers.image, [case.picture for case in cases])
    right = [restored(picture, case, world) for picture, case in zip(whole, cases)]
    score = proportion_interval(right, **settings.resampling).scaled(100)
    return measured(TABLE, settings.row, settings.seed, {"inpainting_restored": score})
