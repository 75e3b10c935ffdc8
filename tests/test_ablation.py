"""Studies: read strictly, run cell by cell, killed and resumed, with effects paired by item or by seed."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
import yaml
from matplotlib.figure import Figure

from omnidiff_lite import plots
from omnidiff_lite.ablation import runner, training
from omnidiff_lite.ablation.differences import Difference, difference_table, differences
from omnidiff_lite.ablation.measures import COLUMNS, check_metric, column_sums
from omnidiff_lite.ablation.results import (INTERACTION, effects, finished_studies, grid_frame, study_figure,
                                            study_of, study_records, summary)
from omnidiff_lite.ablation.runner import Cell, Outcome, checked, run_study
from omnidiff_lite.ablation.standing import ANOTHER, HERE, UNKNOWN, checkpoint_of, system_of
from omnidiff_lite.ablation.study import Budget, adjusted, read_study, shipped_studies
from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.chat import TASKS
from omnidiff_lite.cli import main
from omnidiff_lite.config import ConfigError, load_preset, to_dict
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.diffusion.filters import ORDERS, order
from omnidiff_lite.evaluation.records import Record, read_records, with_provenance, write_records
from omnidiff_lite.evaluation.statistics import seed_interval
from omnidiff_lite.training.checkpoint import Checkpoints

DECODING = {"name": "few_steps", "question": "How few?", "kind": "decoding", "task": "text_qa", "base": {"steps": 4},
            "variants": {"half": {"steps": 2}}, "budget": {"items": 3},
            "metrics": ["passes", "text_qa_right", "pads", "length_error"], "conclude": "Yes. No."}
TRAINING = {"name": "pads", "question": "Pads?", "kind": "training", "base": {"training.stage1.mix": {"text_qa": 1.0}},
            "variants": {"gamma 1": {"training.gamma": 1.0}}, "metrics": ["masked_loss", "loss_text_qa"],
            "budget": {"items": 4, "steps": 60, "rows": 2, "samples": 8}, "conclude": "Yes. No."}


def text(tree: dict, **changes: object) -> str:
    return yaml.safe_dump(tree | changes)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree, changes, words", [
    (DECODING, {"variant": {}}, "unknown key 'variant'; did you mean 'variants'"),
    (DECODING, {"seeds": "three"}, "seeds: expected int"),
    (DECODING, {"kind": "guessing"}, "kind: 'guessing' is none of"),
    (DECODING, {"metrics": []}, "at least one seed and one metric"),
    (DECODING, {"metrics": ["wer"]}, "metric 'wer' of task 'text_qa' is none of"),
    (DECODING, {"task": "singing"}, "task 'singing' is none of"),
    (DECODING, {"task": ""}, "a decoding study names the task"),
    (DECODING, {"name": "../elsewhere"}, "small letters"),
    (DECODING, {"grid": {"steps": [1], "top_p": [0.5]}}, "either variants or a grid"),
    (DECODING, {"variants": {}, "grid": {"steps": [1, 2]}}, "two keys"),
    (DECODING, {"variants": {"base": {}}}, "what the base is called"),
    (DECODING, {"variants": {"half": {"stepz": 2}}}, "variant 'half': unknown key 'stepz'; did you mean 'steps'"),
    (DECODING, {"variants": {"half": {"top_p": "most"}}}, "variant 'half': top_p: expected float"),
    (DECODING, {"variants": {"half": {"top_p": 7.0}}}, "variant 'half': top_p: expected above 0"),
    (DECODING, {"variants": {"half": {"length": 7}}}, "length: given by the pipeline"),
    (DECODING, {"variants": {"half": {"lengths.txt": 7}}}, "unknown key 'txt'"),
    (DECODING, {"variants": {"half": {"prefill": {0.5: "nonsense"}}}}, "no token 'nonsense'"),
    (DECODING, {"variants": {"half": {"budget.items": -1}}}, "items: expected at least 0"),
    (DECODING, {"metrics": ["latency_s"]}, "metric 'latency_s' of task 'text_qa' is none of"),
    (DECODING, {"picture_tokens": 256}, "for pictures of 256 tokens, those of the preset smoke have 64"),
    (TRAINING, {"base": {"training.loss_weight": "bound", "training.stage1.evenness": 0.5}},
     "evenness, which weighs them by answer length too, is above 0; set training.stage1.evenness to 0"),
    (TRAINING, {"variants": {"x": {"training.gama": 1.0}}}, "did you mean 'gamma'"),
    (TRAINING, {"variants": {"x": {"training.gamma": 2.0}}}, "training.gamma: expected 0 to 1, got 2"),
    (TRAINING, {"variants": {"x": {"training.stage1.rows": "many"}}}, "training.stage1.rows: expected int"),
    (TRAINING, {"metrics": ["loss_tts"]}, "no stage trains 'tts'"),
    (TRAINING, {"metrics": ["tts.tts_wer"]}, "no stage trains 'tts'"),
    (TRAINING, {"metrics": ["text_qa.tts_wer"]}, "metric 'tts_wer' of task 'text_qa'"),
    (TRAINING, {"metrics": ["perplexity"]}, "metric 'perplexity': expected loss"),
    (TRAINING, {"variants": {"x": {"budget.causal": True}}}, "a causal denoiser knows no masks"),
    (TRAINING, {"budget": {"stages": [4]}}, "budget.stages: expected some of 1, 2, 3"),
])
def test_what_does_not_fit_is_one_clear_error_before_anything_runs(tmp_path, tree, changes, words):
    with pytest.raises(ConfigError) as error:  # there is nothing to run with, which would be another error
        run_study(read_study(text(tree, **changes)), "smoke", artifacts=Artifacts.of("smoke", tmp_path))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_no_yaml_and_no_file_are_told():
    with pytest.raises(ConfigError, match="not YAML"):
        read_study("name: [\n")
    with pytest.raises(ConfigError, match="no study 'nothing_of_the_kind': give a .yaml file, or one of "
                                          ".*steps_picture"):
        read_study("nothing_of_the_kind")
    with pytest.raises(ConfigError, match="conclude missing"):
        read_study("name: a\nquestion: b\nkind: training\nmetrics: [loss]\n")


@pytest.mark.parametrize("name", shipped_studies())
def test_a_shipped_study_fits_the_cpu_preset(name):
    study = read_study(name)
    assert study.name == name and study.question.endswith("?") and study.conclude.count(".") >= 2
    for variant in study.rows:
        checked(study, variant, "cpu", {})
    if study.kind == "training":
        assert study.seeds >= 3


TOKENS_A_SECOND, STARTING = 5500, 31  # of training at `cpu`, on two cores; and seconds before a stage's second step
SECONDS_AN_ANSWER = {"text": 0.2, "speech": 0.6, "image": 0.5}  # decoded and judged, 16 at a time


@pytest.mark.parametrize("name", shipped_studies())
def test_a_shipped_study_takes_an_hour_at_most(name):
    """All of its cells together, on two cores without a GPU. A stage that cells share is trained once."""
    study, stages, answers = read_study(name), {}, []
    for variant, seed in product(study.rows, range(study.seeds)):
        preset, before = checked(study, variant, "cpu", {}), variant.budget.start
        for stage in variant.budget.stages if study.kind == "training" else ():
            before = training.stage_key(preset, stage, seed, variant.budget.causal, "tokenizers", before)
            plan = getattr(preset.training, f"stage{stage}")
            stages[before] = plan.steps * plan.rows * preset.training.length
        tasks = {study.task} if study.task else {metric.partition(".")[0] for metric in study.metrics if "." in metric}
        answers += [(task, variant.budget.items or preset.evaluation.items) for task in tasks]
    seconds = sum(stages.values()) / TOKENS_A_SECOND + STARTING * len(stages)
    seconds += sum(items * max(SECONDS_AN_ANSWER[kind] for kind in TASKS[task].outputs) for task, items in answers)
    assert seconds < 3600


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [name for name in shipped_studies() if read_study(name).kind == "training"])
def test_a_base_called_the_papers_trains_with_the_papers_loss(name, preset):
    """Whatever the preset has for its own ends: no weight by answer length, no steps from left to right."""
    study = read_study(name)
    if "(paper)" in study.baseline:
        base = checked(study, study.rows[0], preset, {})
        for stage in study.budget.stages:
            plan = getattr(base.training, f"stage{stage}")
            assert (plan.evenness, plan.left_to_right, plan.weights) == (0, 0, {}), stage


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_three_stages_and_one_differ_in_their_mix_alone(preset):
    study = read_study("three_stages")
    plans = [getattr(checked(study, row, preset, {}).training, f"stage{stage}") for row in study.rows
             for stage in row.budget.stages]
    assert len(plans) == 4 and len({(p.learning_rate, p.evenness, p.left_to_right, p.rows, p.warmup, p.final)
                                    for p in plans}) == 1
    assert plans[3].steps == sum(plan.steps for plan in plans[:3])


@pytest.mark.parametrize("name", [name for name in shipped_studies() if read_study(name).task in ("t2i", "s2i")])
def test_what_a_study_says_of_a_pictures_tokens_holds_at_other_sizes(name):
    """Shares of them; or another number of tokens is refused."""
    study = read_study(name)
    if study.picture_tokens:
        with pytest.raises(ConfigError, match="for pictures of 64 tokens, those of the preset gpu have 256"):
            checked(study, study.rows[0], "gpu", {})
        return
    for row in study.rows:
        checked(study, row, "gpu", {})
        steps = row.settings.get("steps", 1)
        assert isinstance(steps, float) or steps == 1, row.name
        assert not row.settings.keys() & {"position_free", "block_length"}, row.name


def test_a_grid_compares_down_each_column():
    study = read_study("penalty_by_steps")
    first = study.rows[0]
    assert (first.name, first.against) == ("position penalty 1.0, steps 0.5", None)
    assert study.rows[1].against == first.name and study.rows[1].settings["position_penalty"] == 2.0
    assert [row.against for row in study.rows].count(None) == len(study.grid["steps"])
    assert len(study.rows) == 12


# --- effects ----------------------------------------------------------------------------------------------------------


def outcome(tree: dict, values: dict[tuple[str, int], dict]) -> Outcome:
    study = read_study(yaml.safe_dump(tree))
    return Outcome(study, [Cell(row, seed, found, 6.0, {}) for (row, seed), found in values.items()])


def sums(numerators: np.ndarray, denominators: np.ndarray | float = 1.0) -> list[list[float]]:
    return np.column_stack([numerators, np.broadcast_to(denominators, len(numerators))]).tolist()


def cells_of(records: list) -> dict[tuple[str, str], object]:
    return {(r.row, r.column): r for r in records}


def test_what_items_have_in_common_cancels():
    """Items differ by 100s, the variant adds about one to each: its interval is a hundred times narrower."""
    rng = np.random.default_rng(0)
    items = rng.normal(0, 100, 200)
    tree = DECODING | {"metrics": ["passes"]}
    found = cells_of(study_records(outcome(tree, {
        ("base", 0): {"passes": sums(items)}, ("half", 0): {"passes": sums(items + rng.normal(1, 1, 200))}})))
    effect, base = found["half", "passes_minus_base"], found["base", "passes"]
    assert effect.value == pytest.approx(1, abs=0.2) and 0.7 < effect.low < effect.high < 1.3
    assert base.high - base.low > 20 and effect.n == base.n == 200
    assert ("base", "passes_minus_base") not in found


def test_error_rates_are_ratios_of_sums():
    tree = DECODING | {"task": "asr", "metrics": ["asr_wer"]}
    words = np.array([1.0, 9.0])
    found = cells_of(study_records(outcome(tree, {
        ("base", 0): {"asr_wer": sums(np.array([100.0, 0.0]), words)},
        ("half", 0): {"asr_wer": sums(np.array([100.0, 300.0]), words)}})))
    assert found["base", "asr_wer"].value == pytest.approx(10) and found["half", "asr_wer"].value == pytest.approx(40)
    assert found["half", "asr_wer_minus_base"].value == pytest.approx(30)


def test_answers_to_one_item_are_drawn_together():
    """A second seed with the same answers says nothing new: the interval stays what it was."""
    tree, rng = DECODING | {"metrics": ["text_qa_right"]}, np.random.default_rng(1)
    base, half = (100.0 * (rng.random(50) < share) for share in (0.4, 0.6))

    def interval(seeds: int) -> tuple[float, float, int]:
        values = {(row, seed): {"text_qa_right": sums(answers)} for row, answers in (("base", base), ("half", half))
                  for seed in range(seeds)}
        effect = cells_of(study_records(outcome(tree, values)))["half", "text_qa_right_minus_base"]
        return effect.low, effect.high, effect.n

    assert interval(2) == pytest.approx(interval(1))


def test_trained_effects_are_paired_by_seed():
    a, b = [2.0, 5.0, 9.0], [1.5, 4.7, 8.4]
    values = {(row, seed): {"masked_loss": losses[seed]} for row, losses in (("base", a), ("gamma 1", b))
              for seed in range(3)}
    found = cells_of(study_records(outcome(TRAINING | {"metrics": ["masked_loss"]}, values)))
    effect, expected = found["gamma 1", "masked_loss_minus_base"], seed_interval(np.subtract(b, a))
    assert (effect.value, effect.low, effect.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert effect.n == 3 and effect.seeds == (0, 1, 2) and effect.high < 0 < found["base", "masked_loss"].high
    single = {key: value for key, value in values.items() if key[1] == 0}
    alone = cells_of(study_records(outcome(TRAINING | {"metrics": ["masked_loss"]}, single)))
    assert alone["gamma 1", "masked_loss_minus_base"].reason == "no interval: one seed"


GRID = DECODING | {"variants": {}, "grid": {"steps": [4, 2], "temperature": [0.0, 0.5, 1.0]}, "metrics": ["passes"]}


def grid_outcome(passes=lambda steps, temperature: steps + 10 * temperature) -> Outcome:
    study, values = read_study(yaml.safe_dump(GRID)), {}
    for variant in study.rows:
        number = passes(variant.settings["steps"], variant.settings["temperature"])
        values[variant.name, 0] = {"passes": sums(np.array([number - 1, number + 1]))}
    return outcome(GRID, values)


def test_a_grid_becomes_a_heat_map_and_its_columns_effects(tmp_path):
    found = grid_outcome()
    records = with_provenance(study_records(found), found.origin)
    frame = grid_frame(records)
    assert frame.loc["4"].tolist() == [4, 9, 14] and frame.loc["2"].tolist() == [2, 7, 12]
    assert (frame.index.name, frame.columns.name) == ("steps", "temperature")
    assert effects(records)["value"].tolist() == [-2, -2, -2]
    drawn = study_figure(records)
    assert isinstance(drawn, Figure) and drawn.axes[0].images[0].get_array().shape == (2, 3)
    write_records(tmp_path / "ablation_few_steps.json", records)
    lines = summary(tmp_path)
    assert lines["base"].tolist() == ["steps 4, temperature 0.0: 4", "steps 4, temperature 0.5: 9",
                                      "steps 4, temperature 1.0: 14.0"]
    assert set(lines["minutes"]) == {0.6} and lines["effect [95 %]"].str.startswith("-2").all()


def test_an_interaction_is_what_two_changes_add_to_the_sum_of_each():
    """At 2 steps instead of 4, and temperatures 0.5 and 1 instead of 0; items spread the bootstrap of the last."""
    added, multiplied = (with_provenance(study_records(found), found.origin) for found in
                         (grid_outcome(), grid_outcome(lambda steps, temperature: steps * (1 + temperature))))
    assert effects(added, kind=INTERACTION)["value"].tolist() == [0, 0]
    assert effects(multiplied, kind=INTERACTION)["value"].tolist() == [-1, -2]
    rng, names = np.random.default_rng(0), read_study(yaml.safe_dump(GRID)).rows
    noisy = {(variant.name, 0): {"passes": sums(rng.normal(4, 1, 40))} for variant in names}
    four = [np.array(noisy[names[n].name, 0]["passes"])[:, 0] for n in range(4)]
    cells = cells_of(study_records(outcome(GRID, noisy)))
    found = cells[names[3].name, "passes_interaction"]
    assert found.value == pytest.approx((four[3] - four[2] - four[1] + four[0]).mean()) and found.n == 40
    error = (four[3] - four[2] - four[1] + four[0]).std() / 40**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_a_heat_map_of_small_numbers_shows_their_digits():
    axis = plots.heat_map(pd.DataFrame([[0.23, 0.25]], index=["a"], columns=["b", "c"]), limits=(0.2, 0.3),
                          label="clip t").axes[0]
    assert [t.get_text() for t in axis.texts] == ["0.23", "0.25"]


# --- what is measured -------------------------------------------------------------------------------------------------


def test_every_column_is_found_in_the_items_of_its_evaluation():
    table = pd.DataFrame({"errors": [1], "words": [4], "seconds": [0.0], "cider": [2.5], "missing": [True],
                          "clip_t": [0.25], "clip_i": [0.5], "right": [True], "spoken_right": [False],
                          **{name: [True] for name in ("objects_right", "attributes_right", "relation_right",
                                                       "background_right", "all_right")}})
    found = {metric: column_sums(metric, table).tolist()[0] for metrics in COLUMNS.values() for metric in metrics}
    assert found["asr_wer"] == [100, 4] and found["tts_silent"] == [100, 1] and found["caption_cider"] == [2.5, 1]
    assert found["s2i_image_missing"] == found["svqa_right"] == found["image_all_right"] == [100, 1]
    assert found["s2i_clip_t"] == [0.25, 1] and found["sqa_spoken_right"] == [0, 1]
    with pytest.raises(ConfigError):
        check_metric("asr", "tts_wer")


def test_a_decoding_study_asks_the_checkpoint_with_each_variants_settings(tmp_path, monkeypatch, tiny_preset,
                                                                          tiny_model):
    preset = preset_file(tiny_preset, tmp_path)
    loads = []
    monkeypatch.setattr(runner, "finished_system", lambda *_: loads.append(1) or (tiny_model, None))
    artifacts = Artifacts.of("tiny", tmp_path)
    found = run_study(read_study(text(DECODING)), preset, artifacts=artifacts, progress=False)
    values = cells_of(study_records(found))
    assert values["base", "passes"].value == 4 and values["half", "passes_minus_base"].value == -2
    assert 0 <= values["base", "pads"].value <= 100 and values["base", "length_error"].n == 3
    longer = read_study(text(DECODING, variants={"half": {"steps": 2},
                                                 "more room": {"lengths.texts": {"text_qa": 12}}}))
    again = run_study(longer, preset, artifacts=artifacts, progress=False)
    assert [c.values for c in again.cells[:2]] == [c.values for c in found.cells], (
        "cells that are done are not run again")
    assert len(again.cells) == 3 and loads == [1, 1]


def test_a_decoding_study_broken_off_after_a_cell_goes_on_and_says_how_long(tmp_path, monkeypatch, capsys, tiny_preset,
                                                                            tiny_model):
    preset, artifacts, asked = preset_file(tiny_preset, tmp_path), Artifacts.of("tiny", tmp_path), []
    monkeypatch.setattr(runner, "finished_system", lambda *_: (tiny_model, None))
    run_cell = runner.decoding.run

    def run(study, variant, *others):
        asked.append(variant.name)
        if asked == ["base", "half"]:
            raise KeyboardInterrupt
        return run_cell(study, variant, *others)

    monkeypatch.setattr(runner.decoding, "run", run)
    with pytest.raises(KeyboardInterrupt):
        run_study(read_study(text(DECODING)), preset, artifacts=artifacts)
    said = capsys.readouterr().out
    assert re.search(r"1/2 base, seed 0: \d+\.\d min; about \d+\.\d min left", said), said
    found = run_study(read_study(text(DECODING)), preset, artifacts=artifacts)
    assert asked == ["base", "half", "half"] and [cell.variant for cell in found.cells] == ["base", "half"]
    said = capsys.readouterr().out
    assert "1 of 2 cells are done already" in said and "2/2 half, seed 0" in said and "left" not in said


# --- kill and resume --------------------------------------------------------------------------------------------------


def preset_file(preset, folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(to_dict(preset) | {"name": "tiny"}))
    return path


def wait_for(pattern: str, folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.time() + 240
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline, f"waited too long for {pattern}"
        time.sleep(0.02)


def test_a_killed_study_goes_on_where_it_stopped(tmp_path, monkeypatch, tiny_preset, tiny_model):
    """SIGKILL in the middle of the second cell's training: the same command ends like an uninterrupted run, leaves the
    first cell alone, and resumes the second from its checkpoint."""
    preset, declared = preset_file(tiny_preset, tmp_path), tmp_path / "pads.yaml"
    declared.write_text(text(TRAINING))
    changes = ["--set", "training.checkpoint_every=2", "--set", "training.stage1.learning_rate=0.01"]
    for root in ("broken", "whole"):
        tiny_model.save_pretrained(tmp_path / root / "tiny" / "checkpoint")
    environment = os.environ | {"OMNIDIFF_RESULTS": str(tmp_path / "broken"), "OMP_NUM_THREADS": "1",
                                "PYTHONPATH": os.pathsep.join([str(Path(runner.__file__).parents[2]),
                                                               os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-m", "omnidiff_lite", "ablate", str(declared), "--preset", str(preset),
                                *changes], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    work = tmp_path / "broken" / "tiny" / "work" / "ablation"
    try:
        wait_for("pads/*.json", work, 1, process)
        wait_for("stages/*/checkpoints/step-*[0-9]", work, 1, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (done,) = work.glob("pads/*.json")
    before = done.stat().st_mtime_ns
    assert not (tmp_path / "broken" / "tiny" / "metrics" / "ablation_pads.json").exists()

    begun, load = [], Checkpoints.load
    monkeypatch.setattr(Checkpoints, "load", lambda self, *where: begun.append(load(self, *where)) or begun[-1])
    records = {}
    for root in ("broken", "whole"):
        monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path / root))
        assert main(["ablate", str(declared), "--preset", str(preset), *changes]) == 0
        records[root] = read_records(tmp_path / root / "tiny" / "metrics" / "ablation_pads.json")
    assert [step > 0 for step in begun] == [True, False, False], "the second cell resumed; then both ran unbroken"
    assert done.stat().st_mtime_ns == before
    assert [(r.row, r.column, r.value) for r in records["broken"]] == [
        (r.row, r.column, r.value) for r in records["whole"]]
    assert {r.column for r in records["broken"] if r.row == "gamma 1"} == {
        "masked_loss", "masked_loss_minus_base", "loss_text_qa", "loss_text_qa_minus_base"}
    origin = records["broken"][0].provenance
    assert origin["overrides"] == {"training.checkpoint_every": 2, "training.stage1.learning_rate": 0.01}
    assert origin["study"]["question"] == "Pads?" and origin["minutes"] > 0
    assert origin["system"] == system_of(read_study(declared), tmp_path / "broken" / "tiny")
    assert finished_studies(tmp_path / "broken" / "tiny" / "metrics")["pads"] == records["broken"]


def test_a_changed_checkpoint_is_trained_on_anew(tmp_path, monkeypatch, tiny_model):
    trained = []

    def run_stage(preset, stage, tokenizers, init, folder, *others, **options):
        trained.append(init.lm_head.weight[0, 0].item())
        folder.mkdir(parents=True)

    monkeypatch.setattr(training, "run_stage", run_stage)
    artifacts, preset = Artifacts.of("tiny", tmp_path), load_preset("smoke")
    trainer = training.Trainer(artifacts, tiny_model.tokenizers, progress=False)
    tiny_model.save_pretrained(artifacts.checkpoint)
    begun = trainer.train(Budget(start="checkpoint"), preset, 0)
    assert trainer.train(Budget(start="checkpoint"), preset, 0) == begun and len(trained) == 1
    other = copy.deepcopy(tiny_model.denoiser)
    other.lm_head.weight.data += 1
    other.save_pretrained(artifacts.checkpoint / "denoiser")
    again = trainer.train(Budget(start="checkpoint"), preset, 0)
    assert again != begun and len(trained) == 2 and trained[1] == pytest.approx(trained[0] + 1, abs=0.02)


def test_a_trained_denoiser_is_scored_where_the_tokenizers_are(tmp_path, monkeypatch, tiny_preset, tiny_model):
    places = []
    monkeypatch.setattr(training.Denoiser, "from_pretrained", lambda *_, **__: toys.denoiser())
    monkeypatch.setattr(training.Trainer, "_data", lambda *_: {})
    monkeypatch.setattr(training, "validate", lambda preset, denoiser, data: places.append(denoiser.device) or
                        pd.DataFrame({"task": ["text_qa"], "loss": [1.0]}))
    assert tiny_model.tokenizers.device.type == "cpu"
    trainer = training.Trainer(Artifacts.of("tiny", tmp_path), SimpleNamespace(device=torch.device("meta")))
    study = read_study(text(TRAINING, metrics=["loss"]))
    assert trainer.score(study, Budget(), tiny_preset, 0, tmp_path) == {"loss": 1.0}
    assert [place.type for place in places] == ["meta"]


# --- which checkpoint -------------------------------------------------------------------------------------------------


def checkpoint(run: Path, **parts: str) -> None:
    for name, content in {"denoiser": "1", "image_tokenizer": "1"}.items():
        (run / "checkpoint" / name).mkdir(parents=True, exist_ok=True)
        (run / "checkpoint" / name / "model.safetensors").write_text(parts.get(name, content))


@pytest.mark.parametrize("tree, changed, standing", [
    (DECODING, {}, HERE), (DECODING, {"denoiser": "2"}, ANOTHER), (DECODING, {"image_tokenizer": "2"}, ANOTHER),
    (TRAINING, {"denoiser": "2"}, HERE), (TRAINING, {"image_tokenizer": "2"}, ANOTHER),
    (TRAINING | {"budget": {"start": "checkpoint"}}, {"denoiser": "2"}, ANOTHER)])
def test_numbers_are_of_the_checkpoint_that_made_them(tmp_path, tree, changed, standing):
    """A study that trains from fresh weights takes of it the tokenizers alone."""
    study = read_study(yaml.safe_dump(tree))
    checkpoint(tmp_path)
    records = with_provenance([Record("t", "r", "c", 1.0, n=1)], {"system": system_of(study, tmp_path)})
    checkpoint(tmp_path, **changed)
    assert checkpoint_of(study, records, tmp_path) == standing


def test_studies_of_another_checkpoint_are_marked_wherever_they_are_shown(tmp_path):
    from omnidiff_lite.report import write_report

    artifacts, study = Artifacts.of("smoke", tmp_path), read_study("steps_speech")
    checkpoint(artifacts.dir)
    values = {(v.name, 0): {m: sums(np.arange(4.0)) for m in study.metrics} for v in study.rows}
    found = Outcome(study, [Cell(row, seed, metrics, 1.0, {}) for (row, seed), metrics in values.items()],
                    system_of(study, artifacts.dir))
    records = with_provenance(study_records(found), {"preset": "smoke"} | found.origin)
    file = write_records(artifacts.metrics / "ablation_steps_speech.json", records)

    def shown() -> tuple[str, str, str]:
        table = difference_table(artifacts.metrics).set_index("what")["measured effect [95 %]"]
        return (table["steps of speech, inside the paper"], write_report(artifacts).read_text(),
                *set(summary(artifacts.metrics)["checkpoint"]))

    here = shown()
    assert here[2] == HERE and not any("checkpoint than" in page or "unknown checkpoint" in page for page in here[:2])
    checkpoint(artifacts.dir, denoiser="2")
    other = shown()
    assert other[2] == ANOTHER and all("of another checkpoint than the one here" in page for page in other[:2])
    older = [dict(record.provenance["study"]["budget"], timed=3) for record in records[:1]]  # as filed before
    records = with_provenance(records, {"preset": "smoke", "minutes": 1.0,
                                        "study": records[0].provenance["study"] | {"budget": older[0]}})
    write_records(file, records)
    unknown = shown()
    assert unknown[2] == UNKNOWN and all("of an unknown checkpoint" in page for page in unknown[:2])


def test_the_committed_studies_can_be_read():
    """Also those filed before studies said which checkpoint they are of."""
    for run in (path for path in (CLONE / "results").iterdir() if (path / "metrics").is_dir()):
        found, effects_of = finished_studies(run / "metrics"), 0
        assert found or run.name != "cpu"
        for records in found.values():
            study = study_of(records)
            rows = [r.row for r in records if r.column == study.metrics[0]]
            assert rows == [variant.name for variant in study.rows], "one a variant"
            assert all(np.isfinite(r.value) for r in records)
            effects_of += sum(variant.against is not None for variant in study.rows)
        assert len(summary(run / "metrics")) == effects_of
        assert len(difference_table(run / "metrics")) == len(differences())


def test_variants_share_the_stages_that_they_have_in_common():
    base = load_preset("smoke")

    def keys(changes: dict, seed: int = 0) -> list[str]:
        preset, found, before = load_preset("smoke", changes), [], "nothing"
        for stage in (1, 2, 3):
            found.append(before := training.stage_key(preset, stage, seed, False, "tokenizers", before))
        return found

    first = keys({})
    assert keys({"training.stage3.evenness": 0.5})[:2] == first[:2] and (
        keys({"training.stage3.evenness": 0.5})[2] != first[2])
    assert not set(keys({"training.gamma": 0.1})) & set(first) and not set(keys({}, seed=1)) & set(first)
    assert keys({"training.checkpoint_every": base.training.checkpoint_every + 1, "evaluation.items": 3}) == first
    assert keys({"training.samples.svqa": 7})[:2] == first[:2], "no task of stages 1 and 2"


# --- the extension point ----------------------------------------------------------------------------------------------


@pytest.fixture
def spread():
    """The order of notebook 11."""
    @order("spread")
    def register(probabilities, tokens, position):
        return -(position * 0.6180339887 % 1).float()
    yield register
    del ORDERS["spread"]


def test_two_studies_at_once_train_a_shared_stage_once(tmp_path, monkeypatch, tiny_preset, tiny_model):
    """Without a lock both write its log, which neither can read then."""
    trained, together = [], threading.Barrier(2)

    def run_stage(preset, stage, tokenizers, init, folder, *others, **options):
        trained.append(folder)
        time.sleep(0.3)
        folder.mkdir(parents=True)

    monkeypatch.setattr(training, "run_stage", run_stage)
    trainer = training.Trainer(Artifacts.of("tiny", tmp_path), tiny_model.tokenizers, progress=False)

    def study() -> list[Path]:
        together.wait()
        return trainer.train(Budget(), tiny_preset, 0)

    with ThreadPoolExecutor(2) as pool:
        one, other = (future.result() for future in [pool.submit(study), pool.submit(study)])
    assert one == other == trained


def test_a_new_order_of_decoding_is_one_function(spread):
    result = decode(toys.denoiser(), torch.tensor([1, 2, 3]), DecodingConfig(length=8, steps=8, algorithm="spread"))
    places = torch.arange(8) * 0.6180339887 % 1
    assert result.decided[0].argsort().tolist() == places.argsort().tolist()


def test_an_order_nobody_registered_is_an_error():
    with pytest.raises(ConfigError, match="algorithm: expected one of random, confidence, margin, entropy; "
                                          "got 'spread'"):
        DecodingConfig(algorithm="spread")


# --- paper against released code --------------------------------------------------------------------------------------


def test_every_difference_is_measured_or_says_why_not(tmp_path):
    table = difference_table(tmp_path)
    assert len(table) == len(differences())
    for difference, shown in zip(differences(), table["measured effect [95 %]"]):
        expected = f"not run yet: omnidiff ablate {difference.study}" if difference.study else "not measured: "
        assert shown.startswith(expected)


POINTS = """
dataset_qwen2.py:73-79 | dataset_qwen2.py:933 | next-token shift | generation_utils.py:462 | generation_utils.py:75-85
inference.py:276 | evaluate_libritts.py:112 | evaluate_asr.py:194 | inference.py:555 | inference.py:559
inference.py:539, 543 | inference.py:414-422 | generation_utils.py:486-487 | generation_utils.py:505-526
modeling_dream.py:1050 | continuous features through an adapter | tokenizer_sensevoice_glm4voice.py:16, 126
inference.py:210 | one fine-tune script and the evaluations | modeling_dream.py:978-983 | modeling_dream.py:982-983
dataset_qwen2.py:747-766 | modeling_dream.py:797-802 | README has them the other way round
section 3.3 adds speech in stage 2 | from 50 to as few as 10 | consistent performance above 0.25 L
Common Voice is cited as LibriSpeech | InstructBLIP is listed with 14B"""


@pytest.mark.parametrize("point", re.split(r" \| |\n", POINTS.strip()))
def test_no_difference_that_reading_brought_up_is_left_out(point):
    """Each by where the released code has it, or in the words of the paper."""
    assert any(point in f"{d.paper} {d.code}" for d in differences())


def test_every_difference_has_a_name_of_its_own():
    names = [difference.what for difference in differences()]
    assert len(names) == len(set(names))


def test_a_difference_shows_the_effect_from_the_records(tmp_path):
    study = read_study("steps_speech")
    values = {(v.name, 0): {m: sums(np.arange(4.0) + 5 * (v.name == "0.25 L")) for m in study.metrics}
              for v in study.rows}
    found = Outcome(study, [Cell(row, seed, metrics, 1.0, {}) for (row, seed), metrics in values.items()])
    write_records(tmp_path / "ablation_steps_speech.json", with_provenance(study_records(found), found.origin))
    table = difference_table(tmp_path).set_index("what")["measured effect [95 %]"]
    assert table["steps of speech, inside the paper"] == (
        "tts wer +5 [no interval: all items are alike]; tts silent +5 [no interval: all items are alike] "
        "(against 0.5 L (paper); n=4 items); of an unknown checkpoint")


@pytest.mark.parametrize("fields", [{}, {"study": "steps_speech"}, {"study": "steps_speech", "row": "none such"},
                                    {"study": "steps_speech", "row": "0.25 L", "reason": "both"}])
def test_a_difference_without_a_measure_and_a_reason_is_refused(fields):
    with pytest.raises(ConfigError, match="difference 'x'"):
        Difference("x", "paper", "code", **fields)


# --- command line and report ------------------------------------------------------------------------------------------


def test_the_studies_are_listed(capsys):
    assert main(["ablate", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(shipped_studies())


def test_the_report_shows_what_studies_found(tmp_path):
    from omnidiff_lite.report import write_report

    found = grid_outcome()
    artifacts = Artifacts.of("smoke", tmp_path)
    write_records(artifacts.metrics / "ablation_few_steps.json",
                  with_provenance(study_records(found), {"preset": "smoke"} | found.origin))
    page = write_report(artifacts).read_text()
    assert all(words in page for words in ("How few?", "steps 2, temperature 0.5", "paper against released code",
                                           "Yes. No."))


def test_a_study_with_other_seeds_and_budget_keeps_the_rest():
    study = read_study("tail_pads")
    changed = adjusted(study, 5, {"items": 8})
    assert (changed.seeds, changed.budget.items, changed.budget.steps) == (5, 8, study.budget.steps)
    assert adjusted(study) == study and {row.budget.items for row in changed.rows} == {8}
    with pytest.raises(ConfigError, match="unknown key 'budget.item'; did you mean 'items'"):
        adjusted(study, None, {"item": 8})


@pytest.mark.parametrize("name, key, where", [
    ("three_stages", "steps", "variant 'all at once'"), ("twin_data_sizes", "samples", "grid")])
def test_a_budget_that_a_variant_sets_itself_cannot_be_changed_for_the_others_alone(name, key, where):
    """Else "equal steps" would be so no more, and nothing would say it."""
    with pytest.raises(ConfigError, match=f"budget.{key}: set by the study {name} itself, in {where}; .* edit a copy"):
        adjusted(read_study(name), None, {key: 9})
    assert adjusted(read_study(name), None, {"items": 9}).budget.items == 9


def test_the_users_settings_win_over_the_budget_and_the_variants_over_both():
    rows = read_study("tail_pads").rows
    changes = {"training.stage1.steps": 9, "training.gamma": 0.5, "training.samples.tts": 7}
    base, other = (training.preset_of(rows[i], "smoke", changes).training for i in (0, 1))
    assert (base.stage1.steps, base.stage1.rows, base.samples["tts"], base.gamma) == (9, 12, 7, 0.5)
    assert other.gamma == 0.0
