"""Run a study: every cell (variant, seed) once, each filed as soon as it is done.

    work/ablation/<study>/<key>.json    a cell: its metrics and seconds; written atomically
    work/ablation/stages/<key>/         a trained stage, shared by the cells that use it

Both are under `results/<preset>`.

A cell's key is a hash of all that decides it, so the same command resumes where it stopped, and a changed setting
reruns only what it affects. Everything is checked before anything runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnidiff_lite.ablation import decoding, training
from omnidiff_lite.ablation.standing import system_of
from omnidiff_lite.ablation.study import Study, Variant
from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.config import ConfigError, Preset, load_preset, to_dict
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.suite import finished_system
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.provenance import source_hash, tree_hash
from omnidiff_lite.weights import write_json

# The code that decides a cell's numbers, besides what decides a training step.
SOURCES = ("ablation/decoding.py", "ablation/measures.py", "ablation/training.py", "adapters.py", "backbone.py",
           "autoregression.py", "diffusion/*.py", "pipeline/*.py", "evaluation/*.py", "world/*.py", "tokenizers/*.py",
           "chat.py", "vocabulary.py", "media.py", "data/*.py", *training.SOURCES)


@dataclass(frozen=True)
class Cell:
    """One variant with one seed. `values`: for each metric, its items' sums [n, 2] if answers of the shipped checkpoint
    are decoded, else one number. `seconds`: of decoding and scoring; `stages`: of training each stage, by folder; other
    cells may share some of them."""

    variant: str
    seed: int
    values: dict[str, Any]
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """A finished study: its cells, row by row and seed by seed. `system`: which checkpoint it ran with (`standing`)."""

    study: Study
    cells: list[Cell]
    system: str = ""

    @property
    def minutes(self) -> float:
        """Training and scoring, over all runs of the study; a shared stage counts once, encoding data not at all."""
        stages = {folder: seconds for cell in self.cells for folder, seconds in cell.stages.items()}
        return (sum(cell.seconds for cell in self.cells) + sum(stages.values())) / 60

    @property
    def origin(self) -> dict[str, Any]:
        """For the provenance of its records."""
        return {"study": self.study.described(), "minutes": round(self.minutes, 2), "system": self.system}


def run_study(study: Study, preset: str | Path, overrides: dict[str, Any] | None = None,
              artifacts: Artifacts | None = None, seed: int = 0, progress: bool = True) -> Outcome:
    """Run what is left of a study, with seeds from `seed` on; returns all of it.

    Raises `ConfigError` before anything runs, naming study and variant; `MissingArtifact` for a run without a
    checkpoint.
    """
    overrides = overrides or {}
    artifacts = artifacts or Artifacts.of(load_preset(preset, overrides).name)
    plan = [(variant, checked(study, variant, preset, overrides)) for variant in study.rows]
    maker = _Decoding(artifacts) if study.kind == "decoding" else _Training(artifacts, progress)
    folder = artifacts.work / "ablation" / study.name
    folder.mkdir(parents=True, exist_ok=True)
    system = system_of(study, artifacts.dir)
    shared = {"source": source_hash(*SOURCES), "system": system, "tokenizers": maker.tokenizers}
    jobs = [(variant, own, seed + number, folder / f"{_key(study, variant, own, seed + number, shared)}.json")
            for number in range(study.seeds) for variant, own in plan]
    clock = _Clock(sum(not path.exists() for *_, path in jobs), len(jobs), print if progress else lambda line: None)
    for variant, own, number, path in jobs:
        if not path.exists():
            with clock.timed(f"{variant.name}, seed {number}"):
                write_json(path, maker.make(study, variant, number, own))
    cells = [Cell(variant.name, number, **json.loads(path.read_text())) for variant, _, number, path in jobs]
    order = [variant.name for variant in study.rows]
    return Outcome(study, sorted(cells, key=lambda cell: (order.index(cell.variant), cell.seed)), system)


def checked(study: Study, variant: Variant, preset: str | Path, overrides: dict[str, Any]) -> Preset:
    """The preset that a variant runs with. Raises `ConfigError` naming the study and the variant."""
    try:
        if study.kind == "training":
            own = training.preset_of(variant, preset, overrides)
            training.check(study, variant, own)
        else:
            own = load_preset(preset, overrides)
            decoding.check(study, variant, own)
        return own
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"study {study.name}, variant {variant.name!r}: {error}") from None


def _key(study: Study, variant: Variant, preset: Preset, seed: int, shared: dict[str, str]) -> str:
    """A hash of what decides the cell; no variant's name enters it."""
    tree = to_dict(preset)
    tree["training"] = {key: value for key, value in tree["training"].items() if key not in training.HOW}
    settings = {str(key): repr(value) for key, value in variant.settings.items()}
    return tree_hash({"kind": study.kind, "task": study.task, "metrics": sorted(study.metrics), "settings": settings,
                      "budget": to_dict(variant.budget), "preset": tree, "seed": seed, **shared})


class _Decoding:
    """Cells of the shipped checkpoint, which is loaded when first needed."""

    tokenizers = "the checkpoint's"

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.loaded: tuple[OmniDiffusion, Judges] | None = None

    def make(self, study: Study, variant: Variant, seed: int, preset: Preset) -> dict[str, Any]:
        self.loaded = self.loaded or finished_system(preset, self.artifacts)
        started = time.perf_counter()
        sums = decoding.run(study, variant, seed, *self.loaded, preset)
        values = {metric: np.asarray(rows, float).tolist() for metric, rows in sums.items()}
        return {"values": values, "seconds": time.perf_counter() - started, "stages": {}}


class _Training:
    """Cells trained here; where answers are decoded, with the checkpoint's judges."""

    def __init__(self, artifacts: Artifacts, progress: bool) -> None:
        self.trainer = training.Trainer.of(artifacts, progress)
        self.tokenizers = self.trainer.fingerprint

    def make(self, study: Study, variant: Variant, seed: int, preset: Preset) -> dict[str, Any]:
        folders = self.trainer.train(variant.budget, preset, seed)
        started = time.perf_counter()
        values = self.trainer.score(study, variant.budget, preset, seed, folders[-1])
        return {"values": values, "seconds": time.perf_counter() - started,
                "stages": {folder.name: training.training_seconds(folder) for folder in folders}}


class _Clock:
    """Reports what is running, how long it took, and roughly how long the rest will take."""

    def __init__(self, waiting: int, total: int, say: Callable[[str], None]) -> None:
        self.waiting, self.total, self.say, self.spent = waiting, total, say, []
        if waiting < total:
            say(f"{total - waiting} of {total} cells are done already")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent.append(time.perf_counter() - started)
        left = self.waiting - len(self.spent)
        self.say(f"{self.total - left}/{self.total} {name}: {self.spent[-1] / 60:.1f} min"
                 + (f"; about {left * np.mean(self.spent) / 60:.1f} min left" if left else ""))
