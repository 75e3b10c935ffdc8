"""Two methods on the same items: each one's own row, and the difference, paired by item.

A difference is a row of its own, "autoregressive twin minus diffusion", in the columns and units of the two. Both sides
are resampled with the same draws (paired bootstrap), so an interval that excludes 0 is a difference at that level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd

from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Model, Settings
from omnidiff_lite.evaluation.statistics import Estimate, paired_difference

TWIN = "autoregressive twin"  # its rows
MINUS = " minus "

Evaluation = Callable[[Model, Settings], tuple[list[Record], pd.DataFrame]]
Comparison = Callable[[pd.DataFrame, pd.DataFrame, Settings], list[Record]]  # of two tables of the same items
Columns = Mapping[str, tuple[str, ...]]  # column of a table -> columns per item


def is_difference(record: Record) -> bool:
    return MINUS in record.row


def differences(table: str, columns: Columns, a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """One record per column, in the row that `settings` names: the figure of `a` minus that of `b`, paired by item.

    `columns`: the per-item columns that a figure is made of. Two: a rate of sums (errors, words), in percent; one: a
    mean, in percent where items are true or false.
    """
    return measured(table, settings.row, settings.seed, {
        column: _difference(a[list(parts)], b[list(parts)], settings) for column, parts in columns.items()})


def _difference(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> Estimate:
    values = [table[name].to_numpy() for name in a for table in (a, b)]  # a, b; for a rate also the words of a, of b
    percent = len(values) > 2 or values[0].dtype == bool
    return paired_difference(*values, **settings.resampling).scaled(100 if percent else 1)


def evaluate_both(evaluate: Evaluation, model: Model, twin: Model | str, settings: Settings, compare: Comparison
                  ) -> tuple[list[Record], pd.DataFrame, pd.DataFrame | None]:
    """Records of the model, of the autoregressive twin and of the difference; and the items of both models.

    `twin`: the twin, or the reason why there is none. Its cells are then missing for that reason, and its items None.
    """
    records, items = evaluate(model, settings)
    if isinstance(twin, str):
        lacking = [replace(r, row=r.row.replace(settings.row, TWIN, 1)) for r in records if not is_difference(r)]
        return records + [missing(r.table, r.row, r.column, twin) for r in lacking], items, None
    found, twins = evaluate(twin, replace(settings, row=TWIN))
    between = compare(twins, items, replace(settings, row=f"{TWIN}{MINUS}{settings.row}"))
    return records + found + between, items, twins
