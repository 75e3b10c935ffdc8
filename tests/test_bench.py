"""Ways of decoding compared in turn, and the bench made of them: which model is asked, what is counted, which rows."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.cli import main
from omnidiff_lite.config import load_preset
from omnidiff_lite.diffusion.head import Head
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.plan.bench import bench, bench_file, bench_report, bench_table, fastest_without_loss
from omnidiff_lite.plan.exact_speed import random_denoiser
from omnidiff_lite.plan.profile import PARTS, REST, stopwatches
from omnidiff_lite.evaluation.decoding import Compared, Trials, Way, compare_decoding, decoding_by, with_lengths
from omnidiff_lite.evaluation.exams import EXAMS, Measure
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.records import Record, read_records
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.scene_analysis import repeats
from omnidiff_lite.world.dataset import samples
from omnidiff_lite.world.scenes import Object, Scene, render


class Ear:
    """Hears "w" whatever is said."""

    def transcribe(self, waves):
        return ["w"] * len(waves)


class Eye:
    """Finds every picture like every text."""

    def similarity(self, texts, images):
        return np.full(len(images), 0.5)

    image_similarity = similarity


JUDGES = Judges(Ear(), Eye(), Eye())
STEPS = {"steps": 2}


def compared(model, preset, ways, task="t2i", count=3, **how):
    return compare_decoding(task, model, JUDGES, samples(task, "test", count, 0, preset.world), ways, preset,
                            progress=False, **how)


# --- the comparison -------------------------------------------------------------------------------------------------


def test_ways_take_turns_batch_by_batch(tiny_model, tiny_preset):
    asked = []

    def noting(name):
        def decoder(*arguments, **named):
            asked.append((name, len(named["seeds"]), named["seeds"][0]))
            return tiny_model.decoder(*arguments, **named)
        return Way(STEPS, decoding_by(tiny_model, decoder))

    compared(tiny_model, tiny_preset, {"a": noting("a"), "b": noting("b")}, batch=2, seed=5)
    assert asked[:2] == [("a", 1, 5), ("b", 1, 5)], "one request each, to warm up"
    assert [name for name, *_ in asked[2:]] == ["a", "b", "a", "b"]
    assert {count for _, count, _ in asked[2:4]} == {2} and [seed for *_, seed in asked[4:]] == [7, 7]


def test_answers_are_those_of_the_system_at_any_batch_size(tiny_model, tiny_preset):
    found = {batch: compared(tiny_model, tiny_preset, {"base": STEPS}, batch=batch, seed=3) for batch in (1, 3)}
    for i, (alone, together) in enumerate(zip(*(f.answers["base"] for f in found.values()))):
        caption = found[1].items["base"]["caption"][i]
        own = tiny_model.generate(caption, to="image", task="t2i", decoding=STEPS, seed=3 + i)
        assert np.array_equal(alone.ids, own.ids) and np.array_equal(together.ids, own.ids)


def test_what_is_counted(tiny_model, tiny_preset):
    """Passes and tokens of a decoder whose work is known: 2 steps, 16 image tokens and their 4 markers."""
    found = compared(tiny_model, tiny_preset, {"base": STEPS, "slow": {"steps": 4}}, batch=3)
    rows = found.rounds.set_index("way")
    assert rows.loc["base", "passes"] == 2 and rows.loc["slow", "passes"] == 4 and (rows["answers"] == 3).all()
    assert (rows["tokens"] == 3 * len(found.answers["base"][0].ids)).all(), "no pad is in a picture's answer"
    assert (rows["whole"] > rows["seconds"]).all() and (rows["seconds"] > 0).all() and (rows["peak"] > 2**20).all()
    speed = found.speed("slow", "base")
    assert speed["ratio_to_base"].value == pytest.approx(rows.loc["base", "seconds"] / rows.loc["slow", "seconds"])
    assert speed["seconds"].value == pytest.approx(rows.loc["slow", "seconds"] / 3)
    assert speed["tokens_per_second"].value * speed["seconds"].value == pytest.approx(len(found.answers["base"][0].ids))


def test_a_change_is_paired_by_item(tiny_model, tiny_preset):
    found = compared(tiny_model, tiny_preset, {"base": STEPS, "other": {"steps": 1}}, count=2, batch=2)
    found.items["base"]["all_right"], found.items["other"]["all_right"] = [True, False], [True, True]
    records = {(r.row, r.column): r for r in found.records("base", "x: ")}
    assert records["x: other", "image_all_right"].value == 100 and records["x: base", "image_all_right"].value == 50
    assert records["x: other", "image_all_right_minus_base"].value == 50
    assert ("x: base", "image_all_right_minus_base") not in records, "nothing is a change from itself"
    assert {r.table for r in records.values()} == {"ablation_decoding"} and records["x: other", "clip_t"].value == 0.5
    assert found.curve("base").set_index("label").loc["other", "change"] == 50
    assert list(found.table("clip_t").columns) == ["CLIP-T ↑", "change: CLIP-T ↑"]


def test_the_fastest_that_is_as_good(tiny_model, tiny_preset):
    known = {"twin": ([1, 0], 4.0), "good": ([0, 1], 2.0), "better": ([1, 1], 3.0), "bad": ([0, 0], 1.0)}
    found = compared(tiny_model, tiny_preset, dict.fromkeys(known, STEPS), count=2, batch=2)
    for name, (right, seconds) in known.items():
        found.items[name]["all_right"] = right
        found.rounds.loc[found.rounds["way"] == name, "seconds"] = seconds
    assert found.fastest_as_good("twin") == "good" and found.fastest_as_good("better") == "better"
    row = found.at_equal_quality("twin")
    assert row["fastest that is as good"] == "good" and row["times as fast"] == 2 and row["change"] == 0


def test_less_is_better_of_errors():
    settings, measure = Settings(bootstrap=50), EXAMS["tts"].measures[0]
    few, many = (pd.DataFrame({"errors": errors, "words": [4, 6]}) for errors in ([1, 1], [2, 3]))
    assert measure.estimate(few, settings).value == 20 and measure.change(few, many, settings).value == -30
    assert measure.worse(1.0) and not measure.worse(-1.0) and not measure.worse(0.0)
    assert Measure("x", "x").worse(-1.0) and not Measure("x", "x").worse(1.0)


def test_a_verdict_says_what_is_shown_and_what_is_not():
    """Fewer errors are better; one answer of 40 shows nothing; the base is not compared with itself."""
    base = np.array([1] * 40)
    ways = {"base": base, "half": base * np.arange(40) % 2, "more": base * (2 + np.arange(40) % 2),
            "one": np.where(np.arange(40) == 7, 0, base)}
    items = {name: pd.DataFrame({"errors": errors, "words": 4}) for name, errors in ways.items()}
    found = Compared("tts", {}, items, pd.DataFrame(), Settings(bootstrap=200))
    assert found.verdict() == "better: half; worse: more; no difference shown: one"
    assert found.changes("base").iloc[0, 5:].isna().all()


def test_trials_keep_one_base_and_all_that_was_tried(tiny_model, tiny_preset):
    calls = []
    model = decoding_by(tiny_model, lambda *a, **k: calls.append(a[2].steps) or tiny_model.decoder(*a, **k))
    said = samples("t2i", "test", 2, 0, tiny_preset.world)
    trials = Trials("t2i", model, JUDGES, said, tiny_preset, STEPS)
    first = trials.run({"argmax": {"temperature": 0.0}})
    trials.run({"random": {"algorithm": "random"}})
    assert list(first.items) == ["base", "argmax"] and list(trials.all.items) == ["base", "argmax", "random"]
    assert len(calls) == 2 * 3, "each way once, and once to warm up"
    rows = {r.row for r in trials.records()}
    assert rows == {"text-to-image: base", "text-to-image: argmax", "text-to-image: random"}
    assert not {r.column for r in trials.records()} & {"seconds", "ratio_to_base"}, "they were not timed in turn"
    assert set(calls) == {2}, "what is common holds for all"
    assert all(len(a.trace) == 2 for a in trials.all.answers["base"])


@pytest.mark.parametrize("task", ["tts", "asr", "svqa"])
def test_every_task_has_its_measures(tiny_model, tiny_preset, task):
    found = compared(tiny_model, tiny_preset, {"base": STEPS}, task=task, count=2, batch=2)
    columns = {r.column for r in found.records("base")}
    assert {m.column for m in EXAMS[task].measures} | {"seconds", "forward_passes"} <= columns


def test_other_lengths_leave_the_common_system_alone(tiny_model, tiny_preset):
    before = copy.deepcopy(tiny_model.settings)
    longer = Way(STEPS, with_lengths(tiny_model, speech_per_text=0.0, speech_extra=9))
    found = compared(tiny_model, tiny_preset, {"base": STEPS, "fixed": longer}, task="tts", count=2, batch=2)
    assert tiny_model.settings == before
    sizes = {name: {len(a.ids) for a in answers} for name, answers in found.answers.items()}
    assert len(sizes["fixed"]) == 1 and sizes["fixed"] != sizes["base"]


def test_an_object_that_is_drawn_again_is_seen():
    world = load_preset("smoke").world
    scene = Scene("grey", (Object("circle", "red", "large", "plain", (0, 0)),), world.grid, 0.0)
    twice = replace(scene, objects=(*scene.objects, Object("circle", "red", "large", "plain", (1, 1))))
    other = replace(scene, objects=(*scene.objects, Object("square", "blue", "large", "plain", (1, 1))))
    drawn = [render(s, 64) for s in (scene, twice, other)]
    assert [repeats(picture, scene, world) for picture in drawn] == [False, True, False]


# --- the bench ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records():
    """Of the shipped smoke checkpoint."""
    return bench(load_preset("smoke", {"evaluation.bootstrap": 20}), Artifacts.of("smoke", CLONE / "results"),
                 items={1: 1, 2: 2}, ids=(300,), masks=(8,), repeats=2)


def test_the_bench_has_the_rows_and_columns_promised(records):
    rows: dict[str, dict[str, float]] = {}
    for record in records:
        rows.setdefault(record.row, {})[record.column] = record.value
    assert {"exact/300/8/cpu"} | {f"fast/{task}/{batch}/cpu/{way}" for task in ("t2i", "tts") for batch in (1, 2)
                                  for way in ("plain", "exact", "autoregressive twin")} <= set(rows)
    wanted = {"ratio_to_plain", "seconds", "tokens_per_second", "identical"}
    for row, cells in rows.items():
        if row.startswith("profile/"):
            continue
        assert wanted <= set(cells) and all(cells[name] > 0 for name in wanted - {"identical"})
        if row.startswith("fast/"):
            assert {"quality", "forward_passes", "memory_gib", "latency_s"} <= set(cells)
            assert ("quality_minus_plain" in cells) != row.endswith("/plain")
            assert cells["latency_s"] > cells["seconds"] > 0 and cells["forward_passes"] > 0
            assert cells["ratio_to_plain"] == 1 or not row.endswith("/plain")


def test_the_exact_decoder_gives_the_plain_ones_canvases(records):
    exact = [r for r in records if r.column == "identical" and r.row.startswith("exact/") or r.row.endswith("/exact")
             and r.column == "identical"]
    assert len(exact) == 5 and all(r.value == 100 for r in exact)
    same = [r.value for r in records if r.column == "quality_minus_plain" and r.row.endswith("/exact")]
    assert same == [0] * 4


def test_records_say_how_they_came_about_and_are_shown(records):
    assert all(r.table == "bench" and r.source == "ours" and r.n for r in records)
    assert {"hardware", "device", "dtype", "checkpoint"} <= set(records[0].provenance)
    floors = {r.row.rpartition("/")[2] for r in records if r.column.startswith("floor_")}
    assert floors == {"exact"}
    assert list(bench_table(records, "exact")["same %"]) == ["100"]
    text = bench_report(records)
    assert "t2i/1/cpu/exact" in text and "300/8/cpu" in text and max(map(len, text.splitlines())) < 180


def test_the_profile_is_of_all_the_time_and_leaves_the_decoders_as_they_were(records):
    for name in ("plain", "exact"):
        cells = {r.column: r.value for r in records if r.row == f"profile/300/8/cpu/{name}"}
        assert sum(cells[part] for part in (*PARTS, REST)) == pytest.approx(100)
        assert cells["transformer"] > 0 and cells["head"] > 0 and cells["embedding"] > 0 and cells["seconds"] > 0
    denoiser, before = random_denoiser(300), Head.logits
    with pytest.raises(RuntimeError), stopwatches(denoiser):
        raise RuntimeError
    assert Head.logits is before and "forward" not in denoiser.lm_head.__dict__


def test_a_part_inside_of_a_part_is_counted_once():
    denoiser = random_denoiser(300)
    with stopwatches(denoiser) as seconds:
        denoiser(torch.arange(8)[None])
    assert all(seconds[part] > 0 for part in PARTS)
    with stopwatches(denoiser) as seconds:
        denoiser.model.embed_tokens(torch.arange(8)[None])
    assert seconds["embedding"] > 0 and seconds["transformer"] == seconds["head"] == 0


def test_the_fastest_without_a_shown_loss():
    def way(name, ratio, low, high, task="tts", n=16, slowest=None):
        row, change = f"fast/{task}/1/cpu/{name}", 0.0 if low is None else (low + high) / 2
        return [Record("bench", row, "ratio_to_plain", ratio, slowest or ratio, ratio, n=3),
                Record("bench", row, "quality_minus_plain", change, low, high, n=n)]

    def verdict(*ways):
        found, = fastest_without_loss([record for records in ways for record in records]).to_dict("records")
        return found["fastest without a shown loss"], found["times as fast"], found["5 times"]

    errors = way("cache", 3.0, -1.0, 1.0), way("few steps", 6.0, 2.0, 5.0), way("better", 4.0, -3.0, -1.0)
    assert verdict(*errors) == ("better", "4.00 [4.00, 4.00]", "not reached")
    right = way("few steps", 6.0, -5.0, -2.0, "t2i"), way("threshold", 5.5, -9.0, 0.0, "t2i")
    assert verdict(*right) == ("threshold", "5.50 [5.50, 5.50]", "reached")
    assert verdict(way("cache", 5.5, -1.0, 1.0, slowest=4.5))[2] == "not reached", "its interval begins below"
    assert verdict(way("cache", 9.0, -9.0, 20.0, n=6))[2] == "too few items"
    assert verdict(way("exact", 1.2, None, None), way("cache", 3.0, 1.0, 2.0))[0] == "exact", "every item as before"
    assert verdict(way("exact", 1.2, None, None), way("autoregressive twin", 9.0, -1.0, 1.0))[0] == "exact"
    assert fastest_without_loss([]).empty


def test_each_kind_of_device_has_its_file():
    assert bench_file("cpu") == "bench.json" and bench_file("cuda:1") == "bench_cuda.json"


def test_the_command_compares_where_there_is_a_checkpoint(tmp_path, monkeypatch, capsys, records):
    """And times random weights where it is told to, or where there is none (tests/test_cli.py)."""
    from omnidiff_lite.plan import bench as module

    asked = {}
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    checkpoint = Artifacts.of("smoke").checkpoint
    checkpoint.mkdir(parents=True)
    (checkpoint / "system.json").touch()
    monkeypatch.setattr(module, "bench", lambda preset, artifacts, device, **how: asked.update(how) or records)
    assert main(["bench", "--tasks", "tts", "--items", "12"]) == 0
    assert asked["tasks"] == ["tts"] and asked["items"] == {1: 4, 8: 12} and asked["dtype"] == "auto"
    assert "x plain" in capsys.readouterr().out
    assert len(read_records(Artifacts.of("smoke").metrics / "bench.json", "bench")) == len(records)
