"""Does the kit compute what the released implementation computes? One row per case, from recorded numbers.

    python -m omnidiff_lite.parity          # the table; exit code 1 if a row fails
    report()                                # the same as a pandas table

The numbers were recorded from the released code (commit c4f4625) and its tokenizers with tiny random weights on a CPU.
One row, for which nothing was recorded, compares with a loop of the kit's own: column `against` says so, and `count`
keeps it apart. Not covered: temperatures above 0, the random algorithm, and the released weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from omnidiff_lite.parity import denoiser, layout, tokenizers
from omnidiff_lite.parity.compare import RELEASED, Case, Row
from omnidiff_lite.parity.golden import GOLDEN, Golden, ParityError

__all__ = ["CASES", "Case", "GOLDEN", "Golden", "ParityError", "Row", "count", "report"]

CASES: tuple[Case, ...] = (*denoiser.CASES, *tokenizers.CASES, *layout.CASES)


def report(golden: Golden = GOLDEN, cases: Sequence[Case] = CASES,
           progress: Callable[[Row], None] = lambda row: None) -> pd.DataFrame:
    """Columns part, case, compared, against ("released", or "own loop"), tolerance ("exact", or the largest error
    allowed), reached, passed.

    `progress`: called with each row as it is done. A case that raises gives a failed row naming the error. Raises
    `ParityError` if a reference file is missing.
    """
    rows = []
    for case in cases:
        try:
            row = case.run(golden)
        except ParityError:
            raise
        except Exception as error:  # the other rows are still worth having
            row = case.failed(error)
        progress(row)
        rows.append({"part": row.part, "case": row.case, "compared": row.compared, "against": row.against,
                     "tolerance": f"{row.tolerance:g}" if row.tolerance else "exact", "reached": row.reached,
                     "passed": row.passed})
    return pd.DataFrame(rows)


def count(table: pd.DataFrame) -> str:
    """How many rows of a report passed, counting those against the kit itself separately."""
    released = table[table.against == RELEASED]
    own = table[table.against != RELEASED]
    return (f"{released.passed.sum()} of {len(released)} comparisons with the released implementation passed"
            + (f"; {own.passed.sum()} of {len(own)} with the kit's own loop" if len(own) else ""))
