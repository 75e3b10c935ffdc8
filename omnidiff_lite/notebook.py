"""The start and end of every notebook: checked parameters, seed, artifacts, provenance footer.

    run = begin(globals())          # right after the `parameters` cell
    ...
    run.finish(records, "table1_speech")    # writes the metrics and prints the footer
"""

from __future__ import annotations

import ast
import difflib
import re
import time
import typing
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.config import Preset, load_preset, to_dict
from omnidiff_lite.evaluation.records import Record, with_provenance, write_records
from omnidiff_lite.provenance import footer, provenance
from omnidiff_lite.weights import write_json

# Without ipywidgets tqdm falls back to text, which suits executed notebooks; its warning is not needed.
warnings.filterwarnings("ignore", message="IProgress not found")

_SHELL = {"In", "Out", "get_ipython", "exit", "quit", "open"}


class ParameterError(ValueError):
    """A misspelt or wrongly typed notebook parameter; the message names it and those that exist."""


def check_parameters(declared: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that every given name is declared and every value has its declared type (an int may stand for a float).

    Papermill itself checks neither: it injects whatever it is given. Raises `ParameterError`.
    """
    for name, value in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            raise ParameterError(f"unknown parameter {name!r}" + (f": did you mean {close[0]!r}?" if close else "")
                                 + f" (this notebook has {', '.join(declared)})")
        kind = declared[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise ParameterError(f"parameter {name} is {value!r}, a {type(value).__name__}: give a {kind.__name__}")


def parse_overrides(given: str | Sequence[str]) -> dict[str, Any]:
    """"training.gamma=0.3 training.time=token" as a dictionary; or such items in a sequence, whose values may contain
    spaces. `:` may stand for `=`. Raises `ParameterError`."""
    pairs = {}
    for item in given.split() if isinstance(given, str) else given:
        key, sign, value = re.match("([^=:]*)([=:]?)(.*)", item).groups()
        if not sign or not key:
            raise ParameterError(f"override {item!r}: write key=value, as in training.gamma=0.3")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ParameterError(f"override {item!r}: {value!r} is no value; write key=value") from None
    return pairs


@dataclass
class Run:
    """One execution of a notebook."""

    preset: Preset
    seed: int
    artifacts: Artifacts
    started: float = field(default_factory=time.time)

    def provenance(self, **extra: Any) -> dict[str, Any]:
        return provenance(self.preset, self.seed, self.started, **extra)

    def finish(self, records: list[Record] | None = None, name: str = "", **extra: Any) -> None:
        """Write the records with their provenance to `metrics/<name>.json`, and print the footer.

        `extra`: goes into the provenance, such as `checkpoint`: how the model under test came about.
        """
        record = self.provenance(**extra)
        if records:
            path = write_records(self.artifacts.metrics / f"{name}.json", with_provenance(records, record))
            print(f"{len(records)} records: {path.relative_to(self.artifacts.root)}")
        print(footer(record))


def begin(namespace: dict[str, Any]) -> Run:
    """Check the parameters in `namespace` (the notebook's globals), load the preset, seed, set the plot style.

    The notebook's declared parameters are the annotated names in its parameters cell; anything else already defined
    was injected. Raises `ParameterError` or `ConfigError`.
    """
    declared = {name: _plain_type(hint) for name, hint in _annotations(namespace).items()}
    given = {name: value for name, value in namespace.items()
             if not name.startswith("_") and isinstance(value, (str, int, float, list, dict, type(None)))
             and name not in _SHELL}
    if any(isinstance(value, Run) for value in namespace.values()):  # rerun by hand: later cells' names are there too
        given = {name: value for name, value in given.items() if name in declared}
    check_parameters(declared, given)
    namespace.update({name: float(given[name]) for name, kind in declared.items() if kind is float and name in given})
    preset = load_preset(given.get("preset", "smoke"), parse_overrides(given.get("overrides", "")))
    run = Run(preset, given.get("seed", 0), Artifacts.of(preset.name))
    from omnidiff_lite.pipeline.settings import check_decodings  # imports tqdm: the filter above must come first

    check_decodings(preset)
    kept = run.artifacts.dir / "config.json"
    if not (given.get("overrides") and kept.exists()):  # overrides do not replace the preset's own record
        write_json(kept, to_dict(preset))
    _prepare(run.seed)
    return run


def _annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    """Annotated names: Python up to 3.13 keeps them; for later versions they are parsed from the cells that ran."""
    kept = namespace.get("__annotations__")
    if kept:
        return kept
    cells = [node for cell in namespace.get("In", []) for node in ast.parse(cell).body]
    return {n.target.id: ast.unparse(n.annotation) for n in cells if isinstance(n, ast.AnnAssign)}


def _plain_type(hint: Any) -> type:
    if isinstance(hint, str):
        hint = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}.get(hint, object)
    return typing.get_origin(hint) or hint


def _prepare(seed: int) -> None:
    import matplotlib.pyplot as plt
    import numpy as np
    import torch
    import transformers

    from omnidiff_lite.plots import STYLE

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(seed)
    np.random.seed(seed)
    plt.rcParams.update(STYLE)


