"""What table 2 shows: the figure chosen where the paper leaves it open, benchmarks part by part, and the difference
between the autoregressive twin and the diffusion model, paired by item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.evaluation.alignment import picture_items
from omnidiff_lite.evaluation.paired import differences
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Model, Settings
from omnidiff_lite.evaluation.statistics import (
    Estimate, difference_interval, paired_difference, proportion_interval, ratio, ratio_interval)
from omnidiff_lite.evaluation.tables import cell_text
from omnidiff_lite.evaluation.vision import (
    MME_ABSENT, TABLE, bleu, evaluate_mme, mme_accuracies, mme_difference, yes_or_no)

TOLD_APART = 2  # standard errors of their difference by which two choices have to differ


# --- differences: each takes the items of two methods, and names its row by the settings -----------------------------


def pope_differences(name: str, a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """`name`_accuracy and `name`_f1, `a` minus `b`, two tables of `evaluate_pope`; pictures stay together."""
    how = {"groups": a["picture"], **settings.resampling}
    f1 = difference_interval(_f1_sums(a), _f1_sums(b), ratio, **how).scaled(100)
    accuracy = choice_differences(f"{name}_accuracy", a, b, settings)
    return accuracy + measured(TABLE, settings.row, settings.seed, {f"{name}_f1": f1})


def _f1_sums(items: pd.DataFrame) -> np.ndarray:
    """2 x right "yes" answers, and all "yes" said plus all wanted: F1 is their ratio (`vision.pope_scores`)."""
    said = np.array([yes_or_no(text) == "yes" for text in items["prediction"]])
    wanted = items["answer"].str.lower().to_numpy() == "yes"
    return np.column_stack([2 * (said & wanted), 1 * said + wanted])


def choice_differences(column: str, a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """Percent of questions right, `a` minus `b`; questions about one picture stay together."""
    found = paired_difference(a["right"], b["right"], groups=a["picture"], **settings.resampling)
    return measured(TABLE, settings.row, settings.seed, {column: found.scaled(100)})


def mme_differences(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """mme_p of `a` minus that of `b`, two tables of `evaluate_mme`."""
    return measured(TABLE, settings.row, settings.seed, {"mme_p": mme_difference(a, b, settings)})


def caption_differences(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """BLEU-4, CIDEr and, where scenes are known, all-right captions, from two tables of `evaluate_captioning`."""
    found = difference_interval(a["bleu"].tolist(), b["bleu"].tolist(), bleu, **settings.resampling)
    means = {f"caption_{name}": (name,) for name in ("cider", "all_right") if name in a}
    return measured(TABLE, settings.row, settings.seed, {"caption_bleu4": found}) + differences(
        TABLE, means, a, b, settings)


def picture_differences(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """CLIP-T, CLIP-I and what is right, from two tables of `score_pictures`."""
    return differences(TABLE, picture_items(a), a, b, settings)


# --- choices and parts ------------------------------------------------------------------------------------------------


def evaluate_mme_parts(model: Model, samples: Sequence[Sample], settings: Settings = Settings()
                       ) -> tuple[list[Record], pd.DataFrame]:
    """`evaluate_mme` on the world's subtasks, and both halves of each score; the others are missing, with reasons."""
    records, items = evaluate_mme(model, samples, settings)
    records += measured(TABLE, settings.row, settings.seed, mme_accuracies(items, settings))
    return records + [missing(TABLE, settings.row, f"mme_{name}", why) for name, why in MME_ABSENT.items()], items


def chosen(records: Iterable[Record], choices: Mapping[str, str]) -> list[Record]:
    """Copies of the figures that the table shows where the paper leaves it open. `choices`: column -> its figure.

    Raises `ValueError` for a figure that no record has.
    """
    records = list(records)
    taken = [replace(r, column=column) for column, figure in choices.items() for r in records if r.column == figure]
    for column, figure in choices.items():
        if not any(r.column == column for r in taken):
            known = sorted({r.column for r in records if r.column.startswith(column)})
            raise ValueError(f"{column} cannot show {figure!r}: choose from {', '.join(known)}")
    return taken


def by_part(records: Iterable[Record], prefix: str, parts: Sequence[str], figures: Mapping[str, str],
            rows: Sequence[str]) -> pd.DataFrame:
    """One benchmark part by part, as text: one line for each of `parts`, and under each of `rows` one column for each
    of `figures` (suffix of the record's column -> label); "" where there is no record."""
    cells = {(r.row, r.column): cell_text(r) for r in records}
    columns = pd.MultiIndex.from_product([rows, figures.values()], names=["row", "metric"])
    lines = [[cells.get((row, f"{prefix}_{part}{suffix}"), "") for row in rows for suffix in figures] for part in parts]
    return pd.DataFrame(lines, pd.Index(parts, name="part"), columns, dtype=str)


def choice_errors(items: pd.DataFrame, name: str, settings: Settings = Settings()) -> dict[str, Estimate]:
    """How certain choices by likelihood are (items of `evaluate_choices`): `name`_error, the mean standard error of a
    score in nats, and `name`_unsure, percent of questions whose two likeliest choices differ by less than twice the
    standard error of their difference. Choices of equal length share their masks, so this counts too many."""
    scores, errors = (items.filter(regex=f"^{kind}_").to_numpy() for kind in ("score", "error"))
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), axis=1)[:, :-3:-1]  # the two likeliest
    best, spread = (np.take_along_axis(x, order, axis=1) for x in (scores, errors))
    unsure = best[:, 0] - best[:, 1] < TOLD_APART * np.hypot(spread[:, 0], spread[:, 1])
    return {f"{name}_error": ratio_interval(np.nanmean(errors, axis=1), np.ones(len(items)), **settings.resampling),
            f"{name}_unsure": proportion_interval(unsure, **settings.resampling).scaled(100)}
