"""A study's records, and ways to look at them: effects with intervals, a heat map, summary lines.

`ablation_<name>` has one row per variant and two columns per metric: the value, and `<metric>_minus_base`, its
difference from the row that it is compared with. A grid has a third, `<metric>_interaction`: how much that difference
itself differs from the one at the first value of the second key. For answers decoded by one checkpoint the interval is
a paired bootstrap over items (several seeds' answers to an item drawn together); for trained models it is Student's t
over seeds, paired by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from omnidiff_lite import plots
from omnidiff_lite.ablation.runner import Cell, Outcome
from omnidiff_lite.ablation.standing import Hash, checkpoint_of
from omnidiff_lite.ablation.study import Study, Variant
from omnidiff_lite.evaluation.records import Record, measured, read_records
from omnidiff_lite.evaluation.statistics import (FEW, Estimate, bootstrap_interval, mean_interval, paired_difference,
                                                 ratio, ratio_interval, seed_interval)
from omnidiff_lite.evaluation.tables import column_label
from omnidiff_lite.provenance import digest
from omnidiff_lite.strict import from_dict

PREFIX = "ablation_"
MINUS = "_minus_base"
INTERACTION = "_interaction"
ONE_SEED = "no interval: one seed"
FEW_APART = f"no interval: fewer than {FEW} answers differ so"


def study_records(outcome: Outcome, samples: int = 1000) -> list[Record]:
    """The records of each variant and metric. `samples`: draws of the bootstrap."""
    study, by_row = outcome.study, {}
    corners = _corners(study) if study.grid else {}
    for cell in outcome.cells:
        by_row.setdefault(cell.variant, []).append(cell)
    records: list[Record] = []
    for variant in study.rows:
        own, other = by_row[variant.name], by_row.get(variant.against or "")
        estimates: dict[str, Estimate] = {}
        for metric in study.metrics:
            estimates[metric] = value(own, metric, samples)
            if other:
                estimates[metric + MINUS] = difference(own, other, metric, samples)
            if variant.name in corners:
                others = [by_row[name] for name in corners[variant.name]]
                estimates[metric + INTERACTION] = interaction([own, *others], metric, samples)
        records += [replace(record, seeds=tuple(cell.seed for cell in own))
                    for record in measured(PREFIX + study.name, variant.name, own[0].seed, estimates)]
    return records


def value(cells: Sequence[Cell], metric: str, samples: int = 1000) -> Estimate:
    """A metric of one row, over items or over seeds."""
    if not _decoded(cells, metric):
        return _over_seeds([cell.values[metric] for cell in cells])
    rows, items = _pooled(cells, metric)
    how = {"samples": samples, "groups": items}
    if _shares(rows):
        found = mean_interval(rows[:, 0], (0, 100), **how)
    else:
        found = ratio_interval(*rows.T, **how)
    return replace(found, n=len(set(items)))


def difference(cells: Sequence[Cell], base: Sequence[Cell], metric: str, samples: int = 1000) -> Estimate:
    """A metric of one row minus that of another, paired by item or by seed."""
    if not _decoded(cells, metric):
        pairs = zip(cells, base, strict=True)
        return _over_seeds([cell.values[metric] - other.values[metric] for cell, other in pairs])
    (a, items), (b, _) = _pooled(cells, metric), _pooled(base, metric)
    how = {"samples": samples, "groups": items}
    if _shares(a) and _shares(b):
        found = paired_difference(a[:, 0] / 100, b[:, 0] / 100, **how).scaled(100)
    else:
        found = paired_difference(a[:, 0], b[:, 0], a[:, 1], b[:, 1], **how)
    return replace(found, n=len(set(items)))


def interaction(quartet: Sequence[Sequence[Cell]], metric: str, samples: int = 1000) -> Estimate:
    """The effect of two changes together minus the sum of their single effects. `quartet`: both changes, the first
    alone, the second alone, neither."""
    signs = (1, -1, -1, 1)
    if not _decoded(quartet[0], metric):
        return _over_seeds([sum(sign * cell.values[metric] for sign, cell in zip(signs, cells))
                            for cells in zip(*quartet, strict=True)])
    pooled = [_pooled(cells, metric) for cells in quartet]
    shares = all(_shares(rows) for rows, _ in pooled)
    found = bootstrap_interval(
        np.hstack([rows for rows, _ in pooled]), groups=pooled[0][1], samples=samples,
        statistic=lambda sums: sum(sign * ratio(sums[..., 2 * k:2 * k + 2]) for k, sign in enumerate(signs)))
    found = replace(found, n=len(set(pooled[0][1])))
    apart = np.count_nonzero(sum(sign * rows[:, 0] for sign, (rows, _) in zip(signs, pooled)))
    return replace(found, low=None, high=None, reason=FEW_APART) if shares and apart < FEW else found


def _corners(study: Study) -> dict[str, tuple[str, str, str]]:
    """For each combination of a grid in which both keys differ from their first values: the first key's change alone,
    the second's alone, neither."""
    first, second = map(len, study.grid.values())
    names = np.array([variant.name for variant in study.rows]).reshape(second, first)
    return {names[b, a]: (names[0, a], names[b, 0], names[0, 0]) for b in range(1, second) for a in range(1, first)}


def _decoded(cells: Sequence[Cell], metric: str) -> bool:
    return isinstance(cells[0].values[metric], list)


