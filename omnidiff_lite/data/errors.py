"""The two ways in which data fail: a fault in a file's content, and a file that no longer exists."""

from __future__ import annotations


class DataError(ValueError):
    """A data file does not hold what it should; the message names the file, the line and the fault."""


class GoneError(DataError):
    """A file that a run reads from has vanished or shrunk: this cannot be skipped, the run stops."""
