"""Rows of the released format by number, from files that are not read into memory: jsonl, and WebDataset-style tars.

    shard-000.tar:  0001.json  0001.a.jpg  0001.q.flac      one sample: members whose names agree up to the first dot
                    0002.json  ...

A sample's `.json` is a row of the released format, whose `images` and `audios` name members of the sample. Only the
positions of rows are kept: 24 bytes per row. A plain `.json` list has no lines and is read whole.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_lite.chat import Sample
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.jsonl import parse_row, sample_of
from omnidiff_lite.data.members import member_ref, read_bytes

BLOCK = 1 << 20  # bytes read at once in search of lines
PIECE = 1 << 16  # bytes at the beginning and the end that, with its size, tell one file from another


class Rows(ABC):
    """The rows of one file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, number: int) -> str:
        """A row's place, for messages."""

    @abstractmethod
    def row(self, number: int) -> Any:
        """A row as in its JSON. Raises `DataError` for malformed JSON, `GoneError` for a vanished file."""

    def sample(self, number: int) -> Sample:
        """A row, checked. Raises `DataError` naming the place and the fix."""
        return sample_of(self.row(number), self.path.parent, self.where(number))

    def fingerprint(self) -> str:
        """Hash of the file's size, beginning and end; not of all of it, which may be hundreds of gigabytes."""
        size = os.path.getsize(self.path)
        pieces = [read_bytes(self.path, start, min(PIECE, size - start)) for start in {0, max(0, size - PIECE)}]
        return hashlib.sha256(b"".join([str(size).encode(), *sorted(pieces)])).hexdigest()[:16]


def open_rows(path: str | Path) -> Rows:
    """The rows of a `.jsonl`, `.tar` or `.json` file. Raises `DataError` for any other, or one without rows."""
    kinds = {".jsonl": JsonlRows, ".tar": TarRows, ".json": ListRows}
    path = Path(path)
    if path.suffix not in kinds:
        raise DataError(f"{path}: samples come as {', '.join(kinds)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    rows = kinds[path.suffix](path)
    if not len(rows):
        raise DataError(f"{path}: holds no samples; give one conversation a line")
    return rows


class JsonlRows(Rows):
    """One conversation per line; blank lines are skipped."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        lines = np.fromiter(_lines(self.path), [("end", np.int64), ("filled", bool)])
        ends, filled = lines["end"], lines["filled"]
        starts = np.concatenate([np.zeros(1, np.int64), ends + 1])[:-1]
        self._starts, self._ends, self._lines = starts[filled], ends[filled], np.flatnonzero(filled) + 1

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, number: int) -> str:
        return f"{self.path}, line {self._lines[number]}"

    def row(self, number: int) -> Any:
        start, end = int(self._starts[number]), int(self._ends[number])
        return parse_row(read_bytes(self.path, start, end - start), self.where(number))


class TarRows(Rows):
    """One sample per group of members."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        starts, ends = [], []
        for start, end in _groups(self.path):
            starts.append(start)
            ends.append(end)
        self._starts, self._ends = np.array(starts, np.int64), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, number: int) -> str:
        return f"{self.path}, sample {number + 1}"

    def members(self, number: int) -> dict[str, tuple[int, int]]:
        """Offset and size of each member of a sample, by name."""
        start, end = int(self._starts[number]), int(self._ends[number])
        try:
            with tarfile.open(fileobj=io.BytesIO(read_bytes(self.path, start, end - start)), mode="r:") as group:
                return {member.name: (start + member.offset_data, member.size) for member in group if member.isfile()}
        except tarfile.TarError as error:
            raise DataError(f"{self.where(number)}: no piece of a tar file ({error}); make the shard anew") from None

    def row(self, number: int) -> Any:
        """A group's JSON, its media named by `tar:` references. Raises `DataError` also for a group without JSON."""
        members = self.members(number)
        name = next((name for name in members if name.endswith(".json")), None)
        if name is None:
            raise DataError(f"{self.where(number)}: has no .json member among {', '.join(members)}; give its messages")
        row = parse_row(read_bytes(self.path, *members.pop(name)), f"{self.where(number)} ({name})")
        return self._placed(row, members, self.where(number)) if isinstance(row, dict) else row

    def _placed(self, row: dict[str, Any], members: dict[str, tuple[int, int]], where: str) -> dict[str, Any]:
        """The row with references in place of its members' names, which may omit the folder."""
        by_name = {os.path.basename(member): place for member, place in members.items()}
        placed = dict(row)
        for kind in ("images", "audios"):
            refs = row.get(kind) or []
            if not isinstance(refs, list):
                continue
            lost = [ref for ref in refs if os.path.basename(str(ref)) not in by_name]
            if lost:
                raise DataError(f"{where}: {kind} names {lost[0]!r}, which is not among "
                                f"its members {', '.join(members)}; make the shard again")
            placed[kind] = [member_ref(self.path, *by_name[os.path.basename(ref)]) for ref in refs]
        return placed


class ListRows(Rows):
    """A `.json` file: one list, in memory."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._rows = parse_row(self.path.read_bytes(), str(path))
        if not isinstance(self._rows, list):
            raise DataError(f"{path}: holds a {type(self._rows).__name__}; a .json file holds a list of conversations")

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, number: int) -> str:
        return f"{self.path}, row {number + 1}"

    def row(self, number: int) -> Any:
        return self._rows[number]


def _lines(path: Path) -> Iterator[tuple[int, bool]]:
    """Where each line ends, at its newline or at the end of the file, and whether it holds more than white space."""
    done, filled = 0, False
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            *ended, rest = block.split(b"\n")
            for piece in ended:
                yield done + len(piece), filled or bool(piece.strip())
                done, filled = done + len(piece) + 1, False
            done, filled = done + len(rest), filled or bool(rest.strip())
    if filled:
        yield done, True


def _groups(path: Path) -> Iterator[tuple[int, int]]:
    """First and last byte of each run of members whose names agree up to the first dot of the file's name."""
    key, start, end = None, 0, 0
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                group = os.path.join(folder, name.partition(".")[0])
                if group != key and key is not None:
                    yield start, end
                if group != key:
                    key, start = group, member.offset
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                shard.members = []  # otherwise tarfile keeps them all
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: not a readable tar file ({error}); make or fetch the shard again") from None
    if key is not None:
        yield start, end
