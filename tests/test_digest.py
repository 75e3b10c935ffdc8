"""What digests claim: each number by hand with a model whose answers are known, and the table that disowns them."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from known import KnownModel, Reply

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.cli import main
from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.digest import (CLAIMS, RETRIEVAL_ITEMS, SPOKEN_ITEMS, TABLE, claims_table,
                                             evaluate_frechet, evaluate_spoken_answers, latency_records, not_measured,
                                             side_by_side, without_twin)
from omnidiff_lite.evaluation.paired import TWIN, differences
from omnidiff_lite.evaluation.records import Record, measured, paper_tables
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.statistics import Estimate
from omnidiff_lite.media import Image, Text, Waveform
from omnidiff_lite.world.dataset import samples

WORLD = load_preset("smoke").world
QUICK = Settings(bootstrap=50, image_sizes=(64, 64))
HALF = Estimate(50.0, 40.0, 60.0, 9)


class Reader:
    """Hears what is written in a sound's first sample: number k is the k-th text."""

    def __init__(self, *texts):
        self.texts = texts

    def transcribe(self, waves):
        return [self.texts[round(wave.samples[0])] for wave in waves]


def sound(number: int) -> Waveform:
    return Waveform(np.full(11025, number, np.float32), 22050)


def cells(records) -> dict[tuple[str, str], float]:
    return {(r.row, r.column): r.value for r in records}


def test_a_typed_question_is_answered_aloud_and_silence_is_wrong():
    asked = samples("svqa", "test", 3, 0, WORLD)
    truth = [sample.meta["answer"] for sample in asked]
    words = sum(len(text.split()) for text in truth)
    model = KnownModel(Reply(speech=sound(1)), Reply(speech=sound(2)), Reply())
    ear = Reader("", truth[0].upper() + ".", truth[1] + " or not")
    records, items = evaluate_spoken_answers(model, ear, asked, QUICK)
    expected = 100 * (0 + 2 + len(truth[2].split())) / words
    assert cells(records) == {("diffusion", "spoken_wer"): pytest.approx(expected),
                              ("diffusion", "spoken_right"): pytest.approx(100 / 3)}
    assert {r.table for r in records} == {TABLE} and items["right"].tolist() == [True, False, False]
    call, = model.calls
    words, picture = call["requests"][0]
    assert call["to"] == ("text", "speech") and call["task"] is None
    assert words == Text(asked[0].meta["question"]) and isinstance(picture, Image)
    none = differences(TABLE, SPOKEN_ITEMS, items, items, QUICK)
    assert {r.column: r.value for r in none} == {"spoken_wer": 0, "spoken_right": 0}


class Grey:
    """A picture's features are its mean grey and a constant."""

    def features(self, images):
        return np.array([[np.asarray(image.convert("L")).mean(), 7.0] for image in images])


def greys(*levels: int) -> list[PIL.Image.Image]:
    return [PIL.Image.new("RGB", (4, 4), (level,) * 3) for level in levels]


def test_frechet_rows_are_of_one_reference_and_the_twins_also_of_ours():
    """Grey levels: of 10 and 30 the mean is 20, the variance 200; of 60 and 80 it is 70, and the variance the same."""
    ours, twin, real = greys(10, 30), greys(60, 80), greys(10, 30)
    records = evaluate_frechet(Grey(), {"diffusion": ours, TWIN: twin, "real data (floor)": real}, real, QUICK)
    assert cells(records) == {("diffusion", "frechet"): pytest.approx(0, abs=1e-9),
                              (TWIN, "frechet"): pytest.approx(50 ** 2), ("real data (floor)", "frechet"):
                              pytest.approx(0, abs=1e-9), (f"{TWIN} minus diffusion", "frechet"): pytest.approx(2500)}
    lost, = evaluate_frechet(Grey(), {"diffusion": [ours[0], None]}, real, QUICK)
    black, = evaluate_frechet(Grey(), {"diffusion": [ours[0], *greys(0)]}, real, QUICK)
    assert lost.value == black.value > 0 and lost.n == 2


