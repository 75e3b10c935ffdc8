"""The road: every notebook in order through papermill, skipping what is up to date.

A notebook is up to date if the hash of its code cells, its parameters, the preset, the package code that it uses
(followed through imports) and its input files equals that of its last finished run, and its outputs are still as it
left them (`freshness.py`). The stamp is written last, so an interrupted run resumes at the unfinished notebook.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import nbformat

from omnidiff_lite.ablation.study import shipped_studies
from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.config import Preset, load_preset, preset_names
from omnidiff_lite.files import written_whole
from omnidiff_lite.freshness import Step, outputs, read_stamp, stale, stamp_path, step_key
from omnidiff_lite.measure import PeakMemory
from omnidiff_lite.notebook import check_parameters
from omnidiff_lite.pipeline.settings import check_decodings
from omnidiff_lite.provenance import digest
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.training.log import read_log
from omnidiff_lite.vocabulary import Vocabulary
from omnidiff_lite.weights import write_json


class RoadError(RuntimeError):
    """A notebook that failed or does not exist; the message says where, and how to continue."""


CHECKPOINT = "checkpoint"
TOKENIZERS = "work/tokenizers"
JUDGES = "judges"
TWIN = "twin"
ROAD = (
    Step("01_tokenization"),
    Step("02_training_the_tokenizers", makes=(TOKENIZERS, JUDGES), ignores=("denoiser", "training", "decoding")),
    Step("03_stage1_vision_language", (TOKENIZERS,), ("work/stage1",)),
    Step("04_stage2_speech_vision_language", (TOKENIZERS, "work/stage1"), ("work/stage2",)),
    Step("05_stage3_speech_driven_visual_interaction", (TOKENIZERS, "work/stage1", "work/stage2"),
         ("work/stage3", CHECKPOINT), uses=("alone",)),
    Step("14_autoregressive_twin", (CHECKPOINT,), ("work/twin", TWIN)),
    Step("06_inference_tricks", (CHECKPOINT, JUDGES), uses=(TWIN,), metrics=("bench",)),
    Step("07_table1_speech", (CHECKPOINT, JUDGES), uses=(TWIN,)),
    Step("08_table2_vision", (CHECKPOINT, JUDGES), uses=(TWIN,)),
    Step("09_table3_sampling", (CHECKPOINT, JUDGES), uses=(TWIN,), metrics=("bench",)),
    Step("10_figures", (CHECKPOINT,), uses=(TWIN,)),
    Step("15_digest_claims", (CHECKPOINT, JUDGES), uses=(TWIN,)),
    Step("11_ablations", (CHECKPOINT, JUDGES),
         reads=("omnidiff_lite/ablation/studies", "omnidiff_lite/ablation/differences.yaml"),
         metrics=tuple(f"ablation_{name}" for name in shipped_studies())),
    Step("12_full_scale",
         reads=("tests/golden", "omnidiff_lite/presets/full.yaml", "omnidiff_lite/presets/smoke.yaml",
                "results/full/metrics/bench_full_cuda_bfloat16.json", "results/cpu/metrics/bench_cuda.json")),
    Step("13_any_to_any", (CHECKPOINT, JUDGES), metrics=("table1_speech", "table2_vision", "table3_sampling")),
    Step("00_quickstart", (CHECKPOINT,)),  # first to read; runs last here, because it shows what the others made
)


def reproduce(preset_name: str, seed: int = 0, only: list[str] | None = None, force: bool = False,
              publish: bool = False, root: Path | None = None, folder: Path | None = None,
              tokenizers: Path | None = None) -> list[dict[str, Any]]:
    """Run the road (or the notebooks whose names begin with one of `only`); returns one row per notebook.

    `publish` puts their outputs into `folder`, and the measurements into the README. `tokenizers`: a checkpoint whose
    tokenizers are used in place of notebook 02's, which is left out. Raises `RoadError` at the first notebook that
    fails, or for tokenizers whose sizes are not the preset's.
    """
    preset = load_preset(preset_name)
    check_decodings(preset)
    named = preset_name if preset_name in preset_names() else str(Path(preset_name).resolve())  # kernels run elsewhere
    artifacts = Artifacts.of(preset.name, root)
    folder = folder or CLONE / "notebooks"
    if tokenizers:
        _take_tokenizers(tokenizers, preset, artifacts)
    rows, steps = [], [step for step in chosen(only) if not (tokenizers and TOKENIZERS in step.makes)]
    if not steps:
        raise RoadError(f"--tokenizers takes the place of {_maker(TOKENIZERS)}, the one notebook asked for: leave one "
                        "of the two out")
    for number, step in enumerate(steps, 1):
        rows.append(_run_step(step, preset, named, seed, artifacts, folder, force, f"{number:>2}/{len(steps)}"))
        if publish:
            _publish(artifacts.notebooks / f"{step.name}.ipynb", folder / f"{step.name}.ipynb",
                     {"preset": preset.name, "seed": seed})
    write_json(artifacts.road, _all_rows(artifacts))
    from omnidiff_lite.report import write_report

    print(f"report: {_short(write_report(artifacts))}")
    if publish and folder == CLONE / "notebooks":
        from omnidiff_lite.readme import update

        update()
    return rows


def chosen(only: list[str] | None) -> list[Step]:
    """The steps whose names begin with one of `only`. Raises `RoadError` for one that begins no name."""
    for prefix in only or []:
        if not any(step.name.startswith(prefix) for step in ROAD):
            raise RoadError(f"no notebook begins with {prefix!r}: choose from "
                            f"{', '.join(sorted(s.name for s in ROAD))}")
    return [step for step in ROAD if not only or any(step.name.startswith(prefix) for prefix in only)]


def _take_tokenizers(source: Path, preset: Preset, artifacts: Artifacts) -> None:
    """Save a finished system's tokenizers where notebook 02 would. Judges are in `results/<preset>/judges`, as ever."""
    found = Tokenizers.from_pretrained(source, device="cpu")
    wanted = Vocabulary.small(preset.text_tokenizer.size, preset.speech_tokenizer.codes, preset.image_tokenizer.codes)
    if found.vocabulary != wanted:
        raise RoadError(f"{_short(source)} has {found.vocabulary}, the preset {preset.name} asks for {wanted}: name a "
                        "checkpoint of this preset, or leave --tokenizers out, and notebook 02 trains them")
    found.save_pretrained(artifacts.tokenizers)


