"""What table 2 shows: the figure chosen where the paper leaves it open, benchmarks part by part, and what the
diffusion model is ahead of its autoregressive twin, on the same items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.statistics import (Estimate, bootstrap_interval, difference_interval, mean_interval,
                                                 paired_difference, proportion_interval, ratio)
from omnidiff_lite.evaluation.tables import cell_text
from omnidiff_lite.evaluation.vision import TABLE, bleu, mme_pairs, yes_or_no

TWIN, DIFFERENCE = "autoregressive twin", "diffusion - twin"  # rows
MOST_ERRORS = 2  # standard errors by which two choices have to differ to be told apart

Items = Mapping[str, pd.DataFrame]  # what each evaluation gave per item, by the name of its column
Pair = Callable[[pd.DataFrame, pd.DataFrame, Mapping[str, int]], Estimate]


# --- diffusion minus twin ---------------------------------------------------------------------------------------------


def differences(ours: Items, twins: Items, settings: Settings = Settings(), table: str = TABLE) -> list[Record]:
    """The headline figures of `ours` minus those of `twins`, row "diffusion - twin", by paired bootstrap.

    Keys: pope_<strategy>, mme, seed2plus_<scoring>, captioning, t2i; the tables are those that the evaluations of the
    same samples gave. Figures of other keys are not known: `KeyError`.
    """
    found: dict[str, Estimate] = {}
    for key in ours:
        for column, pair in _figures(key).items():
            found[column] = pair(ours[key], twins[key], settings.resampling)
    return measured(table, DIFFERENCE, settings.seed, found)


def _figures(key: str) -> dict[str, Pair]:
    if key.startswith("pope_"):
        return {f"{key}_accuracy": _mean("right"), f"{key}_f1": _f1}
    return {key: _mean("right")} if key.startswith("seed2plus_") else _FIGURES[key]


def _mean(column: str, scale: float = 100.0) -> Pair:
    """Difference of means; questions about one picture stay together."""
    def pair(a: pd.DataFrame, b: pd.DataFrame, how: Mapping[str, int]) -> Estimate:
        return paired_difference(a[column], b[column], groups=a.get("picture"), **how).scaled(scale)
    return pair


def _f1(a: pd.DataFrame, b: pd.DataFrame, how: Mapping[str, int]) -> Estimate:
    """2 x right "yes" answers over all that are said and all that are wanted (`vision.pope_scores`)."""
    def sums(items: pd.DataFrame) -> np.ndarray:
        said = np.array([yes_or_no(text) == "yes" for text in items["prediction"]])
        wanted = items["answer"].str.lower().to_numpy() == "yes"
        return np.column_stack([2 * (said & wanted), 1 * said + wanted])
    return difference_interval(sums(a), sums(b), ratio, groups=a["picture"], **how).scaled(100)


def _mme(a: pd.DataFrame, b: pd.DataFrame, how: Mapping[str, int]) -> Estimate:
    """Points of mme_p: each picture adds its own to its subtask's mean, and subtasks keep their sizes."""
    first, second = (mme_pairs(items["subtask"], items["picture"], items["right"]) for items in (a, b))
    points = [np.where(pairs["sum"] == 2, 200.0, 50.0 * pairs["sum"]) for pairs in (first, second)]
    share = (points[0] - points[1]) / first.groupby("subtask")["sum"].transform("size")
    found = bootstrap_interval(share.to_numpy()[:, None], lambda sums: sums[..., 0], strata=first["subtask"], **how)
    return replace(found, n=2 * found.n)


def _bleu(a: pd.DataFrame, b: pd.DataFrame, how: Mapping[str, int]) -> Estimate:
    return difference_interval(a["bleu"].tolist(), b["bleu"].tolist(), bleu, **how)


_FIGURES: dict[str, dict[str, Pair]] = {
    "mme": {"mme_p": _mme},
    "captioning": {"caption_bleu4": _bleu, "caption_cider": _mean("cider", 1.0),
                   "caption_all_right": _mean("all_right")},
    "t2i": {"clip_t": _mean("clip_t", 1.0), "clip_i": _mean("clip_i", 1.0), "image_all_right": _mean("all_right")}}


# --- choices and parts ------------------------------------------------------------------------------------------------


def shown(records: Iterable[Record], choices: Mapping[str, str]) -> list[Record]:
    """Copies of the figures that the table shows where the paper leaves it open: column -> the figure it takes.

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
    """One benchmark part by part, as text: a line each of `parts`, under each of `rows` a column each of `figures`
    (suffix of the record's column -> label); "" where there is no record."""
    cells = {(r.row, r.column): cell_text(r) for r in records}
    columns = pd.MultiIndex.from_product([rows, figures.values()], names=["row", "metric"])
    lines = [[cells.get((row, f"{prefix}_{part}{suffix}"), "") for row in rows for suffix in figures] for part in parts]
    return pd.DataFrame(lines, pd.Index(parts, name="part"), columns, dtype=str)


def choice_errors(items: pd.DataFrame, name: str, settings: Settings = Settings()) -> dict[str, Estimate]:
    """How sure choices by likelihood are (items of `evaluate_choices`): `name`_error, the mean standard error of a
    score in nats, and `name`_unsure, percent of questions whose two likeliest choices differ by less than twice the
    standard error of their difference. Choices of one length share their masks, so this counts too many."""
    scores, errors = (items.filter(regex=f"^{kind}_").to_numpy() for kind in ("score", "error"))
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), axis=1)[:, :-3:-1]  # the two likeliest
    best, spread = (np.take_along_axis(x, order, axis=1) for x in (scores, errors))
    unsure = best[:, 0] - best[:, 1] < MOST_ERRORS * np.hypot(spread[:, 0], spread[:, 1])
    return {f"{name}_error": mean_interval(np.nanmean(errors, axis=1), **settings.resampling),
            f"{name}_unsure": proportion_interval(unsure, **settings.resampling).scaled(100)}
