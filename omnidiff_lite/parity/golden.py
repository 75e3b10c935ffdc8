"""The reference numbers of the released implementation, in `tests/golden`: tiny random weights, inputs, outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from omnidiff_lite.artifacts import CLONE

LINE = re.compile(r"(\S+)\s+[\[(]([\d, ]*)[\])](?:\s+x(\d+).*|\s+(\w+))?")


class ParityError(FileNotFoundError):
    """A reference file is missing; the message names it and the fix."""


class Golden:
    """A directory of reference files. Every reader raises `ParityError` for a missing file."""

    def __init__(self, directory: str | Path = CLONE / "tests" / "golden") -> None:
        self.directory = Path(directory)

    def path(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise ParityError(f"{path} is missing: reference numbers come with the repository, not with an installed "
                              "package; run from a clone, and restore the file with `git checkout tests/golden`")
        return path

    def json(self, name: str) -> Any:
        return json.loads(self.path(f"{name}.json").read_text())

    def tensors(self, name: str, prefix: str = "") -> dict[str, Tensor]:
        """Tensors whose names begin with `prefix`, without it."""
        with safe_open(self.path(f"{name}.safetensors"), "pt") as file:
            return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}

    def metadata(self, name: str) -> dict[str, str]:
        with safe_open(self.path(f"{name}.safetensors"), "pt") as file:
            return file.metadata()

    def listed(self, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Names in a released checkpoint -> shape, and dtype or "" if the list has none; a line
        `a.*.b [2, 3] x28` stands for 28 layers."""
        found = {}
        for line in self.path(f"keys/{name}.txt").read_text().splitlines():
            key, shape, copies, dtype = LINE.fullmatch(line).groups()
            for n in range(int(copies or 1)):
                found[key.replace("*", str(n), 1)] = tuple(int(size) for size in re.findall(r"\d+", shape)), dtype or ""
        return found


GOLDEN = Golden()