def _maker(need: str) -> str:
    return next(step.name for step in ROAD if need in step.makes)


# --- one step -------------------------------------------------------------------------------------------------------

def _run_step(step: Step, preset: Preset, named: str, seed: int, artifacts: Artifacts, folder: Path, force: bool,
              label: str) -> dict[str, Any]:
    source = folder / f"{step.name}.ipynb"
    if not source.exists():
        raise RoadError(f"{_short(source)} is missing")
    for need in step.needs:
        artifacts.require(artifacts.dir / need, _maker(need))
    key = step_key(step, source, preset, seed, artifacts)
    stamp = read_stamp(artifacts, step)
    reason = "forced" if force else stale(stamp, key, artifacts)
    if reason is None:
        print(f"{label} {step.name}: up to date")
        return stamp
    print(f"{label} {step.name}: {reason}", flush=True)
    for made in step.makes if force else ():  # else a finished training would merely be loaded
        shutil.rmtree(artifacts.dir / made, ignore_errors=True)
    started, before = time.time(), _training_seconds(step, artifacts)
    row = _execute(step, source, named, seed, artifacts, label)
    row["minutes"] = round(row["minutes"] + _resumed(before, _training_seconds(step, artifacts)) / 60, 2)
    row |= {"key": key, "outputs": {made: digest(artifacts.dir / made) for made in outputs(step, artifacts, started)}}
    write_json(stamp_path(artifacts, step), row)
    return row


