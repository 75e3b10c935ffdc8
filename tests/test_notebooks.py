"""Every notebook runs at `smoke` from a clean kernel, in order, through papermill; and is committed with its output."""

import json

import nbformat
import pytest

from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.evaluation.records import read_records
from omnidiff_lite.precision import multiplies_bf16
from omnidiff_lite.reproduce import ROAD, declared_parameters, reproduce

NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def test_the_road_has_every_notebook_once():
    assert sorted(step.name for step in ROAD) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_executed_typed_and_short_celled(path):
    cells = code_cells(path)
    assert any(c.outputs for c in cells) and all(c.execution_count for c in cells), "commit it executed"
    assert not any(o.output_type == "error" for c in cells for o in c.outputs)
    declared = declared_parameters(path)
    assert (declared.get("preset"), declared.get("seed"), declared.get("overrides")) == (str, int, str), \
        "any key of the configuration can be set from papermill"
    assert max(len(c.source.splitlines()) for c in cells) <= 18
    assert "=" not in "".join(line.partition("#")[2] for line in cells[0].source.splitlines()), (
        "papermill cannot read it")


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """One whole run at smoke."""
    root = tmp_path_factory.mktemp("results")
    rows = reproduce("smoke", root=root)
    return Artifacts.of("smoke", root), {row["notebook"]: row for row in rows}


@pytest.mark.notebooks
@pytest.mark.parametrize("name", [step.name for step in ROAD])
def test_a_notebook_runs(road, name):
    artifacts, rows = road
    assert rows[name]["minutes"] > 0 and (artifacts.notebooks / f"{name}.ipynb").exists()


@pytest.mark.notebooks
def test_the_run_leaves_what_the_readme_promises(road):
    artifacts, rows = road
    most = 10 if multiplies_bf16("cpu") else 30  # minutes on two cores; training takes three times as long in float32
    assert sum(row["minutes"] for row in rows.values()) < most and max(row["peak_gib"] for row in rows.values()) < 6
    assert {p.stem for p in artifacts.tables.glob("*.md")} >= {"table1_speech", "table2_vision", "table3_sampling"}
    assert {p.stem for p in artifacts.tables.glob("*.csv")} >= {"table1_speech", "table2_vision", "table3_sampling"}
    assert list(artifacts.figures.glob("*.png"))
    assert list(artifacts.samples.glob("*.wav")) and list(artifacts.samples.glob("*.png"))
    report = (artifacts.dir / "report.html").read_text()
    assert all(word in report for word in ("Table", "<audio", "<img", "table1_speech", "00_quickstart"))
    assert sum(p.stat().st_size for p in artifacts.checkpoint.rglob("*") if p.is_file()) < 40 * 2**20


@pytest.mark.notebooks
def test_every_number_says_how_it_came_about(road):
    records = read_records(road[0].metrics)
    assert {r.table for r in records} >= {"table1_speech", "table2_vision", "table3_sampling", "ablation_decoding"}
    for record in records:
        assert record.source in ("ours", "released-code")
        assert record.provenance["seed"] == 0 and record.provenance["hardware"]
        assert record.value is not None or record.reason
    assert json.loads((road[0].dir / "config.json").read_text())["name"] == "smoke"


@pytest.mark.notebooks
def test_a_second_run_has_nothing_to_do(road, capsys):
    reproduce("smoke", root=road[0].root)
    assert capsys.readouterr().out.count("up to date") == len(ROAD)
