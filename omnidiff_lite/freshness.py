"""Whether a notebook is up to date: one hash of all its run depends on, and the stamp of its last finished run."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import nbformat

from omnidiff_lite import _HOMES
from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.config import Preset, to_dict
from omnidiff_lite.provenance import digest

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Step:
    """A notebook, what it reads and makes under `results/<preset>/` (folders count whole), and the files of the clone
    it reads. Its tables, figures, samples and metrics are found when it ends. What it `uses`, and the `metrics` it
    shows, may be absent; it runs again once they change."""

    name: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()  # of other notebooks, by name
    ignores: tuple[str, ...] = ()  # sections of the preset that it does not use


def step_key(step: Step, source: Path, preset: Preset, seed: int, artifacts: Artifacts) -> str:
    """Content hash of everything that a notebook's run depends on."""
    cells = [c.source for c in nbformat.read(source, as_version=4).cells if c.cell_type == "code"]
    cells = [re.sub(r"(?m)^(preset|seed): .*", "", cell) for cell in cells]  # always given, so defaults do not count
    used = {name: value for name, value in to_dict(preset).items() if name not in step.ignores}
    parts = {"cells": cells, "preset": used, "seed": seed,
             "code": {p.relative_to(PACKAGE).as_posix(): digest(p) for p in sorted(code_used("\n".join(cells)))},
             "inputs": {name: digest(artifacts.dir / name) for name in step.needs + step.uses},
             "metrics": {name: digest(artifacts.metrics / f"{name}.json") for name in step.metrics},
             "reads": {name: digest(CLONE / name) for name in step.reads}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stale(stamp: dict[str, Any] | None, key: str, artifacts: Artifacts) -> str | None:
    """Why the step that left `stamp` must run, or None."""
    if stamp is None:
        return "not run yet"
    if stamp["key"] != key:
        return "its code, parameters or inputs changed"
    for made, seen in stamp["outputs"].items():
        if not (artifacts.dir / made).exists():
            return f"{made} is missing"
        if digest(artifacts.dir / made) != seen:
            return f"{made} was changed by something else"
    return None


def outputs(step: Step, artifacts: Artifacts, started: float) -> tuple[str, ...]:
    """What a step has made: its folders, its executed notebook, and the shown files written since it `started`."""
    shown = [p for folder in (artifacts.metrics, artifacts.tables, artifacts.figures, artifacts.samples)
             for p in folder.rglob("*") if p.is_file() and p.stat().st_mtime >= started]
    return (*step.makes, f"notebooks/{step.name}.ipynb", *(p.relative_to(artifacts.dir).as_posix() for p in shown))


def code_used(source: str) -> set[Path]:
    """Package files that `source` imports, directly or indirectly, and the .json files beside them."""
    found: set[Path] = set()
    waiting = list(_imports(source))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path.read_text())
    return found | {data for path in found for data in path.parent.glob("*.json")}


def _imports(source: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            homes = [f"omnidiff_lite.{_HOMES[a.name]}" for a in node.names if a.name in _HOMES]
            modules = homes if node.module == "omnidiff_lite" and homes else []
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            if module.split(".")[0] == "omnidiff_lite":
                stem = PACKAGE.joinpath(*module.split(".")[1:])
                for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if path.is_file() and path != PACKAGE / "__init__.py":
                        yield path


# --- stamps ---------------------------------------------------------------------------------------------------------

def stamp_path(artifacts: Artifacts, step: Step) -> Path:
    """Where the stamp of a step's last finished run is kept; creates the folder."""
    folder = artifacts.work / "stamps"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{step.name}.json"


def read_stamp(artifacts: Artifacts, step: Step) -> dict[str, Any] | None:
    """That stamp; None if there is none, or only a partial one."""
    try:
        return json.loads(stamp_path(artifacts, step).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
