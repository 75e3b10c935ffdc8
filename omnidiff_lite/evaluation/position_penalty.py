"""The ICML version's ablation: text-to-image without and with the position penalty, in both of its forms.

arXiv v1 states a fixed factor 0.5 on the last L - 100 positions; the released code has a ramp from 1 to 0.5 by rank
among the remaining masks, and so, by the only account of the ICML text, does its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.alignment import picture_items, score_pictures
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.paired import MINUS, differences
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Model, Settings, ask

TABLE = "ablation_position_penalty"
WITHOUT, FIXED, RAMP = "without", "with, fixed factor (v1)", "with, ramp (released)"
FREE, OF = 100, 256  # tokens spared, out of the paper's picture


def penalties(tokens: int) -> dict[str, dict[str, Any]]:
    """The three forms for a picture of `tokens` tokens; the same share of them is spared."""
    forms = {WITHOUT: {"position_penalty": 1.0},
             FIXED: {"position_penalty": 0.5, "position_penalty_mode": "fixed"},
             RAMP: {"position_penalty": 2.0, "position_penalty_mode": "ramp"}}
    return {name: {**form, "position_free": round(FREE / OF * tokens)} for name, form in forms.items()}


def evaluate_penalties(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings = Settings(), *,
                       tokens: int, world: WorldConfig | None = None) -> tuple[list[Record], pd.DataFrame]:
    """One row per form, such as "diffusion: without", with the columns of `score_pictures`; and what each form changes,
    paired by prompt. Per item: form, and the columns of `score_pictures`."""
    records, tables = [], {}
    for name, form in penalties(tokens).items():
        here = replace(settings, row=f"{settings.row}: {name}", decoding={**(settings.decoding or {}), **form})
        pictures = [answer.image for answer in ask(model, samples, here, to="image", task="t2i")]
        scores, items = score_pictures(judges, pictures, samples, here, world=world)
        tables[name] = items.assign(form=name)
        records += measured(TABLE, here.row, settings.seed, scores)
    for name in (FIXED, RAMP):
        here = replace(settings, row=f"{settings.row}: {name}{MINUS}{WITHOUT}")
        records += differences(TABLE, picture_items(tables[name]), tables[name], tables[WITHOUT], here)
    return records, pd.concat(tables.values(), ignore_index=True)