class Noted(KnownModel):
    """Says its name in a list that several share."""

    def __init__(self, name, log):
        super().__init__(Reply())
        self.name, self.log = name, log

    def generate_many(self, *given, **how):
        self.log.append((self.name, how["seed"], how["decoding"]))
        return super().generate_many(*given, **how)


def test_every_system_answers_a_request_before_any_answers_the_next():
    log = []
    systems = {"8 steps": (Noted("a", log), {"steps": 8}), TWIN: (Noted("b", log), None)}
    seconds = side_by_side(systems, samples("t2i", "test", 2, 0, WORLD), QUICK, to="image", task="t2i")
    one, two = [("a", 0, {"steps": 8}), ("b", 0, None)], [("a", 1, {"steps": 8}), ("b", 1, None)]
    assert log == [*one, *one, *two], "one to warm up, then two"
    assert seconds.shape == (2, 2) and (seconds > 0).all(None)


def test_a_ratio_of_seconds_is_the_median_over_requests():
    seconds = pd.DataFrame({"8 steps": [1.0, 2.0, 100.0], TWIN: [3.0, 4.0, 50.0]})
    assert cells(latency_records("t2i", seconds, QUICK)) == {
        ("diffusion", "latency_t2i_8 steps"): 2, (TWIN, "latency_t2i_8 steps"): 4,
        (f"{TWIN} over diffusion", "latency_t2i_8 steps"): 2}
    alone = latency_records("t2i", seconds[["8 steps"]], QUICK)
    assert [r.row for r in alone] == ["diffusion"]


def claimed() -> list[Record]:
    columns = ["caption_bleu4", "frechet", "spoken_wer", "spoken_right", *RETRIEVAL_ITEMS, "latency_t2i_8 steps"]
    return measured(TABLE, "diffusion", 0, dict.fromkeys(columns, HALF)) + not_measured()


def test_the_table_has_every_claim_and_says_that_the_paper_has_none():
    frame = claims_table([*claimed(), *measured(TABLE, "real data (floor)", 0, {"frechet": HALF}), *measured(
        TABLE, f"{TWIN} over diffusion", 0, {"latency_t2i_8 steps": HALF})])
    printed = paper_tables()["unverified_claims_of_a_digest"]["rows"]
    assert {claim.benchmark for claim in CLAIMS} == {row["benchmark"] for row in printed}
    assert all(any(row["claim"] in cell for cell in frame["digest", "prints"]) for row in printed)
    assert frame["paper", "claims of it"].str.startswith("nothing").all() and len(frame) == 9
    assert "table 1 measures it" in frame["ours", "diffusion"]["LibriSpeech"]
    fid = frame.loc["Fréchet distance on the judge's features (not FID) ↓"]
    assert fid["ours", "diffusion"] == fid["ours", "real data"] == "50.0 [40.0, 60.0] n=9"
    seconds = frame.loc["text-to-image, 8 steps: seconds a request ↓"]
    assert seconds["ours", "twin against diffusion"] == "× 50.0 [40.0, 60.0] n=9"


def test_without_a_twin_every_cell_of_it_says_why():
    records = claimed()[:3] + measured(TABLE, TWIN, 0, {"frechet": HALF})
    lacking = without_twin(records, "no twin")
    assert [(r.row, r.column, r.reason) for r in lacking] == [
        (TWIN, "caption_bleu4", "no twin"), (TWIN, "spoken_wer", "no twin")]
    assert without_twin(records, KnownModel()) == []


def test_the_command_line_prints_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMNIDIFF_RESULTS", str(tmp_path))
    assert main(["table", "digest"]) == 1 and "run notebook 15_digest_claims first" in capsys.readouterr().err
    (Artifacts.of("smoke").tables / "digest_claims.md").write_text("| the table |\n")
    assert main(["table", "digest"]) == 0 and capsys.readouterr().out == "| the table |\n"
