"""Rows of a safetensors file, read one range at a time: without a memory map, where a truncated file means a crash."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.members import gone, read_bytes

_TYPES = {"I32": np.int32, "I64": np.int64, "F16": np.float16, "U8": np.uint8}


def _head(path: str | Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors begin, and what the header says of them. Raises `GoneError` if the file has vanished."""
    try:
        seen = os.stat(path)
    except OSError as error:
        raise gone(path, error) from None
    return _head_of(os.fspath(path), seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=4096)
def _head_of(path: str, file_size: int, changed: int) -> tuple[int, dict[str, Any]]:
    """The header of the file as it is now: a file rewritten under the same name has its own."""
    size = int.from_bytes(read_bytes(path, 0, 8), "little")
    try:
        return 8 + size, json.loads(read_bytes(path, 8, size))
    except (ValueError, OverflowError, MemoryError):
        raise DataError(f"{path}: not a safetensors file; make or fetch it again") from None


def read_rows(path: str | Path, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start..stop-1` of a tensor (default: all). Raises `GoneError` if the file has vanished."""
    begin, head = _head(path)
    entry = head[name]
    shape, dtype = entry["shape"], np.dtype(_TYPES[entry["dtype"]])
    width = prod(shape[1:]) * dtype.itemsize
    stop = shape[0] if stop is None else stop
    data = read_bytes(path, begin + entry["data_offsets"][0] + start * width, (stop - start) * width)
    return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])


def read_notes(path: str | Path) -> dict[str, str]:
    """The file's metadata."""
    return _head(path)[1].get("__metadata__", {})
