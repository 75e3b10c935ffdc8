"""Spoken MME on hand-worked cases: acc and acc+ differ, one answer is both read and heard, a voice's cost is paired."""

import numpy as np
import pytest
from known import Reply

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.paired import TWIN, evaluate_both
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.spoken_mme import (SPOKEN, TYPED, WRITTEN, evaluate_spoken_mme, spoken_ceiling,
                                                 spoken_mme_differences)
from omnidiff_lite.media import Waveform
from omnidiff_lite.world.recipes import scene_ref
from omnidiff_lite.world.scenes import sample_scene
from omnidiff_lite.world.splits import stream
from omnidiff_lite.world.voices import test_voices as voices_of_tests

QUICK = Settings(bootstrap=50, image_sizes=(64, 64))
SCENE = sample_scene(stream("spoken"), load_preset("smoke").world, "test")
WORDS = {"yes": 1, "no": 2}  # spoken as tones of this many tenths of a second


def tone(word: str) -> Waveform:
    return Waveform(np.full(2205 * WORDS[word], 0.1, np.float32), 22050)


class Ear:
    """Hears the tones as the words, and anything longer as "yes"."""

    def transcribe(self, waves):
        return [{round(10 * tone(word).seconds): word for word in WORDS}.get(round(10 * wave.seconds), "yes")
                for wave in waves]


class Answers:
    """Says `typed` to typed questions; to spoken ones writes `written` and says `spoken`."""

    def __init__(self, typed: str, written: str, spoken: str) -> None:
        self.given = {"vqa": [Reply(text) for text in typed.split()],
                      "svqa": [Reply(text, tone(word)) for text, word in zip(written.split(), spoken.split())]}
        self.asked = []

    def generate_many(self, requests, to, task=None, decoding=None, seed=0, batch_size=16):
        self.asked.append((task, to))
        return self.given[task]


def questions() -> list[Sample]:
    """Two pictures of "count", one of "color"; of each a question with the answer yes, and one with no."""
    return [Sample(build_messages("vqa", "is there a circle", answer), [scene_ref(SCENE)], [], "vqa",
                   {"question": "is there a circle", "answer": answer, "kind": kind, "image": image})
            for kind, image in (("count", 0), ("count", 1), ("color", 0)) for answer in ("yes", "no")]


def cells(records, row):
    return {r.column: r.value for r in records if r.row == row}


def test_accuracy_and_accuracy_plus_add_up_by_subtask():
    model = Answers(typed="yes no yes yes yes no", written="yes no no no no yes", spoken="yes yes yes yes yes yes")
    records, items = evaluate_spoken_mme(model, Ear(), questions(), voices_of_tests(), QUICK)
    # count: three of four questions, one of two pictures: 75 + 50. color: both, and its picture: 100 + 100.
    assert cells(records, f"diffusion: {TYPED}") == {
        "mme_p": pytest.approx(325), "mme_count": 125, "mme_color": 200, "mme_accuracy": pytest.approx(500 / 6),
        "mme_accuracy_plus": pytest.approx(200 / 3)}
    assert cells(records, f"diffusion: {WRITTEN}")["mme_p"] == pytest.approx(125)  # 75 + 50, and 0
    assert cells(records, f"diffusion: {SPOKEN}")["mme_p"] == pytest.approx(100)  # always yes: half, and no picture
    assert cells(records, f"diffusion: {WRITTEN} minus {TYPED}") == {"mme_p": pytest.approx(-200)}
    assert cells(records, f"diffusion: {SPOKEN} minus {WRITTEN}") == {"mme_p": pytest.approx(-25)}
    assert model.asked == [("vqa", "text"), ("svqa", ("text", "speech"))], "a spoken question is answered once"
    assert items.groupby("setting")["right"].sum().to_dict() == {TYPED: 5, WRITTEN: 3, SPOKEN: 3}


def test_the_twin_stands_beside_it():
    best = Answers(*["yes no yes no yes no"] * 3)
    poor = Answers(*["yes yes yes yes yes yes"] * 3)
    records, _, _ = evaluate_both(
        lambda who, how: evaluate_spoken_mme(who, Ear(), questions(), voices_of_tests(), how), poor, best, QUICK,
        spoken_mme_differences)
    assert cells(records, f"{TWIN}: {SPOKEN}")["mme_p"] == 400
    between = [r for r in records if r.row == f"{TWIN} minus diffusion: {SPOKEN}"]
    assert between[0].value == 300 and between[0].n == 6


def test_the_ceiling_is_as_many_recordings_as_answers():
    records = spoken_ceiling(Ear(), questions(), Settings(row="real", bootstrap=50))
    assert cells(records, f"real: {SPOKEN}")["mme_accuracy"] == 50  # this judge hears every real voice say yes
    assert {(r.low, r.reason) for r in records} == {(None, "no interval: 2 recordings")}
    through = spoken_ceiling(Ear(), questions(), Settings(row="real", bootstrap=50), lambda waves: [None] * len(waves))
    assert cells(through, f"real: {SPOKEN}")["mme_p"] == 0


def test_other_questions_cannot_be_paired():
    model = Answers(*["yes no yes no yes no"] * 3)
    _, items = evaluate_spoken_mme(model, Ear(), questions(), voices_of_tests(), QUICK)
    with pytest.raises(ValueError, match="same questions"):
        spoken_mme_differences(items, items[items["subtask"] == "color"], QUICK)
