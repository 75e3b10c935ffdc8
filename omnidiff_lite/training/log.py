"""The log of a training run: one CSV row per step, and the same figures in TensorBoard."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from omnidiff_lite.files import written_whole
from omnidiff_lite.training.step import TrainingError


class StepLog:
    """Appends rows to `log.csv`; a resumed run first drops the rows past its checkpoint.

    Every write raises `TrainingError` if it fails (a full disk, say); what the file held before stays.
    """

    def __init__(self, directory: str | Path, columns: list[str], start: int) -> None:
        """`start`: the step at which this call begins; rows from there on come from an interrupted run."""
        from torch.utils.tensorboard import SummaryWriter

        directory = Path(directory)
        self.path, self.columns = directory / "log.csv", ["step", *columns]
        with self._writing():
            directory.mkdir(parents=True, exist_ok=True)
            kept = self._kept(start)
            self.seconds = float(kept[-1].get("seconds") or 0) if kept else 0.0  # training time before this call
            self._begin(kept)
            self._file = self.path.open("a", newline="")
            self._writer = csv.DictWriter(self._file, self.columns)
            self._board = SummaryWriter(directory / "tensorboard", purge_step=start)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Write one row; it is in the file when this returns. A figure that is None is left empty."""
        with self._writing():
            self._writer.writerow({"step": step, **figures})
            self._file.flush()
            for name, value in figures.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        with self._writing(), contextlib.closing(self._board):
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self.path}, or tensorboard/ beside it, cannot be written ({error}); make room or "
                                "mend it: the same command goes on from the last checkpoint") from error

    def _begin(self, kept: list[dict[str, str]]) -> None:
        """Write the file with its header and the rows that are kept."""
        with written_whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def _kept(self, start: int) -> list[dict[str, str]]:
        if not self.path.exists() or start == 0:
            return []
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A line cut short by a kill lacks its last fields, which are read as None.
        return [row for row in rows if None not in row.values() and int(row["step"]) < start]


def read_log(path: str | Path) -> pd.DataFrame:
    """The log as a table; floats are restored to the last bit."""
    return pd.read_csv(path, float_precision="round_trip")
