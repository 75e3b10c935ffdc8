"""A declared study: one question, a base, what each variant changes, and what may be concluded. One YAML file.

    name: steps_speech
    question: How few steps may speech take?
    kind: decoding                       # with the shipped checkpoint; or `training`, from fresh weights
    task: tts                            # what is decoded
    base: {steps: 0.5}
    variants:
      a quarter of the length: {steps: 0.25}
    budget: {items: 100}
    metrics: [tts_wer, passes]           # the figure shows the first
    conclude: What a reader may conclude. What not.

Keys of a decoding study are those of `DecodingConfig`, `style`, and `lengths.` with a field of `AnswerLengths`; those
of a training study are all dotted keys of the configuration. Both take `budget.` with a field of `Budget`, where a
variant needs its own. Instead of `variants`, a `grid` crosses two keys, each with its values.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from omnidiff_lite.strict import ConfigError, from_dict, to_dict

SHIPPED = Path(str(files("omnidiff_lite.ablation") / "studies"))
BUDGET = "budget."
LIKE_BASE = "base"


@dataclass(frozen=True)
class Budget:
    """How a cell is made, and what it may take; 0 is the preset's own number."""

    items: int = 0  # test samples decoded; in a training study also the validation samples of each task
    stages: tuple[int, ...] = (1,)  # of training, one after the other
    steps: int = 0  # of each stage
    rows: int = 0  # packed rows per step
    samples: int = 0  # training samples of each task in the mix
    start: Literal["nothing", "checkpoint"] = "nothing"  # fresh weights, or the shipped denoiser's
    causal: bool = False  # the autoregressive twin in place of the diffusion model

    def __post_init__(self) -> None:
        for name in ("items", "steps", "rows", "samples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not self.stages or not set(self.stages) <= {1, 2, 3}:
            raise ConfigError(f"stages: expected some of 1, 2, 3, got {list(self.stages)}")


@dataclass(frozen=True)
class Variant:
    """One row of a study: its `settings` (base and changes together), its budget, and the row it is compared with."""

    name: str
    settings: dict[str, Any]
    budget: Budget
    against: str | None


@dataclass(frozen=True)
class Study:
    """A study as read from YAML. Raises `ConfigError` for what does not fit together."""

    name: str
    question: str
    kind: Literal["training", "decoding"]
    metrics: tuple[str, ...]
    conclude: str
    task: str = ""  # of a decoding study
    picture_tokens: int = 0  # per picture, as its counts assume; a preset with another number is refused; 0: any
    base: dict[str, Any] = field(default_factory=dict)
    baseline: str = LIKE_BASE  # what the base is called in tables and figures
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    seeds: int = 1
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ConfigError(f"name: expected small letters, digits and _, got {self.name!r}")
        if bool(self.variants) == bool(self.grid):
            raise ConfigError("give either variants or a grid")
        if self.grid and (len(self.grid) != 2 or not all(self.grid.values())):
            raise ConfigError("grid: expected two keys with a list of values each")
        if self.baseline in self.variants:
            raise ConfigError(f"variants: {self.baseline!r} is what the base is called; name the variant otherwise")
        if self.seeds < 1 or not self.metrics:
            raise ConfigError("give at least one seed and one metric")
        if (self.kind == "decoding") != bool(self.task):
            raise ConfigError("task: a decoding study names the task that is decoded, a training study none")

    @cached_property
    def rows(self) -> list[Variant]:
        """The base, then each variant, compared with it. For a grid, every combination, compared with the first value
        of the first key at the same value of the second: the effect of the first key, given the second."""
        if self.grid:
            return [self._crossed(a, b) for b, a in product(*reversed(self.grid.values()))]
        return [self._variant(self.baseline, {}, None),
                *(self._variant(name, changes, self.baseline) for name, changes in self.variants.items())]

    def _crossed(self, a: Any, b: Any) -> Variant:
        (first, values), (second, _) = self.grid.items()
        name, against = (f"{_short(first)} {value}, {_short(second)} {b}" for value in (a, values[0]))
        return self._variant(name, {first: a, second: b}, None if name == against else against)

    def _variant(self, name: str, changes: dict[str, Any], against: str | None) -> Variant:
        together = self.base | changes
        settings = {key: value for key, value in together.items() if not key.startswith(BUDGET)}
        own = {key.removeprefix(BUDGET): value for key, value in together.items() if key.startswith(BUDGET)}
        try:
            return Variant(name, settings, from_dict(Budget, to_dict(self.budget) | own, "budget"), against)
        except ConfigError as error:
            raise ConfigError(f"variant {name!r}: {error}") from None

    def described(self) -> dict[str, Any]:
        """The study as plain values fit for JSON: what the records carry."""
        return json.loads(json.dumps(to_dict(self)))


def _short(key: str) -> str:
    """The last part of a dotted key, as words."""
    return key.rsplit(".", 1)[-1].replace("_", " ")


def shipped_studies() -> dict[str, Path]:
    """Name -> file of the studies in the package."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def read_study(source: str | Path) -> Study:
    """A study by its file, by the name of a shipped one, or as YAML text (of more than one line).

    Strict: an unknown key, a wrong type or invalid YAML raises a one-line `ConfigError` that names the study.
    """
    path = shipped_studies().get(str(source), Path(source)) if "\n" not in str(source) else None
    where = str(path.name) if path else "study"
    if path and not path.is_file():
        raise ConfigError(f"no study {str(source)!r}: give a .yaml file, or one of {', '.join(shipped_studies())}")
    try:
        tree = yaml.safe_load(path.read_text() if path else str(source))
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    try:
        study = from_dict(Study, tree)
        study.rows  # also of variants whose budget does not fit
        return study
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _refuse_own(study: Study, key: str) -> None:
    own = [name for name, changes in study.variants.items() if key in changes]
    places = [*(["base"] if key in study.base else []), *(["grid"] if key in study.grid else []),
              *(f"variant {name!r}" for name in own)]
    if places:
        raise ConfigError(f"{key}: set by the study {study.name} itself, in {' and '.join(places)}; to change it there "
                          "too, edit a copy of its .yaml file and run that")


def adjusted(study: Study, seeds: int | None = None, budget: dict[str, Any] | None = None) -> Study:
    """The study with another number of seeds and another budget. Raises `ConfigError`, also for a part of the budget
    that a variant sets itself: only the other variants would change, and (say) unequal numbers of steps be compared."""
    for key in budget or {}:
        _refuse_own(study, BUDGET + key)
    changed = dataclasses.replace(study, budget=from_dict(Budget, to_dict(study.budget) | (budget or {}), "budget"))
    return changed if seeds is None else dataclasses.replace(changed, seeds=seeds)
