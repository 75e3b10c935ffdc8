"""The twin beside the diffusion model: its rows, the paired differences, and what replaces them without a twin."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from known import BLACK, JUDGES, RED, TONE, Ear, KnownModel, Reply

from omnidiff_lite import plots
from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.paired import TWIN, differences, evaluate_both, is_difference
from omnidiff_lite.evaluation.position_penalty import FIXED, RAMP, WITHOUT, evaluate_penalties, penalties
from omnidiff_lite.evaluation.printed import SECTIONS, printed, save_sections
from omnidiff_lite.evaluation.records import Record, measured, with_provenance, write_records
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.sampling import sweep_images, sweep_speech, trade_offs
from omnidiff_lite.evaluation.speech import ASR_ITEMS, TABLE, TTS_ITEMS, evaluate_asr, evaluate_tts, skipping_records
from omnidiff_lite.evaluation.statistics import Estimate
from omnidiff_lite.world.recipes import scene_ref
from omnidiff_lite.world.scenes import sample_scene
from omnidiff_lite.world.splits import stream
from omnidiff_lite.world.voices import speech_ref
from omnidiff_lite.world.voices import test_voices as voices_of_tests

WORLD = load_preset("smoke").world
QUICK = Settings(bootstrap=50, image_sizes=(64, 64))


def cells(records: list[Record], row: str) -> dict[str, float | None]:
    return {r.column: r.value for r in records if r.row == row}


def heard(*texts: str) -> list[Sample]:
    return [Sample(build_messages("asr", None, text), [], [speech_ref(text, voices_of_tests()[0])], "asr",
                   {"answer": text}) for text in texts]


def drawings(n: int) -> list[Sample]:
    scenes = [scene_ref(sample_scene(stream("paired", i), WORLD, "test")) for i in range(n)]
    return [Sample(build_messages("t2i", "x", ""), [scene], [], "t2i", {"caption": "x"}) for scene in scenes]


def said(n: int) -> list[Sample]:
    return [Sample(build_messages("tts", "w w w w w"), [], [], "tts", {"text": "w w w w w"})] * n


# --- differences -----------------------------------------------------------------------------------------------------


def test_a_difference_has_the_unit_of_its_column():
    a = pd.DataFrame({"errors": [1, 0, 1], "words": [4, 4, 2], "right": [True, True, False], "clip": [0.5, 0.3, 0.1]})
    b = pd.DataFrame({"errors": [2, 2, 1], "words": [4, 4, 2], "right": [True, False, False], "clip": [0.1, 0.1, 0.1]})
    columns = {"wer": ("errors", "words"), "right": ("right",), "clip_t": ("clip",)}
    found = differences("t", columns, a, b, Settings(row="x minus y"))
    assert cells(found, "x minus y") == {"wer": pytest.approx(100 * (2 - 5) / 10), "right": pytest.approx(100 / 3),
                                         "clip_t": pytest.approx(0.2)}
    assert all(is_difference(r) and r.n == 3 and r.low <= r.value <= r.high for r in found)


def test_what_items_have_in_common_cancels():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 9, 60)  # items differ a lot, the two methods by one error in every item
    a, b = (pd.DataFrame({"errors": hard + more, "words": 10}) for more in (1, 0))
    (apart,) = differences("t", {"wer": ("errors", "words")}, a, b, Settings(row="a minus b"))
    assert apart.value == pytest.approx(10) and apart.low is None  # no draw differs


def test_the_twin_has_its_row_beside_the_diffusions():
    asked = heard("a red circle", "two words")
    diffusion, twin = KnownModel(Reply("a red circle"), Reply("")), KnownModel(Reply("a red"), Reply("two words"))
    records, items, twins = evaluate_both(lambda who, how: evaluate_asr(who, asked, how), diffusion, twin, QUICK,
                                          partial(differences, TABLE, ASR_ITEMS))
    assert cells(records, "diffusion")["asr_wer"] == pytest.approx(40)
    assert cells(records, TWIN)["asr_wer"] == pytest.approx(20)
    between = cells(records, f"{TWIN} minus diffusion")
    assert between == {"asr_wer": pytest.approx(-20), "asr_wer_whisper": pytest.approx(-20)}
    assert items["errors"].tolist() == [0, 2] and twins["errors"].tolist() == [1, 0]


def test_without_a_twin_its_cells_say_why():
    records, _, twins = evaluate_both(lambda who, how: evaluate_tts(who, Ear(), said(2), how), KnownModel(
        Reply(speech=TONE), Reply()), "no twin: run notebook 14", QUICK, partial(differences, TABLE, TTS_ITEMS))
    assert twins is None and cells(records, TWIN) == {"tts_wer": None, "tts_silent": None}
    assert {r.reason for r in records if r.row == TWIN} == {"no twin: run notebook 14"}


def test_what_skipping_silent_answers_flatters():
    _, items = evaluate_tts(KnownModel(Reply(speech=TONE), Reply()), Ear(), said(2), QUICK)
    records = skipping_records(items, QUICK)  # one of two is silent: 50 % of the words are wrong, or none is
    assert cells(records, "diffusion, silent answers skipped") == {"tts_wer": 0}
    assert cells(records, "diffusion, silent answers skipped minus all") == {"tts_wer": -50}
    _, silent = evaluate_tts(KnownModel(Reply(), Reply()), Ear(), said(2), QUICK)
    assert [r.value for r in skipping_records(silent, QUICK)] == [None]


# --- table 3 ---------------------------------------------------------------------------------------------------------


def test_the_twin_has_one_row_a_task_and_a_difference_to_every_number_of_steps():
    twin = KnownModel(Reply(image=RED), Reply(image=RED))
    records, items = sweep_images(KnownModel(Reply(image=BLACK), Reply(image=RED)), JUDGES, drawings(2), QUICK,
                                  steps=(8, 1), timed=1, twin=twin)
    row = f"{TWIN}: text-to-image"
    assert cells(records, row).keys() == cells(records, "diffusion: text-to-image, 1 step").keys()
    for steps in ("8 steps", "1 step"):
        between = cells(records, f"{row} minus diffusion, {steps}")
        assert between["clip_t"] == pytest.approx(0.5) and abs(between["latency_s"]) < 1
    assert all(call["decoding"]["steps"] is None for call in twin.calls) and items["steps"].isna().sum() == 2


def test_table_3_without_a_twin_says_why():
    records, _ = sweep_speech(KnownModel(*[Reply(speech=TONE)] * 2), Ear(), said(2), QUICK, ratios=(0.5,), timed=1,
                              twin="no twin")
    row = f"{TWIN}: text-to-speech"
    assert cells(records, row) == dict.fromkeys(("tts_wer", "tts_silent", "latency_s", "tokens_per_s", "rtf"))
    assert {r.reason for r in records if r.row == row} == {"no twin"}


def test_quality_against_latency_is_read_from_the_records():
    records, _ = sweep_images(KnownModel(Reply(image=BLACK), Reply(image=RED)), JUDGES, drawings(2), QUICK,
                              steps=(8, 1), timed=1, twin=KnownModel(*[Reply(image=RED)] * 2))
    points = trade_offs(records, {"text-to-image": "clip_t"})
    assert points[["method", "steps"]].to_numpy().tolist() == [["diffusion", "8"], ["diffusion", "1"], [TWIN, ""]]
    assert points["quality"].tolist() == [0.5, 0.5, 1] and (points["latency_low"] <= points["latency_high"]).all()
    at_once = points.iloc[:1].assign(task="text-to-speech", method="diffusion, all at once")  # only in the second panel
    figure = plots.quality_latency(pd.concat([points, at_once]),
                                   {"text-to-image": "CLIP-T ↑", "text-to-speech": "WER ↓"})
    assert [axis.yaxis_inverted() for axis in figure.axes] == [False, True]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["diffusion", TWIN, "diffusion, all at once"]


def test_the_position_penalty_is_compared_with_none_on_the_same_prompts():
    class Penalised(KnownModel):
        def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
            self.calls.append(decoding)
            return [Reply(image=BLACK if decoding["position_penalty"] == 1 else RED)] * len(requests)

    model = Penalised()
    records, items = evaluate_penalties(model, JUDGES, drawings(2), QUICK, tokens=64)
    assert model.calls == list(penalties(64).values()) and model.calls[0]["position_free"] == 25
    for form in (FIXED, RAMP):
        assert cells(records, f"diffusion: {form} minus {WITHOUT}")["clip_t"] == 1
    assert len(items) == 6 and penalties(256)[FIXED]["position_free"] == 100


# --- printed from records --------------------------------------------------------------------------------------------


def test_tables_are_printed_from_records_and_say_what_is_missing(tmp_path):
    row = "diffusion: text-to-image, 10 steps"
    records = measured("table3_sampling", row, 0, {"clip_t": Estimate(0.5, 0.4, 0.6, 9)})
    records = with_provenance(records, {"preset": "smoke", "seed": 0, "hardware": "a machine"})
    artifacts = Artifacts.of("smoke", tmp_path)
    write_records(artifacts.metrics / "table3_sampling.json", records)
    page = printed("3", artifacts)
    assert page == save_sections("3", records, artifacts.tables)
    assert {p.stem for p in artifacts.tables.glob("*.md")} == {section.name for section in SECTIONS["3"]}
    (line,) = [line for line in page.splitlines() if line.startswith("| text-to-image, 10 steps")]
    assert line.split(" | ")[1:3] == ["0.226", "0.65"] and "0.500 [0.400, 0.600] n=9" in line
    assert f"| {TWIN} |" in page and "1176.1" in page and page.count("– (not measured: run notebook ") == 5
    assert page.count("run notebook 14") == 3, "the twin's rows come with the twin"
