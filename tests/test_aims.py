"""The table of aims: read from records, in the right direction, and never reached by what was not measured."""

import json

import pytest

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.cli import main
from omnidiff_lite.evaluation.aims import AIMS, NOT_MEASURED, TOO_FEW, Aim, aims_markdown, aims_table
from omnidiff_lite.evaluation.records import Record, missing, write_records
from omnidiff_lite.notebook import begin
from omnidiff_lite.provenance import tree_hash
from omnidiff_lite.report import write_report

WER, RIGHT = ("table1_speech", "diffusion", "asr_wer"), ("answers", "diffusion", "sqa_right")
CONFIG = {"evaluation": {"steps": [64, 16, 4]}}
OURS = {"config": tree_hash(CONFIG)}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results, and how to write its metrics."""
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    artifacts = Artifacts.of("smoke")
    (artifacts.dir / "config.json").write_text(json.dumps(CONFIG))

    def write(*records, name="some"):
        write_records(artifacts.metrics / f"{name}.json", records)
        return artifacts
    return write


def record(key, value, reach=1.0, **changes):
    return Record(*key, value, value - reach, value + reach, **{"n": 200, "seeds": (0,), "provenance": OURS, **changes})


def row(artifacts, aim):
    found, = aims_table(artifacts, [aim]).to_dict("records")
    return found


@pytest.mark.parametrize("best, aim, value, answer", [
    ("low", 5, 4.9, "yes"), ("low", 5, 5, "yes"), ("low", 5, 95, "no"),
    ("high", 80, 81, "yes"), ("high", 80, 80, "yes"), ("high", 80, 20, "no")])
def test_an_aim_has_a_direction(results, best, aim, value, answer):
    found = row(results(record(WER, value)), Aim("quantity", WER, aim, best))
    assert found["reached"] == answer and (found["value"], found["n"], found["seeds"]) == (value, 200, (0,))
    assert found["asked"] == f"{'≤' if best == 'low' else '≥'} {aim} %" and found["shown"].startswith(f"{value:.1f} [")


def test_what_was_not_measured_is_not_reached(results):
    artifacts = results(missing(*WER, "every answer was silent"), record(RIGHT, 99, source="paper-v1"))
    for aim in (Aim("no value", WER, 5, "low"), Aim("no record", ("a", "b", "c"), 0), Aim("the paper's", RIGHT, 80),
                Aim("nothing to take off", RIGHT, 80, less=WER)):
        found = row(artifacts, aim)
        assert found["reached"] == found["shown"] == NOT_MEASURED and found["value"] is None


@pytest.mark.parametrize("n, answer", [(1, TOO_FEW), (199, TOO_FEW), (200, "yes")])
def test_few_items_reach_nothing(results, n, answer):
    artifacts = results(record(RIGHT, 99, n=n))
    assert row(artifacts, Aim("many", RIGHT, 80))["reached"] == answer
    assert row(artifacts, Aim("cells", RIGHT, 80, items=1))["reached"] == "yes"
    both = results(record(RIGHT, 99), record(WER, 99, n=n))
    assert row(both, Aim("a difference", RIGHT, 5, "low", less=WER))["reached"] == answer


@pytest.mark.parametrize("provenance", [{}, {"config": "another"}])
def test_numbers_of_another_configuration_are_not_this_runs(results, provenance):
    artifacts = results(record(RIGHT, 99, provenance=provenance), record(WER, 1))
    assert row(artifacts, Aim("of another", RIGHT, 80))["reached"] == NOT_MEASURED
    assert row(artifacts, Aim("of this", WER, 5, "low"))["reached"] == "yes"


def test_the_hash_of_a_run_is_that_of_the_configuration_it_left(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    run = begin({"preset": "cpu", "__annotations__": {"preset": str}})
    left = json.loads((run.artifacts.dir / "config.json").read_text())
    assert run.provenance()["config"] == tree_hash(left)


def test_an_empty_run_reaches_nothing(results):
    table = aims_table(results())
    assert set(table["reached"]) == {NOT_MEASURED} and len(table) == len(AIMS)
    assert aims_markdown(table).count(NOT_MEASURED) == 2 * len(AIMS)


def test_a_difference_of_two_records_and_its_widest_interval(results):
    full, fewer = (("table3_sampling", f"diffusion: text-to-image, {n} steps", "image_all_right") for n in (64, 16))
    aim = Aim("lost at {quarter} of {full}", ("table3_sampling", "diffusion: text-to-image, {full} steps", full[2]), 5,
              "low", "points", less=("table3_sampling", "diffusion: text-to-image, {quarter} steps", full[2]),
              base=("high", 85))
    found = row(results(record(full, 90, 2), record(fewer, 86, 3, n=300, seeds=(1,))), aim)
    assert (found["value"], found["low"], found["high"], found["n"], found["seeds"]) == (4, -1, 9, 200, (0, 1))
    assert found["reached"] == "yes" and found["aim"] == "lost at 16 of 64"
    assert row(results(record(full, 90), record(fewer, 84)), aim)["reached"] == "no"
    assert row(results(record(full, 2), record(fewer, 2)), aim)["reached"] == "no", "two bad values differ little"
    assert row(results(record(full, 90)), aim)["reached"] == NOT_MEASURED


def test_a_difference_paired_by_item_goes_before_that_of_two_intervals(results):
    full, fewer, both = (("table3_sampling", f"diffusion: text-to-image, {n}", "image_all_right")
                         for n in ("64 steps", "16 steps", "64 steps minus 16 steps"))
    aim = Aim("lost", full, 5, "low", "points", less=fewer, paired=both, base=("high", 85))
    found = row(results(record(full, 90, 2), record(fewer, 86, 3), record(both, 4, 0.5)), aim)
    assert (found["value"], found["low"], found["high"], found["reached"]) == (4, 3.5, 4.5, "yes")
    assert row(results(record(full, 80), record(fewer, 76), record(both, 4)), aim)["reached"] == "no", "of at least 85"


def test_the_ceiling_and_the_seeds_stand_beside_the_value(results):
    ceiling, seeds = ("answers", "real data (ceiling)", "sqa_right"), ("headline_seeds", "diffusion", "sqa_right")
    aim = Aim("spoken", RIGHT, 70, ceiling=ceiling, seeds=seeds)
    found = row(results(record(RIGHT, 71), record(ceiling, 98), record(seeds, 72, n=3, seeds=(0, 1, 2))), aim)
    assert found["ceiling"] == "98.0 [97.0, 99.0]" and found["over seeds"] == "72.0 [71.0, 73.0], seeds 0, 1, 2"
    alone = Record(*RIGHT, 71.0, n=200, reason="no interval: all items are alike", provenance=OURS)
    assert row(results(alone), aim)["shown"] == "71.0 [no interval: all items are alike]"


def test_the_aims_name_cells_that_the_notebooks_write():
    """Every key is one of a table that exists; labels and keys are filled in without a leftover brace."""
    tables = {"image_tokenizer", "table1_speech", "table2_vision", "table3_sampling", "answers", "any_to_any_cells",
              "inpainting", "headline_seeds"}
    assert {key[0] for aim in AIMS for key in (aim.key, aim.less, aim.ceiling, aim.seeds) if key} == tables
    assert len({aim.label for aim in AIMS}) == len(AIMS) and all(aim.base for aim in AIMS if aim.less)


def test_the_report_and_the_command_line_show_it(results, capsys):
    artifacts = results(record(RIGHT, 85), record(WER, 50))
    assert "spoken QA: text answer right" in write_report(artifacts).read_text()
    assert main(["table", "aims", "--preset", "smoke"]) == 0
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert "| yes " in lines["spoken QA: text answer right"] and "| no " in lines["speech recognition: WER"]
    assert not any("{" in line for line in lines)
