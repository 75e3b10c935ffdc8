"""The kinds of files in which training data are published: each gives rows with the place where they stand.

A row that cannot be parsed is yielded as its `DataError`, so that a reader may skip it; a file that cannot be read at
all raises.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidiff_lite.chat import Sample
from omnidiff_lite.data import benchmark_speech, parquet
from omnidiff_lite.data.benchmark_rows import BenchmarkError
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.members import member_ref, read_bytes
from omnidiff_lite.data.jsonl import parse_row
from omnidiff_lite.data.rows import JsonlRows, TarRows

Row = dict[str, Any] | Sample | DataError
csv.field_size_limit(1 << 27)  # a transcript may be longer than the default of 128 kB


@dataclass(frozen=True)
class Place:
    """Where a row stands: its file, its number from 1, and both for messages."""

    path: Path
    number: int
    where: str


def parquet_files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
    """Rows of parquet files; media come as {"bytes", "path"}."""
    for path in sorted(directory.glob(pattern)):
        for number, row in enumerate(parquet.parquet_rows(path), start=1):
            yield Place(path, number, f"{path}, row {number}"), row


def jsonl_files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
    """One object per line."""
    for path in sorted(directory.glob(pattern)):
        rows = JsonlRows(path)
        for number in range(len(rows)):
            yield Place(path, number + 1, rows.where(number)), _caught(rows.row, number, rows.where(number))


def tsv_files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
    """A line of column names, then one row per line, split at tabs; quotes have no meaning."""
    return _tables(directory, pattern, delimiter="\t", quoting=csv.QUOTE_NONE)


def csv_files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
    """A line of column names, then one row per line, split at commas outside quotes."""
    return _tables(directory, pattern)


def _tables(directory: Path, pattern: str, **dialect: Any) -> Iterator[tuple[Place, Row]]:
    for path in sorted(directory.glob(pattern)):
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file, **dialect)
                for number, row in enumerate(table, start=1):
                    yield Place(path, number, f"{path}, line {table.line_num}"), row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: cannot be read ({error}); download it again") from None


def tar_files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
    """Samples of WebDataset-style shards: by ending, parsed (.json), as text (.txt) or as a reference to the bytes."""
    for path in sorted(directory.glob(pattern)):
        rows = TarRows(path)
        for number in range(len(rows)):
            place = Place(path, number + 1, rows.where(number))
            yield place, _caught(lambda n, rows=rows, place=place: _opened(rows, n, place), number, place.where)


def _opened(rows: TarRows, number: int, place: Place) -> dict[str, Any]:
    opened: dict[str, Any] = {}
    for name, (offset, size) in rows.members(number).items():
        ending = os.path.basename(name).partition(".")[2].lower()
        if ending == "json":
            opened[ending] = parse_row(read_bytes(rows.path, offset, size), f"{place.where} ({name})")
        elif ending == "txt":
            opened[ending] = read_bytes(rows.path, offset, size).decode("utf-8", errors="replace")
        else:
            opened["jpg" if ending == "jpeg" else ending] = member_ref(rows.path, offset, size)
    return opened


def _caught(read: Callable[[int], Any], number: int, where: str) -> Row:
    try:
        row = read(number)
    except DataError as error:
        return error
    if not isinstance(row, dict):
        return DataError(f"{where}: a {type(row).__name__}, not an object; download it again")
    return row


def _chapters(read: Callable[[Path], Iterator[benchmark_speech.Found]]) -> Callable[..., Iterator[tuple[Place, Row]]]:
    def files(directory: Path, pattern: str) -> Iterator[tuple[Place, Row]]:
        for number, (where, found) in enumerate(read(directory), start=1):
            yield Place(directory, number, where), DataError(str(found)) if isinstance(found, BenchmarkError) else found

    return files


KINDS: dict[str, Callable[[Path, str], Iterator[tuple[Place, Row]]]] = {
    "parquet": parquet_files, "jsonl": jsonl_files, "tsv": tsv_files, "csv": csv_files, "tar": tar_files,
    "librispeech": _chapters(benchmark_speech.librispeech_rows), "libritts": _chapters(benchmark_speech.libritts_rows)}