def _pooled(cells: Sequence[Cell], metric: str) -> tuple[NDArray, list[int]]:
    """Sums of all seeds' answers, stacked, and the item that each row belongs to."""
    parts = [np.asarray(cell.values[metric], float) for cell in cells]
    return np.concatenate(parts), [item for part in parts for item in range(len(part))]


def _shares(rows: NDArray) -> bool:
    """Whether every item is wholly right or wholly wrong, in percent."""
    return bool((rows[:, 1] == 1).all() and np.isin(rows[:, 0], (0, 100)).all())


def _over_seeds(values: Sequence[float]) -> Estimate:
    return seed_interval(values) if len(values) > 1 else Estimate(float(values[0]), None, None, 1, ONE_SEED)


# --- reading them back -----------------------------------------------------------------------------------------------

def finished_studies(metrics: Path) -> dict[str, list[Record]]:
    """Records of every finished study, by the study's name; from `results/<preset>/metrics/`."""
    found = {path.stem.removeprefix(PREFIX): read_records(path) for path in sorted(metrics.glob(f"{PREFIX}*.json"))}
    return {name: records for name, records in found.items() if records and "study" in records[0].provenance}


def study_of(records: Sequence[Record]) -> Study:
    """The study that the records belong to, as it was run."""
    tree = records[0].provenance["study"]
    budget = {key: value for key, value in tree["budget"].items() if key != "timed"}  # older studies timed answers
    return from_dict(Study, tree | {"budget": budget})


def effects(records: Sequence[Record], metric: str | None = None, kind: str = MINUS) -> pd.DataFrame:
    """Columns label, value, low, high: each variant's difference from its base in one metric (default: the first), or,
    with `INTERACTION` for `kind`, the interactions of a grid."""
    column = (metric or study_of(records).metrics[0]) + kind
    return pd.DataFrame([{"label": r.row, "value": r.value, "low": r.low, "high": r.high}
                         for r in records if r.column == column], columns=["label", "value", "low", "high"])


def grid_frame(records: Sequence[Record], metric: str | None = None) -> pd.DataFrame:
    """The values of a grid: a row for each value of the first key, a column for each of the second.

    Raises `ValueError` for a study without a grid.
    """
    study = study_of(records)
    if not study.grid:
        raise ValueError(f"study {study.name} has no grid")
    found = {r.row: r.value for r in records if r.column == (metric or study.metrics[0])}
    first, second = study.grid.values()
    values = np.array([found[variant.name] for variant in study.rows]).reshape(len(second), len(first)).T
    rows, columns = (pd.Index([str(v) for v in values], name=key) for key, values in study.grid.items())
    return pd.DataFrame(values, index=rows, columns=columns)


def study_figure(records: Sequence[Record], metric: str | None = None) -> Figure:
    """The effects in one metric (default: the first) as dots with intervals; for a grid, the values as a heat map."""
    study = study_of(records)
    metric = metric or study.metrics[0]
    over = f"{study.seeds} seeds" if study.kind == "training" else f"{records[0].n} items"
    title = f"{study.name.replace('_', ' ')}: {over}"
    if not study.grid:
        return plots.intervals(effects(records, metric), f"{title}, base: {study.baseline}",
                               f"change: {column_label(metric)}", zero=True)
    values = grid_frame(records, metric)
    room = (float(values.min().min()), float(values.max().max()))
    return plots.heat_map(values, title=title, xlabel=values.columns.name, ylabel=values.index.name, limits=room,
                          label=metric.replace("_", " "))


def summary(metrics: Path) -> pd.DataFrame:
    """One line for each effect of every finished study: study, base, variant, effect with its interval, seeds, minutes,
    and whether it belongs to the present checkpoint (`standing`)."""
    hashed = cache(digest)
    found = [effect_lines(records, metrics.parent, hashed) for records in finished_studies(metrics).values()]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def effect_lines(records: Sequence[Record], run: Path, hashed: Hash = digest) -> pd.DataFrame:
    """The lines of one study, for its first metric. `run`: `results/<preset>`, whose checkpoint is "this one"."""
    study, minutes = study_of(records), records[0].provenance["minutes"]
    cells, metric = {(r.row, r.column): r for r in records}, study.metrics[0]
    return pd.DataFrame([_line(study, variant, cells[variant.name, metric + MINUS], cells[variant.against, metric],
                               minutes) for variant in study.rows if variant.against]
                        ).assign(checkpoint=checkpoint_of(study, records, run, hashed))


def _line(study: Study, variant: Variant, effect: Record, base: Record, minutes: float) -> dict[str, Any]:
    return {"study": study.name, "metric": study.metrics[0], "base": f"{base.row}: {_number(base.value)}",
            "variant": variant.name, "effect [95 %]": effect_text(effect), "n": effect.n, "seeds": len(effect.seeds),
            "minutes": minutes}


def effect_text(record: Record) -> str:
    """"+1.2 [-0.3, +2.7]", or the value and why it has no interval."""
    if record.low is None:
        return f"{_number(record.value, '+')} [{record.reason}]"
    return f"{_number(record.value, '+')} [{_number(record.low, '+')}, {_number(record.high, '+')}]"


def _number(value: float, sign: str = "") -> str:
    """Three digits, or one decimal from 10 on."""
    return f"{value:{sign}.1f}" if abs(value) >= 10 else f"{value:{sign}.3g}"
