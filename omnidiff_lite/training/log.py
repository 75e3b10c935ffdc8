"""The log of a training run: one CSV row a step, the same figures in TensorBoard."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd


class StepLog:
    """Appends rows to `log.csv`; a resumed run first drops the rows past its checkpoint."""

    def __init__(self, directory: str | Path, columns: list[str], start: int) -> None:
        """`start`: the step at which this call begins; rows from there on are the work of a run that was cut off."""
        from torch.utils.tensorboard import SummaryWriter

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self.columns = directory / "log.csv", ["step", *columns]
        kept = self._kept(start)
        self.seconds = float(kept[-1].get("seconds") or 0) if kept else 0.0  # of training before this call
        self._file = self.path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()
        self._board = SummaryWriter(directory / "tensorboard", purge_step=start)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """One row; it is in the file when this returns. A figure that is None is left empty."""
        self._writer.writerow({"step": step, **figures})
        self._file.flush()
        for name, value in figures.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def _kept(self, start: int) -> list[dict[str, str]]:
        if not self.path.exists() or start == 0:
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A line that a kill cut short lacks its last fields: they come as None.
        return [row for row in rows if None not in row.values() and int(row["step"]) < start]


def read_log(path: str | Path) -> pd.DataFrame:
    """The log as a table; floats come back to the last bit."""
    return pd.read_csv(path, float_precision="round_trip")
