"""The road runs notebooks in order, skips what is up to date, stops with a clear message, and resumes from there."""

import json
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from omnidiff_lite import reproduce as road
from omnidiff_lite.artifacts import CLONE, Artifacts, MissingArtifact
from omnidiff_lite.config import ConfigError, load_preset
from omnidiff_lite.evaluation.aims import AIMS
from omnidiff_lite.freshness import PACKAGE, code_used
from omnidiff_lite.notebook import ParameterError, begin, check_parameters, parse_overrides
from omnidiff_lite.plan.bench import bench_file
from omnidiff_lite.plan.timing import bench_name
from omnidiff_lite.provenance import provenance
from omnidiff_lite.tokenizers import Tokenizers

PARAMETERS = 'preset: str = "smoke"  # which sizes\nseed: int = 0  # of everything random\noverrides: str = ""'
BEGIN = "from omnidiff_lite.artifacts import Artifacts\nartifacts = Artifacts.of(preset)"


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (PARAMETERS, *cells)])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def two_notebooks(tmp_path, monkeypatch):
    """A road of two: the first writes a number, the second reads it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder / "01_make.ipynb", BEGIN, "(artifacts.work / 'number.txt').write_text(str(seed))")
    write_notebook(folder / "02_use.ipynb", BEGIN,
                   "(artifacts.work / 'm.txt').write_text((artifacts.work / 'number.txt').read_text())")
    monkeypatch.setattr(road, "ROAD", (road.Step("01_make", makes=("work/number.txt",)),
                                       road.Step("02_use", ("work/number.txt",), ("work/m.txt",))))
    where = {"root": tmp_path / "results", "folder": folder}
    return lambda **options: road.reproduce("smoke", **where, **options), folder, tmp_path


def test_a_published_notebook_shows_the_run_that_its_parameters_name(two_notebooks, capsys):
    run, folder, _ = two_notebooks
    run(seed=3, publish=True)
    first = nbformat.read(folder / "01_make.ipynb", as_version=4)
    assert "seed: int = 3  # of everything random" in first.cells[0].source
    assert all(c.execution_count for c in first.cells) and len(first.cells) == 3, "executed, and nothing put in"
    capsys.readouterr()
    run(seed=3)
    assert capsys.readouterr().out.count("up to date") == 2, "publishing is no change"


def test_a_preset_of_ones_own_is_found_by_every_kernel(two_notebooks, monkeypatch):
    _, folder, home = two_notebooks
    (home / "mine.yaml").write_text("denoiser: {hidden_size: 64, heads: 4}")
    monkeypatch.chdir(home)
    write_notebook(folder / "01_make.ipynb", "from omnidiff_lite.notebook import begin\nrun = begin(globals())",
                   "(run.artifacts.work / 'number.txt').write_text(str(run.preset.denoiser.hidden_size))")
    road.reproduce("mine.yaml", root=home / "results", folder=folder, only=["01"])
    assert (home / "results" / "mine" / "work" / "number.txt").read_text() == "64"


def test_minutes_count_the_training_that_was_resumed(tmp_path):
    """What a log held before and still holds was trained before; what was begun afresh was not."""
    artifacts, step = Artifacts.of("smoke", tmp_path), road.Step("03", makes=("work/stage1",))
    artifacts.stage(1).mkdir(parents=True)

    def clock(*seconds):
        (artifacts.stage(1) / "log.csv").write_text("\n".join(["seconds", *map(str, seconds)]))
        return road._training_seconds(step, artifacts)

    assert road._resumed({}, clock(1.5, 60.25)) == 0
    assert road._resumed(clock(1.5, 60.25), clock(1.5, 60.25, 90.0)) == 60.25
    assert road._resumed(clock(1.5, 60.25, 70.0), clock(1.5, 60.25, 80.0)) == 60.25, (
        "the steps past its checkpoint are not")
    assert road._resumed(clock(1.5, 60.25), clock(1.25, 50.0)) == 0


def test_publishing_keeps_words_that_were_written_after_the_run(two_notebooks, capsys):
    run, folder, _ = two_notebooks
    run()
    path = folder / "01_make.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell("New words."))
    nbformat.write(notebook, path)
    capsys.readouterr()
    run(publish=True)
    assert capsys.readouterr().out.count("up to date") == 2, "words are no code"
    published = nbformat.read(path, as_version=4)
    assert [c.cell_type for c in published.cells] == ["code", "markdown", "code", "code"]
    assert published.cells[1].source == "New words." and published.cells[3].outputs


def test_a_notebook_that_shows_other_metrics_runs_again_when_they_change(two_notebooks, monkeypatch, capsys):
    run, _, tmp_path = two_notebooks
    monkeypatch.setattr(road, "ROAD", (road.Step("01_make", metrics=("table1",)), road.Step("02_use")))
    (tmp_path / "results/smoke/work").mkdir(parents=True)
    (tmp_path / "results" / "smoke" / "work" / "number.txt").write_text("1")
    run()
    other = tmp_path / "results" / "smoke" / "metrics" / "table1.json"
    other.write_text("[]")
    capsys.readouterr()
    run()
    out = capsys.readouterr().out
    assert "01_make: its code, parameters or inputs changed" in out and "02_use: up to date" in out


def test_the_recorded_timings_that_notebook_12_shows_are_declared():
    names = {f"results/full/metrics/{bench_name('full', 'cuda', 'bfloat16')}.json",
             f"results/cpu/metrics/{bench_file('cuda')}"}
    assert names <= set(next(step for step in road.ROAD if step.name == "12_full_scale").reads)
    assert all((road.CLONE / name).is_file() for name in names)


def test_the_table_of_aims_declares_the_metrics_that_it_reads():
    own = {"image_tokenizer", "answers", "any_to_any_cells", "inpainting", "headline_seeds"}
    asked = {key[0] for aim in AIMS for key in (aim.key, aim.less, aim.ceiling, aim.seeds) if key}
    assert asked - own == set(next(step for step in road.ROAD if step.name == "13_any_to_any").metrics)


def test_a_run_then_nothing_to_do_then_only_what_changed(two_notebooks, capsys):
    run, folder, tmp_path = two_notebooks
    rows = run()
    assert [r["notebook"] for r in rows] == ["01_make", "02_use"] and all(r["peak_gib"] > 0 for r in rows)
    assert (tmp_path / "results/smoke/report.html").exists()
    capsys.readouterr()
    run()
    assert capsys.readouterr().out.count("up to date") == 2

    run(seed=3)  # a parameter changed: both run, the second because its input changed
    out = capsys.readouterr().out
    assert "up to date" not in out and (tmp_path / "results" / "smoke" / "work" / "m.txt").read_text() == "3"

    run(seed=3, only=["02"], force=True)
    assert capsys.readouterr().out.count("02_use: forced") == 1

    (tmp_path / "results" / "smoke" / "work" / "number.txt").write_text("8")  # tampered with
    run(seed=3, only=["01"])
    assert "changed by something else" in capsys.readouterr().out


def test_a_failed_notebook_stops_the_road_and_the_next_call_resumes_there(two_notebooks, capsys):
    run, folder, tmp_path = two_notebooks
    write_notebook(folder / "02_use.ipynb", BEGIN, "1 / 0")
    with pytest.raises(road.RoadError, match=r"02_use failed in cell \d+: ZeroDivisionError") as error:
        run()
    partial = re.search(r"partial notebook: (\S+)", str(error.value))[1]
    assert Path(partial).exists()
    write_notebook(folder / "02_use.ipynb", BEGIN, "(artifacts.work / 'm.txt').write_text('0')")
    capsys.readouterr()
    run()
    out = capsys.readouterr().out
    assert "01_make: up to date" in out and "02_use: not run yet" in out


def test_a_missing_input_names_the_notebook_that_makes_it_or_at_full_size_the_command(two_notebooks, tmp_path):
    run, *_ = two_notebooks
    full = Artifacts.of("full", tmp_path)
    with pytest.raises(MissingArtifact, match="full/checkpoint is missing: .*omnidiff convert --system released/ "
                                              "--out"):
        full.require(full.checkpoint, "05_any")
    with pytest.raises(MissingArtifact, match="full/metrics/a.json is missing: run notebook 07"):
        full.require(full.metrics / "a.json", "07_any")
    with pytest.raises(MissingArtifact, match="run notebook 01_make first.*make reproduce"):
        run(only=["02"])


def test_only_what_a_notebook_imports_counts_as_its_code():
    used = {p.relative_to(PACKAGE).as_posix() for p in code_used("from omnidiff_lite import Denoiser")}
    assert {"backbone.py", "vocabulary.py", "config.py"} <= used and "reproduce.py" not in used


def test_an_unknown_notebook_is_named():
    with pytest.raises(road.RoadError, match="no notebook begins with '77'"):
        road.chosen(["77"])


@pytest.mark.parametrize("given, words", [
    ({"sed": 1}, "unknown parameter 'sed': did you mean 'seed'"), ({"seed": "one"}, "seed is 'one'.*give a int"),
    ({"seed": True}, "give a int"), ({"guidance": "3"}, "give a float")])
def test_wrong_parameters_are_named(given, words):
    with pytest.raises(ParameterError, match=words):
        check_parameters({"seed": int, "guidance": float}, given)


def test_begin_finds_a_misspelt_injected_parameter(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    cell = {"__annotations__": {"preset": str, "seed": int, "overrides": str},
            "preset": "smoke", "seed": 1, "overrides": ""}
    assert begin(dict(cell)).seed == 1
    with pytest.raises(ParameterError, match="stepz"):
        begin({**cell, "stepz": 3})
    changed = begin({**cell, "overrides": "training.gamma=0.3"})
    assert changed.preset.training.gamma == 0.3
    left = json.loads((changed.artifacts.dir / "config.json").read_text())
    assert left["training"]["gamma"] == 0.6, "the preset's records stay those of its own configuration"
    with pytest.raises(ConfigError, match="stepz"):
        begin({**cell, "overrides": "decoding.t2i.stepz=3"})
    with pytest.raises(ParameterError, match="write key=value"):
        parse_overrides("training.gamma")


def test_a_dying_kernel_is_no_success(two_notebooks):
    run, folder, _ = two_notebooks
    write_notebook(folder / "01_make.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(road.RoadError, match="the kernel stopped"):
        run(only=["01"])


def test_conda_takes_its_pins_from_the_same_file():
    lines = yaml.safe_load((CLONE / "environment.yml").read_text())["dependencies"]
    pip = next(line["pip"] for line in lines if isinstance(line, dict))
    assert pip[0] == "-r requirements.txt"
    pins = [line for line in (CLONE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", pin) for pin in pins)


def test_the_environment_is_the_pinned_one_or_within_the_ranges():
    """Every requirement has a pin, and the pin lies in the range that pyproject.toml allows."""
    import tomllib

    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (CLONE / "requirements.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + sum(project["optional-dependencies"].values(), []):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), text


def test_provenance_says_how_a_number_came_about():
    record = provenance(load_preset("smoke"), 3, time.time())
    assert record["seed"] == 3 and record["libraries"]["torch"] != "absent" and record["hardware"]
    assert json.loads(json.dumps(record)) == record
    other = provenance(load_preset("smoke", {"training.gamma": 0.5}), 3, time.time())
    assert other["config"] != record["config"]


def test_artifacts_know_where_things_are(tmp_path):
    artifacts = Artifacts.of("smoke", tmp_path)
    assert artifacts.metrics.is_dir() and artifacts.checkpoint == tmp_path / "smoke" / "checkpoint"


def test_the_tokenizers_of_a_checkpoint_stand_in_for_notebook_02(two_notebooks, monkeypatch):
    run, _, tmp_path = two_notebooks
    monkeypatch.setattr(road, "ROAD", (road.Step("01_make", makes=(road.TOKENIZERS,)),
                                       road.Step("02_use", (road.TOKENIZERS,), ("work/m.txt",))))
    artifacts, shipped = Artifacts.of("smoke", tmp_path / "results"), CLONE / "results" / "smoke" / "checkpoint"
    (artifacts.work / "number.txt").write_text("1")
    rows = run(tokenizers=shipped)
    assert [row["notebook"] for row in rows] == ["02_use"], "the first, which would have trained them, is left out"
    taken, own = (Tokenizers.from_pretrained(folder).fingerprint() for folder in (artifacts.tokenizers, shipped))
    assert taken == own
    with pytest.raises(road.RoadError, match="the preset smoke asks for .* leave --tokenizers out"):
        run(tokenizers=CLONE / "results" / "cpu" / "checkpoint")
    with pytest.raises(road.RoadError, match="takes the place of 01_make, the one notebook asked for"):
        run(tokenizers=shipped, only=["01"])


def test_minutes_of_notebooks_whose_work_is_gone_stay(two_notebooks):
    """A clone has results, and no work: one notebook run there must not wipe out what the others took."""
    run, _, tmp_path = two_notebooks
    run()
    shutil.rmtree(tmp_path / "results" / "smoke" / "work")
    run(only=["01"])
    rows = json.loads((tmp_path / "results" / "smoke" / "road.json").read_text())
    assert [row["notebook"] for row in rows] == ["01_make", "02_use"]
