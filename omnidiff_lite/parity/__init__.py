"""Does the kit compute what the released implementation computes? One row for each case, from recorded numbers.

    python -m omnidiff_lite.parity          # the table; exit code 1 where a row fails
    report()                                # the same as a pandas table

The numbers were recorded from the released code (commit c4f4625) and its tokenizers with tiny random weights on a CPU.
Not covered: temperatures above 0, the random algorithm, and the released weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from omnidiff_lite.parity import denoiser, layout, tokenizers
from omnidiff_lite.parity.compare import Case, Row
from omnidiff_lite.parity.golden import GOLDEN, Golden, ParityError

__all__ = ["CASES", "Case", "GOLDEN", "Golden", "ParityError", "Row", "report"]

CASES: tuple[Case, ...] = (*denoiser.CASES, *tokenizers.CASES, *layout.CASES)


def report(golden: Golden = GOLDEN, cases: Sequence[Case] = CASES,
           progress: Callable[[Row], None] = lambda row: None) -> pd.DataFrame:
    """Columns part, case, compared, tolerance ("exact", or the largest error allowed), reached, passed.

    `progress`: called with each row as it is done. Raises `ParityError` where a reference file is missing.
    """
    rows = []
    for case in cases:
        row = case.run(golden)
        progress(row)
        rows.append({"part": row.part, "case": row.case, "compared": row.compared,
                     "tolerance": f"{row.tolerance:g}" if row.tolerance else "exact", "reached": row.reached,
                     "passed": row.passed})
    return pd.DataFrame(rows)