def _execute(step: Step, source: Path, preset: str, seed: int, artifacts: Artifacts, label: str) -> dict[str, Any]:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    given = {"preset": preset, "seed": seed}
    check_parameters(declared_parameters(source), given)
    partial, final = (artifacts.notebooks / f"{step.name}{suffix}.ipynb" for suffix in (".partial", ""))
    started = time.time()
    with PeakMemory(children=True, every=0.5) as memory, _results_in(artifacts.root):
        try:
            papermill.execute_notebook(
                str(source), str(partial), parameters=given, cwd=str(CLONE), kernel_name="python3",
                progress_bar={"desc": f"{label} {step.name}"}, coalesce_streams=True,
                extra_arguments=["--log-level=40"])
        except PapermillExecutionError as error:
            raise RoadError(f"{step.name} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n"
                            f"partial notebook: {_short(partial)}\n"
                            "mend it and run the same command: what is finished is skipped") from None
        except Exception as error:  # the kernel died or timed out: papermill marks such a notebook as completed
            raise RoadError(f"{step.name}: the kernel stopped ({type(error).__name__}: {error}); out of memory?\n"
                            f"partial notebook: {_short(partial)}\nrun the same command to resume there") from None
    _write(_clean(nbformat.read(partial, as_version=4)), final)
    partial.unlink()
    return {"notebook": step.name, "minutes": round((time.time() - started) / 60, 2),
            "peak_gib": round(memory.peak / 2**30, 2)}


def _training_seconds(step: Step, artifacts: Artifacts) -> dict[str, list[float]]:
    """The clock of every training log in what a step makes, row by row."""
    return {made: read_log(log)["seconds"].tolist() for made in step.makes
            if (log := artifacts.dir / made / "log.csv").exists()}


def _resumed(before: dict[str, list[float]], after: dict[str, list[float]]) -> float:
    """Seconds of earlier training that a run resumed from: they count towards what its result took."""
    return sum(clock[-1] for made, found in after.items()
               if (clock := _common(before.get(made, []), found)))


def _common(first: list[float], second: list[float]) -> list[float]:
    return [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second))]


@contextmanager
def _results_in(root: Path) -> Iterator[None]:
    """Kernels started inside this block put their results under `root`."""
    before = os.environ.get("OMNIDIFF_RESULTS")
    os.environ["OMNIDIFF_RESULTS"] = str(root.resolve())
    try:
        yield
    finally:
        del os.environ["OMNIDIFF_RESULTS"]
        if before is not None:
            os.environ["OMNIDIFF_RESULTS"] = before


def declared_parameters(notebook: Path) -> dict[str, type]:
    """Name -> type of the annotated assignments in the cell tagged `parameters`."""
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {node.target.id: kinds[ast.unparse(node.annotation)]
                    for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)}
    raise RoadError(f"{_short(notebook)} has no cell tagged 'parameters'")


# --- what it leaves -------------------------------------------------------------------------------------------------

def _all_rows(artifacts: Artifacts) -> list[dict[str, Any]]:
    """One row per notebook that ran, in road order; rows of runs whose work is gone stay as they were."""
    path = artifacts.road
    rows = {row["notebook"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for stamp in filter(None, (read_stamp(artifacts, step) for step in ROAD)):
        rows[stamp["notebook"]] = {key: stamp[key] for key in ("notebook", "minutes", "peak_gib")}
    return [rows[step.name] for step in ROAD if step.name in rows]


def _publish(executed: Path, source: Path, given: dict[str, Any]) -> None:
    """Put an executed notebook's outputs into its source, and make the parameters that papermill injected the
    defaults; the text stays."""
    notebook, done = nbformat.read(source, as_version=4), _clean(nbformat.read(executed, as_version=4))
    ran = [c for c in done.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
    for cell, run in zip((c for c in notebook.cells if c.cell_type == "code"), ran, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
        if "parameters" in cell.metadata.get("tags", []):
            for name, value in given.items():
                pattern = rf"(?m)^({name}: \w+ = )(\"[^\"]*\"|\S+)"
                cell.source = re.sub(pattern, rf"\g<1>{json.dumps(value)}", cell.source)
    _write(notebook, source)


def _clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop this machine's paths and times from the metadata, and all but the last state of a progress bar."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    return notebook


def _write(notebook: nbformat.NotebookNode, target: Path) -> None:
    with written_whole(target) as partial:
        nbformat.write(notebook, partial)


def _short(path: Path) -> str:
    return str(path.relative_to(CLONE)) if path.is_relative_to(CLONE) else str(path)
