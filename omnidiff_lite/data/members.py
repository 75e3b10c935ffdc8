"""Media inside a tar shard, named without unpacking it: `tar:<offset>+<size>:<path of the shard>`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from omnidiff_lite.data.errors import GoneError

_MEMBER = re.compile(r"tar:(\d+)\+(\d+):(.+)", re.S)


def member_ref(path: str | Path, offset: int, size: int) -> str:
    """The reference to `size` bytes from `offset` on."""
    return f"tar:{offset}+{size}:{os.path.abspath(path)}"


def is_member(ref: str) -> bool:
    """Whether a reference has this form and is not a path."""
    return _MEMBER.fullmatch(ref) is not None


def read_member(ref: str) -> bytes:
    """The bytes of a reference. Raises `GoneError` if the shard no longer exists, or is shorter."""
    offset, size, path = _MEMBER.fullmatch(ref).groups()
    return read_bytes(path, int(offset), int(size))


def read_bytes(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file, opened for this one read: a vanished file is noticed at once."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise gone(path, error) from None
    while len(data) < size:  # a raw read may return less than requested
        with open(path, "rb") as file:
            file.seek(offset + len(data))
            more = file.read(size - len(data))
        if not more:
            raise GoneError(f"{path}: ends at byte {offset + len(data)}, before byte {offset + size}; put the whole "
                            "file back and run again, which goes on from the last checkpoint")
        data += more
    return data


def gone(path: str | Path, error: OSError) -> GoneError:
    """The error to raise for a file that cannot be opened."""
    return GoneError(f"{path}: the file is gone or cannot be read ({error}); put it back and run again, which goes on "
                     "from the last checkpoint")
