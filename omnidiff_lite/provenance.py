"""How a number came about: configuration, seed, code, libraries, hardware, time. Kept tiny on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omnidiff_lite.config import Preset, to_dict

PACKAGE = Path(__file__).parent
SINCE = {"training": {"suffix": {}}}  # settings added after results were filed, with the value that changes nothing
LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "jiwer", "papermill", "espeakng-loader")


def provenance(preset: Preset, seed: int, started: float, *, on: str | None = None, **extra: Any) -> dict[str, Any]:
    """The record that travels with every number. `started`: `time.time()` when the run began; `on`: see `hardware`."""
    return {"preset": preset.name, "config": config_hash(preset), "seed": seed, "code": code_version(),
            "source": source_hash(), "libraries": library_versions(), "hardware": hardware(on),
            "seconds": round(time.time() - started, 1), "date": time.strftime("%Y-%m-%d", time.gmtime()), **extra}


def config_hash(preset: Preset) -> str:
    """Hash of every value in the preset."""
    return tree_hash(to_dict(preset))


def tree_hash(tree: dict[str, Any]) -> str:
    """The same for a preset as plain values, in memory or read from a `config.json`.

    A setting in `SINCE` at its neutral value is left out, so that earlier numbers keep their hash.
    """
    for section, added in SINCE.items():
        if section in tree:
            kept = {key: value for key, value in tree[section].items() if key not in added or value != added[key]}
            tree = tree | {section: kept}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def hash_files(paths: Iterable[Path], root: Path = PACKAGE) -> str:
    """Hash of files: their bytes and their names relative to `root`, whatever the order of `paths`."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").digest()
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + content)
    return total.hexdigest()[:16]


def source_hash(*patterns: str) -> str:
    """Hash of the package's own source, or of its files that match `patterns`: which code ran, whatever git says."""
    found = {path for pattern in patterns or ("**/*.py", "**/*.yaml", "**/*.json") for path in PACKAGE.glob(pattern)}
    return hash_files(found)


def digest(path: Path) -> str:
    """Hash of a file's bytes, or of a folder's files and their names; `absent` where there is none.

    Recorded with results and stamps, as is that of `hash_files`, which combines names and bytes differently.
    """
    if not path.exists():
        return "absent"
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(file.relative_to(path.parent).as_posix().encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def code_version() -> str:
    """Commit of the clone, with `+changes` if tracked files differ; `unknown` outside a clone."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def library_versions() -> dict[str, str]:
    """Python's version and those of `LIBRARIES`; "absent" for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def hardware(on: str | None = None) -> str:
    """The GPU's name, or the CPU's with cores and memory. `on`: "cuda" or "cpu", what a run was told to use; if not
    given, a GPU is assumed to be used where there is one."""
    import psutil
    import torch

    if on != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_name()}, {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def footer(record: dict[str, Any]) -> str:
    """The last lines of a notebook."""
    libraries = ", ".join(f"{k} {v}" for k, v in record["libraries"].items())
    return (f"preset {record['preset']} ({record['config']}), seed {record['seed']}, code {record['code']} "
            f"(source {record['source']})\n{libraries}\n{record['hardware']}; {record['seconds']:.0f} s; "
            f"{record['date']}")
