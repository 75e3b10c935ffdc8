"""Rows of parquet files. Reading them needs pyarrow, which nothing else in the kit does: an extra of the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnidiff_lite.data.errors import DataError


def parquet_rows(path: Path, columns: Sequence[str] | None = None, at_once: int = 32,
                 error: type[Exception] = DataError) -> Iterator[dict[str, Any]]:
    """The rows of one file, `at_once` of them in memory; a picture or recording is {"bytes", "path"}, or None.

    Raises `error` if pyarrow is missing or the file is not readable.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise error(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(at_once, columns=columns and list(columns)):
            yield from batch.to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as cause:
        raise error(f"{path}: not a readable parquet file ({cause}); download it again") from None
