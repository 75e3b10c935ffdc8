"""POPE, MME, multiple choice, BLEU and CIDEr, worked by hand."""

import math

import numpy as np
import pytest
import sacrebleu

from omnidiff_lite.chat import Sample
from omnidiff_lite.evaluation.cider import caption_words, cider_scores
from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.statistics import bootstrap_interval, ratio
from omnidiff_lite.evaluation.vision import (bleu, bleu_statistics, chosen_letter, mme_scores, multiple_choice_accuracy,
                                             pope_scores, right_letter, yes_or_no)

FEW = Settings(bootstrap=100)


@pytest.mark.parametrize("text, word", [
    ("Yes", "yes"), ("no", "no"), (" no, there is not.", "no"), ("<|im_start|>yes<|im_end|>", "yes"),
    ("\nYES.", "yes"), ("<|im_start|> No<|im_end|>", "no"), ("Not visible", "no"), ("nothing", "no"), ("know", "no"),
    ("a no", "no"), ("noyes", "no"), ("eyes", "yes"), ("I think yes", "other"), ("There is no", "other"), ("", "other"),
    (None, "other")])
def test_an_answer_is_read_as_mmes_own_script_reads_it(text, word):
    """parse_pred_ans of calculation.py: the answer itself, or what its first four characters hold."""
    assert yes_or_no(text) == word


