"""The road: every notebook in order through papermill, skipping what is up to date.

A notebook is up to date when the hash of its code cells, its parameters, the preset, the package's code that it uses
(followed through imports) and its input files is that of its last finished run, and its outputs are still as it left
them. The stamp is written last, so an interrupted run resumes at the notebook that did not finish.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import nbformat

from omnidiff_lite import _HOMES
from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.config import Preset, load_preset, to_dict
from omnidiff_lite.notebook import check_parameters
from omnidiff_lite.weights import write_json

PACKAGE = Path(__file__).parent


class RoadError(RuntimeError):
    """A notebook that failed, or does not exist; the message says where and how to go on."""


@dataclass(frozen=True)
class Step:
    """A notebook, what it reads and makes under `results/<preset>/` (folders count whole), and files of the clone that
    it reads. Its tables, figures, samples and metrics are found when it ends."""

    name: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()  # sections of the preset that it does not use


CHECKPOINT = "checkpoint"
JUDGES = "judges"
ROAD = (
    Step("01_tokenization"),
    Step("02_training_the_tokenizers", makes=("work/tokenizers", JUDGES), ignores=("denoiser", "training", "decoding")),
    Step("03_stage1_vision_language", ("work/tokenizers",), ("work/stage1",)),
    Step("04_stage2_speech_vision_language", ("work/tokenizers", "work/stage1"), ("work/stage2",)),
    Step("05_stage3_speech_driven_visual_interaction", ("work/tokenizers", "work/stage1", "work/stage2"),
         ("work/stage3", CHECKPOINT)),
    Step("06_inference_tricks", (CHECKPOINT, JUDGES)),
    Step("07_table1_speech", (CHECKPOINT, JUDGES)),
    Step("08_table2_vision", (CHECKPOINT, JUDGES)),
    Step("09_table3_sampling", (CHECKPOINT, JUDGES)),
    Step("10_figures", (CHECKPOINT,)),
    Step("11_ablations", ("work/tokenizers",)),
    Step("12_full_scale", reads=("tests/golden", "omnidiff_lite/presets/full.yaml")),
    Step("13_any_to_any", (CHECKPOINT, JUDGES)),  # after 06 to 12: its table of aims reads what they measured
    Step("00_quickstart", (CHECKPOINT,)),  # first to read; runs last here, because it shows what the others made
)


def reproduce(preset_name: str, seed: int = 0, only: list[str] | None = None, force: bool = False,
              publish: bool = False, root: Path | None = None, folder: Path | None = None) -> list[dict[str, Any]]:
    """Run the road (or the notebooks whose names begin with one of `only`); returns one row per notebook.

    Raises `RoadError` at the first notebook that fails. `publish` copies the executed notebooks into `folder`.
    """
    preset = load_preset(preset_name)
    artifacts = Artifacts.of(preset.name, root)
    folder = folder or CLONE / "notebooks"
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two spinning threads on two cores starve the kernel
    rows = []
    for number, step in enumerate(chosen(only), 1):
        rows.append(_run_step(step, preset, seed, artifacts, folder, force, f"{number:>2}/{len(chosen(only))}"))
        if publish:
            _publish(artifacts.notebooks / f"{step.name}.ipynb", folder / f"{step.name}.ipynb",
                     {"preset": preset.name, "seed": seed})
    write_json(artifacts.dir / "road.json", _all_rows(artifacts))
    from omnidiff_lite.report import write_report

    print(f"report: {_short(write_report(artifacts))}")
    return rows


def chosen(only: list[str] | None) -> list[Step]:
    """The steps whose names begin with one of `only`. Raises `RoadError` where none does."""
    for prefix in only or []:
        if not any(step.name.startswith(prefix) for step in ROAD):
            raise RoadError(f"no notebook begins with {prefix!r}: choose from {', '.join(sorted(s.name for s in ROAD))}")
    return [step for step in ROAD if not only or any(step.name.startswith(prefix) for prefix in only)]


# --- one step -------------------------------------------------------------------------------------------------------

def _run_step(step: Step, preset: Preset, seed: int, artifacts: Artifacts, folder: Path, force: bool,
              label: str) -> dict[str, Any]:
    source = folder / f"{step.name}.ipynb"
    if not source.exists():
        raise RoadError(f"{_short(source)} is missing")
    for need in step.needs:
        artifacts.require(artifacts.dir / need, _maker(need))
    key = step_key(step, source, preset, seed, artifacts)
    stamp = _read_stamp(artifacts, step)
    reason = "forced" if force else _stale(step, stamp, key, artifacts)
    if reason is None:
        print(f"{label} {step.name}: up to date")
        return stamp
    print(f"{label} {step.name}: {reason}", flush=True)
    for made in step.makes if force else ():  # or a finished training would only be loaded
        shutil.rmtree(artifacts.dir / made, ignore_errors=True)
    started = time.time()
    row = _execute(step, source, preset, seed, artifacts, label)
    row |= {"key": key, "outputs": {made: digest(artifacts.dir / made) for made in _outputs(step, artifacts, started)}}
    write_json(_stamp_path(artifacts, step), row)
    return row


def _execute(step: Step, source: Path, preset: Preset, seed: int, artifacts: Artifacts, label: str) -> dict[str, Any]:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    given = {"preset": preset.name, "seed": seed}
    check_parameters(declared_parameters(source), given)
    partial, final = (artifacts.notebooks / f"{step.name}{suffix}.ipynb" for suffix in (".partial", ""))
    started = time.time()
    with PeakMemory() as memory, _results_in(artifacts.root):
        try:
            papermill.execute_notebook(
                str(source), str(partial), parameters=given, cwd=str(CLONE), kernel_name="python3",
                progress_bar={"desc": f"{label} {step.name}"}, coalesce_streams=True,
                extra_arguments=["--log-level=40"])
        except PapermillExecutionError as error:
            raise RoadError(f"{step.name} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n"
                            f"partial notebook: {_short(partial)}\n"
                            "mend it and run the same command: what is finished is skipped") from None
        except Exception as error:  # a kernel that died or timed out: papermill marks such a notebook as completed
            raise RoadError(f"{step.name}: the kernel stopped ({type(error).__name__}: {error}); out of memory?\n"
                            f"partial notebook: {_short(partial)}\nrun the same command to resume there") from None
    _write(_clean(nbformat.read(partial, as_version=4)), final)
    partial.unlink()
    return {"notebook": step.name, "minutes": round((time.time() - started) / 60, 2),
            "peak_gib": round(memory.peak / 2**30, 2)}


@contextmanager
def _results_in(root: Path) -> Iterator[None]:
    """Kernels started inside file their results under `root`."""
    before = os.environ.get("OMNIDIFF_RESULTS")
    os.environ["OMNIDIFF_RESULTS"] = str(root.resolve())
    try:
        yield
    finally:
        del os.environ["OMNIDIFF_RESULTS"]
        if before is not None:
            os.environ["OMNIDIFF_RESULTS"] = before


class PeakMemory:
    """Highest resident memory of this process and its children while the block runs, in bytes."""

    def __enter__(self) -> PeakMemory:
        import threading

        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        own = psutil.Process()
        while not self._done.wait(0.5):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    pass
            self.peak = max(self.peak, total)


def declared_parameters(notebook: Path) -> dict[str, type]:
    """Name -> type of the annotated assignments in the cell tagged `parameters`."""
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {node.target.id: kinds[ast.unparse(node.annotation)]
                    for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)}
    raise RoadError(f"{_short(notebook)} has no cell tagged 'parameters'")


# --- is it up to date? ----------------------------------------------------------------------------------------------

def step_key(step: Step, source: Path, preset: Preset, seed: int, artifacts: Artifacts) -> str:
    """Content hash of all that a notebook's run depends on."""
    cells = [c.source for c in nbformat.read(source, as_version=4).cells if c.cell_type == "code"]
    cells = [re.sub(r"(?m)^(preset|seed): .*", "", cell) for cell in cells]  # given, whatever the default
    used = {name: value for name, value in to_dict(preset).items() if name not in step.ignores}
    parts = {"cells": cells, "preset": used, "seed": seed,
             "code": {p.relative_to(PACKAGE).as_posix(): digest(p) for p in sorted(code_used("\n".join(cells)))},
             "inputs": {need: digest(artifacts.dir / need) for need in step.needs},
             "reads": {name: digest(CLONE / name) for name in step.reads}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _stale(step: Step, stamp: dict[str, Any] | None, key: str, artifacts: Artifacts) -> str | None:
    """Why a step must run, or None."""
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


def _outputs(step: Step, artifacts: Artifacts, started: float) -> tuple[str, ...]:
    """What a step has made: its folders, its executed notebook, and the shown files written since it `started`."""
    shown = [p for folder in (artifacts.metrics, artifacts.tables, artifacts.figures, artifacts.samples)
             for p in folder.rglob("*") if p.is_file() and p.stat().st_mtime >= started]
    return (*step.makes, f"notebooks/{step.name}.ipynb", *(p.relative_to(artifacts.dir).as_posix() for p in shown))


def _maker(need: str) -> str:
    return next(step.name for step in ROAD if need in step.makes)


def digest(path: Path) -> str:
    """Hash of a file's bytes, or of a folder's files and their names; `absent` where there is none."""
    if not path.exists():
        return "absent"
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(file.relative_to(path.parent).as_posix().encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def code_used(source: str) -> set[Path]:
    """Files of the package that `source` imports, directly or through others, and the data beside them."""
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

def _stamp_path(artifacts: Artifacts, step: Step) -> Path:
    folder = artifacts.work / "stamps"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{step.name}.json"


def _read_stamp(artifacts: Artifacts, step: Step) -> dict[str, Any] | None:
    try:
        return json.loads(_stamp_path(artifacts, step).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _all_rows(artifacts: Artifacts) -> list[dict[str, Any]]:
    stamps = (_read_stamp(artifacts, step) for step in ROAD)
    return [{k: s[k] for k in ("notebook", "minutes", "peak_gib")} for s in stamps if s]


def _publish(executed: Path, target: Path, given: dict[str, Any]) -> None:
    """Write an executed notebook as a source: the parameters that papermill put in become the defaults."""
    notebook = _clean(nbformat.read(executed, as_version=4))
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in given.items():
                cell.source = re.sub(rf"(?m)^({name}: \w+ = )(\"[^\"]*\"|\S+)", rf"\g<1>{json.dumps(value)}", cell.source)
    _write(notebook, target)


def _clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without this machine's paths and times in its metadata, and of a progress bar only how it ended."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    return notebook


def _write(notebook: nbformat.NotebookNode, target: Path) -> None:
    partial = target.with_suffix(".partial")
    nbformat.write(notebook, partial)
    shutil.move(partial, target)


def _short(path: Path) -> str:
    return str(path.relative_to(CLONE)) if path.is_relative_to(CLONE) else str(path)
