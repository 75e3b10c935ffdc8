"""One number = one `Record`; files of records; the paper's numbers as records of their own source."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from omnidiff_lite.evaluation.statistics import Estimate, seed_interval
from omnidiff_lite.weights import write_json

Source = Literal["paper-v1", "paper-icml", "released-code", "ours"]
SOURCES: tuple[str, ...] = get_args(Source)


class RecordError(ValueError):
    """A record that lacks something, or a file without records."""


@dataclass(frozen=True)
class Record:
    """One cell of one table. `low` and `high` bound the 95 % interval; `n` counts test items (runs, over seeds).

    A cell that was not measured has value None and a `reason`; a measured one may use `reason` to say why it has no
    interval, or which items it leaves out. `provenance` comes from `provenance.provenance`. Raises `RecordError` for a
    value that is not a number, a measured one without `n`, or a missing one without a reason.
    """

    table: str
    row: str
    column: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: tuple[int, ...] = ()
    source: Source = "ours"
    provenance: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        where = f"{self.table} / {self.row} / {self.column}"
        if self.source not in SOURCES:
            raise RecordError(f"{where}: source {self.source!r} is none of {', '.join(SOURCES)}")
        if self.value is None:
            if not self.reason:
                raise RecordError(f"{where}: no value and no reason; say why it is missing")
        elif not all(v is None or math.isfinite(v) for v in (self.value, self.low, self.high)):
            raise RecordError(f"{where}: {self.value} [{self.low}, {self.high}] is not finite")
        elif self.source == "ours" and not self.n:
            raise RecordError(f"{where}: a measured value needs n, the number of items")
        if (self.low is None) != (self.high is None):
            raise RecordError(f"{where}: an interval needs both ends")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `reason` only if there is one."""
        tree = {**asdict(self), "seeds": list(self.seeds)}
        return tree if self.reason else {k: v for k, v in tree.items() if k != "reason"}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Record:
        return cls(**{**tree, "seeds": tuple(tree.get("seeds", ()))})


def measured(table: str, row: str, seed: int, estimates: Mapping[str, Estimate]) -> list[Record]:
    """Our own numbers for one row, one record per column."""
    return [Record(table, row, column, e.value, e.low, e.high, e.n, seeds=(seed,), reason=e.reason)
            for column, e in estimates.items()]


def missing(table: str, row: str, column: str, reason: str, source: Source = "ours") -> Record:
    """A cell that could not be measured, and why."""
    return Record(table, row, column, None, source=source, reason=reason)


def with_provenance(records: Iterable[Record], provenance: dict[str, Any]) -> list[Record]:
    """Copies of the records with their provenance."""
    return [replace(record, provenance=provenance) for record in records]


def over_seeds(runs: Iterable[Iterable[Record]]) -> list[Record]:
    """Records of several runs merged cell by cell: mean and t-interval over the runs, `n` = number of runs.

    A cell that any run files as missing is missing in the result, for that run's reason; a cell that a run does not
    file at all is merged over the other runs. `provenance` is the first run's.
    """
    cells: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for run in runs:
        for record in run:
            cells[record.table, record.row, record.column, record.source].append(record)
    return [_merge(group) for group in cells.values()]


def _merge(group: list[Record]) -> Record:
    absent = [record for record in group if record.value is None]
    seeds = tuple(seed for record in group for seed in record.seeds)
    if absent:
        return replace(absent[0], seeds=seeds)
    if len(group) == 1:
        return group[0]
    e = seed_interval([record.value for record in group])
    return replace(group[0], value=e.value, low=e.low, high=e.high, n=e.n, seeds=seeds, reason="")


def write_records(path: str | Path, records: Iterable[Record]) -> Path:
    """Write `results/<preset>/metrics/<name>.json` atomically: a list of records."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [record.to_dict() for record in records])
    return path


def read_records(path: str | Path, table: str | None = None) -> list[Record]:
    """Records of one file, or of every `*.json` in a directory (sorted by name); only of `table` if given."""
    path = Path(path)
    names = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [record for name in names for record in _read(name) if table in (None, record.table)]


def _read(path: Path) -> list[Record]:
    try:
        return [Record.from_dict(tree) for tree in json.loads(path.read_text())]
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file of records; run the evaluation that writes it") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise RecordError(f"{path}: not a list of records ({error})") from None


# --- the paper -------------------------------------------------------------------------------------------------------

_DESCRIPTIVE = {"method", "type", "params", "version", "note", "task", "steps", "setting"}


@cache
def paper_tables() -> dict[str, Any]:
    """Every number the paper reports, each with its version (`v1` or `icml`)."""
    return json.loads((files("omnidiff_lite.evaluation") / "paper_tables.json").read_text())


def paper_records(table: str) -> list[Record]:
    """The paper's rows of `table` (table1_speech, table2_vision, table3_sampling, spoken_mme,
    ablation_position_penalty), source paper-v1 or paper-icml; the paper gives no n and no interval.

    A row is a method, "task, steps" or a setting; an unreported cell has value None. Raises `RecordError` for a
    table that is not in the paper.
    """
    rows = _paper_rows(table)
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in _DESCRIPTIVE))
    return [_paper_cell(table, row, column) for row in rows for column in columns if _belongs(table, row, column)]


def _paper_rows(table: str) -> list[dict[str, Any]]:
    entry = paper_tables().get(table)
    rows = entry.get("rows") if isinstance(entry, dict) else entry
    if not rows or "version" not in rows[0]:
        raise RecordError(f"the paper has no numbers for {table!r}")
    return rows + (entry.get("autoregressive_latency", []) if isinstance(entry, dict) else [])


def _belongs(table: str, row: dict[str, Any], column: str) -> bool:
    """In table 3 a column belongs only to the rows of its task: there is no WER of a picture."""
    return table != "table3_sampling" or column in row


def _paper_cell(table: str, row: dict[str, Any], column: str) -> Record:
    name = f"{row['task']}, {row['steps']} steps" if "task" in row else row.get("method") or row["setting"]
    value = row.get(column)
    origin = {"document": paper_tables()["versions"][row["version"]]}
    origin |= {key: row[key] for key in ("type", "params", "note") if key in row}
    return Record(table, name, column, value, source=f"paper-{row['version']}", provenance=origin,
                  reason="" if value is not None else "not reported")