def test_popes_five_figures():
    #          true yes  false no  true no  false yes  neither   true yes
    answers = ["yes", "yes", "no", "no", "no", "yes"]
    said = ["yes", "no", "no", "yes", "", "Yes."]
    scores = {name: estimate.value for name, estimate in pope_scores(answers, said, settings=FEW).items()}
    assert scores == pytest.approx({"accuracy": 50, "precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "yes": 50})


def test_pope_without_any_yes_is_zero_not_undefined():
    scores = pope_scores(["yes", "no"], [None, "no"], settings=FEW)
    assert scores["precision"].value == scores["f1"].value == scores["recall"].value == 0
    assert scores["accuracy"].value == 50


def test_popes_zeros_have_upper_bounds():
    """Eight questions, four of them to be answered yes; yes is said in the four wrong places, or nowhere."""
    answers = ["yes"] * 4 + ["no"] * 4
    open_end = 100 * (1 - 0.025 ** (1 / 4))
    wrong = pope_scores(answers, ["no"] * 4 + ["yes"] * 4, settings=FEW)
    assert [wrong[name].low for name in ("accuracy", "precision", "recall", "f1")] == [0, 0, 0, 0]
    assert wrong["precision"].high == wrong["recall"].high == pytest.approx(open_end)
    overlap = 1 - 0.025 ** (1 / 8)
    assert wrong["f1"].high == pytest.approx(100 * 2 * overlap / (1 + overlap))
    never = pope_scores(answers, ["no"] * 8, settings=FEW)
    assert never["recall"].high == pytest.approx(open_end)
    assert never["precision"].low is None and "share of no items" in never["precision"].reason


def test_f1_and_its_interval_are_those_of_the_usual_formula():
    rng = np.random.default_rng(0)
    truth, said = rng.random(200) < 0.5, rng.random(200) < 0.6
    words = lambda flags: ["yes" if flag else "no" for flag in flags]  # noqa: E731
    f1 = pope_scores(words(truth), words(said), settings=FEW)["f1"]
    items = np.column_stack([2 * (truth & said), 1 * truth + said])
    usual = bootstrap_interval(items, ratio, **FEW.resampling).scaled(100)
    assert (f1.value, f1.low, f1.high) == pytest.approx((usual.value, usual.low, usual.high), rel=1e-3)


def test_mme_where_nothing_is_right_has_upper_bounds():
    subtasks, pictures = ["count"] * 8 + ["color"] * 8, [str(i // 2) for i in range(16)]
    scores = mme_scores(subtasks, pictures, [False] * 16, FEW)
    open_end = 200 * (1 - 0.025 ** (1 / 4))
    assert (scores["mme_count"].low, scores["mme_count"].high) == (0, pytest.approx(open_end))
    assert (scores["mme_p"].low, scores["mme_p"].high) == (0, pytest.approx(2 * open_end))
    assert mme_scores(subtasks, pictures, [True] * 16, FEW)["mme_p"].low == pytest.approx(400 - 2 * open_end)


def test_mme_counts_questions_and_whole_pictures():
    """Picture a: both right; b: one of two. accuracy 3/4, accuracy+ 1/2."""
    scores = mme_scores(["count"] * 4, ["a", "a", "b", "b"], [True, True, True, False], FEW)
    assert scores["mme_count"].value == pytest.approx(75 + 50) == scores["mme_p"].value
    assert scores["mme_count"].n == 4


def test_mme_sums_its_subtasks_and_resamples_within_them():
    subtasks = ["count"] * 4 + ["color"] * 2
    pictures = ["a", "a", "b", "b", "a", "a"]  # one picture may serve two subtasks
    scores = mme_scores(subtasks, pictures, [True, True, False, False, True, True], FEW)
    assert (scores["mme_count"].value, scores["mme_color"].value, scores["mme_p"].value) == (100, 200, 300)
    assert scores["mme_p"].low >= 200 and scores["mme_p"].n == 6


def test_mme_needs_pairs():
    with pytest.raises(ValueError, match="two questions a picture; 'b' of count has 1"):
        mme_scores(["count"] * 3, ["a", "a", "b"], [True] * 3)


@pytest.mark.parametrize("text, letter", [
    ("B", "B"), (" b. blue", "B"), ("(C) red", "C"), ("D: two", "D"), ("A red bar", ""), ("blue", ""), ("", ""),
    (None, ""), ("<|begin|>A<|im_end|>", "A")])
def test_the_letter_that_an_answer_opens_with(text, letter):
    assert chosen_letter(text) == letter


@pytest.mark.parametrize("answer, choices, letter", [
    ("B", ["3", "4", "5"], "B"), ("c", ["3", "4", "5"], "C"), ("4", ["3", "4", "5"], "B"), ("x", ["w", "x"], "B"),
    ("blue", ["red", "blue"], "B"), ("A", ["B", "A", "C"], "A"), ("D", [], "D")])
def test_the_right_letter_is_the_answer_or_stands_before_its_words(answer, choices, letter):
    """Where choices are letters themselves, the answer is one of the letters before them, as benchmarks have it."""
    assert right_letter(Sample([], meta={"answer": answer, "choices": choices})) == letter


@pytest.mark.parametrize("answer", ["6", "E", "four"])
def test_an_answer_that_is_no_choice_is_told(answer):
    with pytest.raises(ValueError, match=f"'answer' is '{answer}': give one of A, B, C, or one of the choices in"):
        right_letter(Sample([], meta={"answer": answer, "choices": ["3", "4", "5"]}))


def test_multiple_choice_accuracy():
    estimate = multiple_choice_accuracy(["A", "B", "C", "D"], ["A.", "A", "c", None], settings=FEW)
    assert estimate.value == 50 and estimate.n == 4


def test_bleu_of_summed_statistics_is_sacrebleus():
    hypotheses = ["a red circle above a blue square", "there is a small star", "a cat"]
    references = [["a red circle above a large blue square", "a circle over a square"],
                  ["there is a small yellow star", "a star"], ["there is a dog", "a dog"]]
    sums = np.sum([bleu_statistics(h, r) for h, r in zip(hypotheses, references)], axis=0)
    official = sacrebleu.corpus_bleu(hypotheses, list(map(list, zip(*references))), lowercase=True).score
    assert float(bleu(sums)) == pytest.approx(official) and official > 10


def test_bleu_smooths_like_sacrebleu_and_is_zero_for_nothing():
    sums = np.array(bleu_statistics("a red dog and a red cat", ["a red bird or the blue cat"]))
    assert float(bleu(sums)) == pytest.approx(
        sacrebleu.corpus_bleu(["a red dog and a red cat"], [["a red bird or the blue cat"]]).score)
    assert float(bleu(np.array(bleu_statistics("", ["a red bird"])))) == 0


def test_cider_of_three_captions():
    """Idf: "a" is in all three reference sets, so it weighs log 1 = 0; every other gram is in one, log 3.

    First: equal to its reference, all orders match but 4-grams, which neither has: 10 * 3/4.
    Second: "a blue star" against "a blue ring": of unigrams blue matches, of (blue, ring) and (blue, star): cosine 1/2;
    of bigrams "a blue" of two: 1/2; the trigram differs: 10/4 * (1/2 + 1/2). Third: nothing in common.
    """
    scores = cider_scores(["a red dog", "a blue star", "no idea"], [["a red dog"], ["a blue ring"], ["a green tree"]])
    assert scores == pytest.approx([7.5, 2.5, 0.0])


def test_cider_punishes_length_and_clips_repeats():
    references = [["a red dog"], ["blue ring"]]
    short = cider_scores(["a red dog", "blue ring"], references)
    long = cider_scores(["a red dog dog dog", "blue ring"], references)
    # unigram weights (1, 1, 3) against (1, 1, 1): dog is clipped to 1; bigrams (1, 1, 2) with no match of "dog dog"
    unigram, bigram, trigram = 3 / math.sqrt(11 * 3), 2 / math.sqrt(6 * 2), 1 / math.sqrt(3)
    assert short[0] == pytest.approx(7.5)
    assert long[0] == pytest.approx(2.5 * (unigram + bigram + trigram) * math.exp(-4 / 72))


def test_captions_are_compared_without_case_and_punctuation():
    """As COCO's server does, whose references nearly all end in a full stop."""
    plain, typed = "a man's black-and-white dog", "A man's black-and-white dog."
    assert caption_words(typed) == ["a", "man", "'s", "black-and-white", "dog"] == caption_words(f"'{plain}'")
    assert cider_scores([plain, "x"], [[typed], ["y"]])[0] == pytest.approx(10)
    assert float(bleu(np.array(bleu_statistics(plain, [typed])))) == pytest.approx(100)


def test_cider_averages_over_references_and_refuses_none():
    one, two = cider_scores(["a b", "c"], [["a b", "x y"], ["c"]])
    assert one == pytest.approx(cider_scores(["a b", "c"], [["a b"], ["c"]])[0] / 2) and two > 0
    with pytest.raises(ValueError, match="at least one reference"):
        cider_scores(["a"], [[]])
