"""The two ways in which data fail: a fault in what a file says, and a file that is not there any more."""

from __future__ import annotations


class DataError(ValueError):
    """A data file that does not hold what it says; the message names the file, the line and the fault."""


class GoneError(DataError):
    """A file that a run reads from has vanished or shrunk: nothing to be skipped, the run stops."""
