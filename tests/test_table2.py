"""Table 2's own arithmetic: acc and acc+, twin minus diffusion on the same items, and what is shown where."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from known import KnownModel, Reply

from omnidiff_lite.config import load_preset
from omnidiff_lite.evaluation.records import measured, missing
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.statistics import Estimate
from omnidiff_lite.evaluation.table2 import (by_part, caption_differences, choice_differences, choice_errors,
                                             chosen, evaluate_mme_parts, mme_differences, pope_differences)
from omnidiff_lite.evaluation.vision import bleu, bleu_statistics, mme_accuracies, mme_scores, pope_scores
from omnidiff_lite.world import benchmarks

FEW = Settings("twin minus diffusion", bootstrap=200)


def asked(answers: str, said: str, subtask: str = "count") -> pd.DataFrame:
    """Questions in pairs about one picture, answers by their first letters: yes, no, - for neither."""
    words = {"y": "yes", "n": "no", "-": ""}
    return pd.DataFrame({"picture": [str(i // 2) for i in range(len(answers))], "subtask": subtask,
                         "answer": [words[a] for a in answers], "prediction": [words[s] for s in said],
                         "right": [a == s for a, s in zip(answers, said)]})


def values(records) -> dict[str, float]:
    assert {r.row for r in records} == {FEW.row}
    return {r.column: pytest.approx(r.value) for r in records}


def test_acc_and_acc_plus_differ_where_pictures_are_half_right():
    """Three of four questions right, one of two pictures: 75 + 50."""
    items = asked("ynyn", "ynyy")
    parts = mme_accuracies(items, FEW)
    assert {name: e.value for name, e in parts.items()} == {"mme_count_accuracy": 75, "mme_count_accuracy_plus": 50}
    assert [e.n for e in parts.values()] == [4, 2]
    whole = mme_scores(items["subtask"], items["picture"], items["right"], FEW)["mme_count"].value
    assert whole == sum(e.value for e in parts.values())


def test_all_ten_subtasks_are_named_and_those_that_the_world_lacks_say_why():
    world = load_preset("smoke").world
    asked_for = [q for name in benchmarks.SUBTASKS for q in benchmarks.mme(name, 2, 0, world)]
    records, items = evaluate_mme_parts(KnownModel(*[Reply("yes")] * 20), asked_for, replace(FEW, image_sizes=(64, 64)))
    found = {r.column.removeprefix("mme_"): r for r in records}
    assert {name for name in found if not name.endswith(("accuracy", "accuracy_plus", "p"))} == {
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"}
    assert found["p"].value == 250 and found["OCR_accuracy"].value == 50 and found["OCR_accuracy_plus"].value == 0
    assert found["landmark"].value is None and found["landmark"].reason == "the world has no landmarks"
    assert len(items) == 20


def test_differences_are_those_of_the_two_scores():
    """POPE's accuracy and F1, MME's sum, BLEU, and means, each against the function that scores one system."""
    truth, said = "ynynynyn", ("ynyyynnn", "yyyy-nyy")
    ours, twin = (asked(truth, s) for s in said)
    f1 = [pope_scores(items["answer"], items["prediction"], settings=FEW)["f1"].value for items in (ours, twin)]
    captions = [pd.DataFrame({"bleu": [bleu_statistics(text, [reference]) for text, reference in zip(
        texts, ("a red dog runs home", "a blue star is up here"))], "cider": [1.0, 2.0], "all_right": [True, False]})
        for texts in (("a red dog runs home", "a blue star is down here"), ("a red dog runs", "the star"))]
    scores = [float(bleu(np.sum(items["bleu"].tolist(), axis=0))) for items in captions]
    found = values(pope_differences("pope_popular", ours, twin, FEW) + caption_differences(*captions, FEW))
    assert found == {"pope_popular_accuracy": 100 * (6 - 4) / 8, "pope_popular_f1": f1[0] - f1[1],
                     "caption_bleu4": scores[0] - scores[1], "caption_cider": 0, "caption_all_right": 0}
    assert f1[0] != f1[1] and scores[0] > scores[1]


def test_mmes_difference_counts_pictures_within_their_subtasks():
    """count: 200 against 125; color (one picture): 50 against 200."""
    ours = pd.concat([asked("ynyn", "ynyn"), asked("yn", "yy", "color")])
    twin = pd.concat([asked("ynyn", "ynyy"), asked("yn", "yn", "color")])
    record, = mme_differences(ours, twin, FEW)
    assert record.value == pytest.approx(75 - 150) and record.n == 6
    assert -150 <= record.low <= record.value <= record.high <= 0
    with pytest.raises(ValueError, match="same questions"):
        mme_differences(ours, twin[twin["subtask"] == "count"], FEW)


def test_a_difference_has_an_interval_that_pairs_the_items():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    ours = pd.DataFrame({"right": hard, "picture": range(200)})
    twin = pd.DataFrame({"right": hard & (rng.random(200) < 0.9), "picture": range(200)})
    record, = choice_differences("seed2plus_letter", ours, twin, FEW)
    assert record.column == "seed2plus_letter" and 0 < record.low < record.value < record.high < 12


def test_the_figure_that_is_shown_is_copied_for_every_row_that_has_it():
    half = Estimate(50.0, 40.0, 60.0, 9)
    records = measured("t", "a", 0, {"pope_random_f1": half, "other": half}) + measured("t", "b", 0, {
        "pope_random_f1": half})
    assert [(r.row, r.column) for r in chosen(records, {"pope": "pope_random_f1"})] == [("a", "pope"), ("b", "pope")]
    with pytest.raises(ValueError, match="pope cannot show 'pope_random_f2': choose from pope_random_f1"):
        chosen(records, {"pope": "pope_random_f2"})


def test_parts_stand_side_by_side_with_reasons_where_there_is_none():
    records = [*measured("t", "a", 0, {"mme_count": Estimate(125.0, 100.0, 150.0, 4)}),
               missing("t", "a", "mme_posters", "no films")]
    frame = by_part(records, "mme", ("count", "posters"), {"": "score", "_acc": "acc"}, ("a", "b"))
    assert frame["a", "score"].tolist() == ["125.0 [100.0, 150.0] n=4", "– (no films)"]
    assert (frame.drop(columns=("a", "score")) == "").all(None)


def test_choices_that_the_draws_cannot_tell_apart_are_counted():
    """Margins 1 and 3 at errors of 1 each: twice the error of a difference is 2.8. Exact scores are always sure."""
    items = pd.DataFrame({"score_A": [-1.0, -4.0], "score_B": [-2.0, -1.0], "score_C": [-9.0, np.nan],
                          "error_A": [1.0, 1.0], "error_B": [1.0, 1.0], "error_C": [1.0, np.nan]})
    found = choice_errors(items, "words", FEW)
    assert {name: e.value for name, e in found.items()} == {"words_error": 1, "words_unsure": 50}
    exact = choice_errors(items.assign(error_A=0.0, error_B=0.0, error_C=0.0), "words", FEW)
    assert exact["words_unsure"].value == exact["words_error"].value == 0
    assert exact["words_error"].low is None, "nats have no upper bound"
