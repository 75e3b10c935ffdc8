"""Log-likelihoods: exact if all masks are taken, fair between candidates; choices and retrieval based on them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import toys
import torch

from omnidiff_lite.backbone import Denoiser, DenoiserOutput
from omnidiff_lite.chat import IGNORE, IMAGE, TASKS, ChatError, Sample, build_messages
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.evaluation.log_likelihood import Likelihood, answer_masks, log_likelihoods
from omnidiff_lite.evaluation.likelihood import evaluate_choices, likeliest, score_answers, score_table
from omnidiff_lite.evaluation.requests import Settings, reference_images, requests_of
from omnidiff_lite.evaluation.retrieval import candidate_sets, evaluate_retrieval, rank_of_first
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.requests import read_request
from omnidiff_lite.world import benchmarks
from omnidiff_lite.world.captions import wordings
from omnidiff_lite.world.dataset import samples as world_samples
from omnidiff_lite.world.scenes import Scene

V = toys.VOCABULARY
QUICK = Settings(bootstrap=50, image_sizes=(64, 64))


def answered(answer: list[int], prompt: tuple[int, ...] = (1, 2)) -> EncodedSample:
    """An answer without closing: its length is what is given."""
    ids, labels = [*prompt, *answer], [IGNORE] * len(prompt) + answer
    return EncodedSample(np.array(ids, np.int32), np.array(labels, np.int32), np.zeros((0, toys.SPEECH_DIM)), "text_qa")


class Places(torch.nn.Module):
    """A denoiser whose prediction depends on the position alone; keeps what it was asked."""

    def __init__(self, places: int = 40, spread: float = 2.0) -> None:
        super().__init__()
        self.config, self.device, self.calls = toys.denoiser().config, torch.device("cpu"), []
        self.table = spread * torch.randn(places, V.size, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids, speech_frames=None, segment_ids=None, position_ids=None, logits_positions=None,
                masked_share=None):
        self.calls.append(SimpleNamespace(ids=input_ids, segments=segment_ids, scored=logits_positions))
        return DenoiserOutput(logits=self.table[position_ids[logits_positions]])

    def exact(self, sample: EncodedSample) -> float:
        places = np.flatnonzero(sample.labels != IGNORE)
        return self.table.log_softmax(-1)[places - 1, sample.labels[places]].sum().item()


class Oracle(torch.nn.Module):
    """Expects after each prompt that it knows the answer that it knows, token by token; knows nothing else."""

    def __init__(self, like: OmniDiffusion, known: dict[tuple[int, ...], list[int]], sure: float = 3.0) -> None:
        super().__init__()
        self.config, self.device, self.known, self.sure = like.denoiser.config, like.device, known, sure

    def forward(self, input_ids, speech_frames=None, segment_ids=None, position_ids=None, logits_positions=None,
                masked_share=None):
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            for prompt, answer in self.known.items():
                if tuple(ids[:len(prompt)]) == prompt:
                    for place, token in enumerate(answer[:len(ids) - len(prompt)], len(prompt) - 1):
                        logits[row, place, token] = self.sure
        return DenoiserOutput(logits=logits[logits_positions])


def by_hand(model, sample: EncodedSample) -> float:
    """The expectation over l and over all masks of l tokens, one by one."""
    places, total = np.flatnonzero(sample.labels != IGNORE), 0.0
    for count in range(1, len(places) + 1):
        for hidden in itertools.combinations(places, count):
            ids = torch.from_numpy(sample.ids).long()[None]
            ids[0, list(hidden)] = V.mask
            found = model(ids).logits[0].log_softmax(-1)
            total += sum(found[p - 1, sample.ids[p]].item() for p in hidden) / count / math.comb(len(places), count)
    return total


# --- the estimate -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Random weights, whose predictions depend on what is seen."""
    model = toys.denoiser(initializer_range=0.5).eval()
    model.lm_head.weight.data /= 3
    return model


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_answers_are_enumerated_exactly(model, length):
    sample = answered([3, 7, 5][:length])
    with torch.no_grad():
        expected = by_hand(model, sample)
    found, = log_likelihoods(model, [sample])
    assert found.value == pytest.approx(expected, abs=1e-4) and found.error == 0 and found.tokens == length
    masks, shares = answer_masks(length)
    assert len(masks) == 2 ** length - 1 and shares.sum().item() == pytest.approx(1)


def test_an_answer_of_one_token_is_its_plain_log_probability(model):
    ids = torch.tensor([[1, 2, V.mask]])
    with torch.no_grad():
        expected = model(ids).logits[0, 1].log_softmax(-1)[4].item()
    found, = log_likelihoods(model, [answered([4])], draws=2)
    assert found == Likelihood(pytest.approx(expected, abs=1e-5), 0.0, 1)


def test_draws_agree_with_the_expectation(model):
    """Six tokens have 63 masks: one draw fewer, and they are drawn."""
    sample = answered([3, 7, 5, 0, 11, 2])
    exact, = log_likelihoods(model, [sample], draws=63, batch=64)
    drawn, = log_likelihoods(model, [sample], draws=62, batch=64)
    assert exact.error == 0 < drawn.error and exact.tokens == drawn.tokens == 6
    assert abs(drawn.value - exact.value) < 4 * drawn.error


def test_the_error_is_that_of_the_estimate():
    """Over many seeds the estimates scatter round the truth by as much as each says."""
    model, sample = Places(), answered([3, 7, 5, 0, 11, 2, 4, 4])
    found = [log_likelihoods(model, [sample], draws=20, seed=seed, batch=64)[0] for seed in range(150)]
    values, errors = (np.array([getattr(each, name) for each in found]) for name in ("value", "error"))
    scatter = values.std(ddof=1)
    assert abs(values.mean() - model.exact(sample)) < 4 * scatter / math.sqrt(len(values))
    assert np.sqrt((errors ** 2).mean()) == pytest.approx(scatter, rel=0.25)


def test_masks_are_drawn_without_replacement_and_shared_by_equal_lengths():
    masks, shares = answer_masks(12, draws=4000)
    counts = masks.sum(1)
    assert shares is None and masks.shape == (4000, 12) and counts.min() == 1 and counts.max() == 12
    np.testing.assert_allclose(counts.bincount(minlength=13)[1:] / 4000, np.full(12, 1 / 12), atol=0.02)
    np.testing.assert_allclose(masks.double().mean(0), np.full(12, 6.5 / 12), atol=0.04)
    assert torch.equal(masks, answer_masks(12, draws=4000).hidden)
    assert not torch.equal(masks, answer_masks(12, draws=4000, seed=1).hidden)
    stub = Places()
    log_likelihoods(stub, [answered([1] * 7), answered([2] * 7)], draws=10, batch=10)
    first, second = (call.ids == V.mask for call in stub.calls)
    assert torch.equal(first, second)


def test_only_hidden_tokens_are_scored_and_padding_is_seen_by_nobody():
    stub = Places()
    short, long = answered([3] * 6), answered([5] * 8, prompt=(1, 2, 3))
    log_likelihoods(stub, [long, short], draws=5, batch=10)
    call, = stub.calls
    assert torch.equal(call.scored[:, :-1], (call.ids == V.mask)[:, 1:]) and call.scored.sum() > 10
    assert (call.segments[:5] == torch.tensor([0] * 8 + [-1] * 3)).all() and (call.segments[5:] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_changes_nothing(causal):
    model = toys.denoiser(initializer_range=0.5, is_causal=causal).eval()
    samples = toys.copying(4) + toys.hearing(3) + [answered([2])]  # words, frames, and many lengths
    alone = [log_likelihoods(model, [sample], draws=9, batch=1)[0] for sample in samples]
    for batch in (3, 64):
        together = log_likelihoods(model, samples, draws=9, batch=batch)
        np.testing.assert_allclose([[t.value, t.error] for t in together], [[a.value, a.error] for a in alone],
                                   rtol=1e-4, atol=1e-4)
    assert [a.tokens for a in alone] == [int((s.labels != IGNORE).sum()) for s in samples]


def test_a_causal_denoiser_sums_next_token_log_probabilities():
    model = toys.denoiser(initializer_range=0.5, is_causal=True).eval()
    sample = toys.copying(1)[0]
    with torch.no_grad():
        logits = model(torch.from_numpy(sample.ids).long()[None]).logits[0].log_softmax(-1)
    places = np.flatnonzero(sample.labels != IGNORE)
    expected = logits[places - 1, sample.ids[places]].sum().item()
    found, = log_likelihoods(model, [sample], draws=2)
    assert found == Likelihood(pytest.approx(expected, abs=1e-4), 0.0, len(places))
    assert found.per_token().value == pytest.approx(found.value / len(places))


def test_what_cannot_be_scored_is_told(model):
    fine = answered([3])
    nothing = dataclasses.replace(fine, labels=np.full(3, IGNORE))
    bare = dataclasses.replace(fine, labels=fine.ids)
    for samples, how, error, words in (
            ([fine, nothing], {}, ValueError, "sample 1 has no answer.*assistant's turn"),
            ([bare], {}, ValueError, "sample 0 has no prompt"),
            ([[1, 2, 3]], {}, TypeError, "sample 0 is a list: give EncodedSample"),
            ([fine], {"draws": 1}, ValueError, "draws is 1: give a whole number of at least 2"),
            ([fine], {"draws": 2.5}, ValueError, "draws is 2.5"),
            ([fine], {"seed": -1}, ValueError, "seed is -1"),
            ([fine], {"batch": 0}, ValueError, "batch is 0")):
        with pytest.raises(error, match=words):
            log_likelihoods(model, samples, **how)
    assert log_likelihoods(model, []) == []


# --- multiple choice --------------------------------------------------------------------------------------------------


def system(model: OmniDiffusion, known: dict[tuple[int, ...], list[int]]) -> OmniDiffusion:
    return OmniDiffusion(Oracle(model, known), model.tokenizers, model.settings)


def known(model: OmniDiffusion, questions: list[Sample], answers: list, task: str) -> dict[tuple[int, ...], list[int]]:
    """The tokens that answer each question's prompt."""
    requests = [read_request(parts, TASKS[task].outputs, task) for parts in requests_of(questions, None, 64)]
    prompts = [tuple(ids) for ids, _ in model.prompts(requests)]
    assert len(set(prompts)) == len(prompts), "an oracle needs questions that differ"
    return dict(zip(prompts, (spoken(model, answer) for answer in answers), strict=True))


def spoken(model: OmniDiffusion, answer) -> list[int]:
    written = isinstance(answer, str)
    turn = [{"role": "assistant", "content": answer if written else IMAGE}]
    return [label for label in model.chat.sample(turn, () if written else (answer,))[1] if label != IGNORE]


@pytest.fixture(scope="module")
def questions(tiny_preset):
    return benchmarks.seed_bench(6, 0, tiny_preset.world)


def test_the_known_letter_is_chosen(tiny_model, questions):
    letters = [sample.meta["answer"] for sample in questions]
    wrong = ["A" if letter != "A" else "B" for letter in letters[3:]]  # the last three questions are misjudged
    model = system(tiny_model, known(tiny_model, questions, letters[:3] + wrong, "vqa"))
    (record,), items = evaluate_choices(model, questions, QUICK)
    assert (record.table, record.column, record.value, record.n) == ("table2_vision", "seed2plus_likelihood", 50, 6)
    assert record.low < 50 < record.high and items["prediction"].tolist() == letters[:3] + wrong
    assert items["right"].tolist() == [True] * 3 + [False] * 3
    assert (items[[f"error_{x}" for x in "ABCD"]] == 0).all(None)
    # Only the letter's own log-probability tells the choices apart: the closing is the same.
    apart = items[[f"score_{x}" for x in "ABCD"]].max(axis=1) - items[[f"score_{x}" for x in "ABCD"]].min(axis=1)
    np.testing.assert_allclose(apart, 3.0, atol=1e-5)


def test_words_are_asked_for_without_the_options(tiny_model, questions):
    asked = [dataclasses.replace(s, messages=build_messages("vqa", s.meta["question"])) for s in questions]
    right = [s.meta["choices"]["ABCD".index(s.meta["answer"])] for s in questions]
    model = system(tiny_model, known(tiny_model, asked, right, "vqa"))
    (record,), items = evaluate_choices(model, questions, QUICK, words=True, per_token=True, name="by_words", draws=8)
    assert record.column == "by_words" and record.value == 100
    whole = evaluate_choices(model, questions, QUICK, words=True, draws=8)[1]
    tokens = len(spoken(tiny_model, questions[0].meta["choices"][0]))
    assert items["score_A"][0] == pytest.approx(whole["score_A"][0] / tokens)
    assert items["error_A"][0] == pytest.approx(whole["error_A"][0] / tokens)


def test_an_answer_may_be_one_of_the_choices_and_choices_may_differ_in_number(tiny_model, questions):
    one, two = questions[:2]
    in_words = one.meta["choices"]["ABCD".index(one.meta["answer"])]
    fewer = dataclasses.replace(two, meta=two.meta | {"choices": two.meta["choices"][:3], "answer": "A"})
    same = dataclasses.replace(one, meta=one.meta | {"answer": in_words})
    items = evaluate_choices(tiny_model, [same, fewer], QUICK)[1]
    assert items["answer"].tolist() == [one.meta["answer"], "A"] and items["score_D"].isna().tolist() == [False, True]


def test_the_twin_scores_through_the_same_door(tiny_model, questions):
    torch.manual_seed(0)
    config = type(tiny_model.denoiser.config).from_dict(tiny_model.denoiser.config.to_dict() | {"is_causal": True})
    twin = OmniDiffusion(Denoiser(config), tiny_model.tokenizers, tiny_model.settings)
    (found,), = score_answers(twin, questions[:1], [["B"]], QUICK, task="vqa")
    (ids, _), = tiny_model.prompts([read_request(requests_of(questions[:1], None, 64)[0], ("text",), "vqa")])
    said = spoken(tiny_model, "B")
    with torch.no_grad():
        logits = twin.denoiser(torch.tensor([ids + said])).logits[0].log_softmax(-1)
    expected = sum(logits[len(ids) - 1 + j, token].item() for j, token in enumerate(said))
    assert found == Likelihood(pytest.approx(expected, abs=1e-4), 0.0, len(said))


def test_ties_and_tables():
    scores = [Likelihood(value, 0.1, 2) for value in (-2.0, -1.0, -1.0)]
    assert likeliest(scores) == 1 and rank_of_first(scores) == 3 and rank_of_first(scores[1:]) == 2
    assert rank_of_first(scores[::-1]) == 2 and rank_of_first([scores[1], scores[0]]) == 1
    table = score_table([scores, scores[:1]], "xyz", "a_")
    assert table.columns.tolist() == ["a_score_x", "a_score_y", "a_score_z", "a_error_x", "a_error_y", "a_error_z"]
    assert table["a_score_y"].isna().tolist() == [False, True]


@pytest.mark.parametrize("meta, error, words", [
    ({"choices": []}, ValueError, "sample 0 has 0 choices.*seed_bench"),
    ({"choices": "A or B"}, TypeError, "give a list of strings"),
    ({"choices": None}, TypeError, "give a list of strings"),
    ({"choices": ["red", 3]}, TypeError, "give a list of strings"),
    ({"choices": ["red", "blue"], "answer": "C"}, ValueError, "'answer' is 'C': give one of A, B, or"),
    ({"choices": ["red", "blue"], "answer": "green"}, ValueError, "'answer' is 'green'"),
])
def test_questions_without_proper_choices_are_told(tiny_model, questions, meta, error, words):
    sample = dataclasses.replace(questions[0], meta=questions[0].meta | meta)
    with pytest.raises(error, match=words):
        evaluate_choices(tiny_model, [sample], QUICK)


def test_a_question_without_meta_choices_is_told(tiny_model):
    with pytest.raises(ValueError, match="a vqa test sample needs meta 'choices'; it has none"):
        evaluate_choices(tiny_model, [Sample(build_messages("vqa", "what?"), ["x.png"], task="vqa")], QUICK)


@pytest.mark.parametrize("answers, task, error, words", [
    ([["B"]], "svqa", ValueError, "'svqa' does not answer in text alone or in one picture: give one of text_qa"),
    ([["B"]], "poetry", ValueError, "'poetry' does not answer"),
    ([], "text_qa", ValueError, "0 lists of answers to 1 questions"),
    ([["B", " "]], "text_qa", ValueError, "answer 1 of question 0 is empty"),
    ([[[1, 2]]], "text_qa", TypeError, "answer 0 of question 0 is a list, but task 'text_qa' is answered in text"),
    ([["B"]], "t2i", TypeError, "is a str, but task 't2i' is answered in pictures: give the codes"),
    ([[PIL.Image.new("RGB", (8, 8))]], "t2i", TypeError, "is a Image, but task 't2i'"),
    ([[[]]], "t2i", ValueError, "answer 0 of question 0 is empty"),
    ([["a <|image|>"]], "text_qa", ChatError, "1 <.image.> in the messages but 0 images"),
])
def test_answers_that_do_not_fit_are_told(tiny_model, answers, task, error, words):
    question = Sample(build_messages("text_qa", "why?"), task="text_qa")
    with pytest.raises(error, match=words):
        score_answers(tiny_model, [question], answers, QUICK, task=task)


# --- retrieval --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictured(tiny_preset):
    return world_samples("captioning", "test", 6, 0, tiny_preset.world)


def test_candidates_are_those_that_are_hard_to_tell_apart():
    captions = ["a red star on a white ground", "a blue ring on a mint ground", "a red star on a grey ground",
                "a red ring on a white ground", "the cat sat"]
    asked = [Sample(build_messages("captioning", "", text), [f"{i}.png"], [], "captioning", {"answer": text})
             for i, text in enumerate(captions)]
    assert set(candidate_sets(asked, 3)[0][1:]) == {2, 3}


def test_candidates_hold_the_true_one_and_no_other_that_is_right(pictured):
    sets = candidate_sets(pictured, 3)
    assert [numbers[0] for numbers in sets] == list(range(6)) and all(len(set(numbers)) == 3 for numbers in sets)
    assert sets == candidate_sets(pictured, 3) != candidate_sets(pictured, 3, seed=1)
    reworded = dataclasses.replace(pictured[0], meta=pictured[0].meta | {
        "answer": wordings(Scene.from_dict(pictured[0].meta["scene"]))[-1]})
    with pytest.raises(ValueError, match="sample 0 has 0 wrong candidates among 2 samples, not 1: give more samples"):
        candidate_sets([pictured[0], reworded], 2)
    with pytest.raises(ValueError, match="candidates is 1: give at least 2"):
        candidate_sets(pictured, 1)
    with pytest.raises(ValueError, match="sample 0 shows 0 pictures: give captioning samples"):
        candidate_sets([dataclasses.replace(pictured[0], messages=[], images=[])], 2)


def test_retrieval_ranks_the_true_one_first_both_ways(tiny_model, pictured):
    captions = [sample.meta["answer"] for sample in pictured]
    drawn = [Sample(build_messages("t2i", text, ""), sample.images, [], "t2i")
             for text, sample in zip(captions, pictured)]
    codes = tiny_model.image_codes(reference_images(drawn, QUICK), tiny_model.settings.generation_size)
    assert len({tuple(each) for each in codes}) == 6
    right = known(tiny_model, pictured, captions, "captioning")
    model = system(tiny_model, right | known(tiny_model, drawn, codes, "t2i"))
    records, items = evaluate_retrieval(model, pictured, QUICK, candidates=3, draws=4)
    assert {r.column: r.value for r in records} == {"retrieval_caption_r1": 100, "retrieval_picture_r1": 100}
    assert {r.table for r in records} == {"retrieval"} and items["candidates"].tolist() == candidate_sets(pictured, 3)
    assert (items[["caption_rank", "picture_rank"]] == 1).all(None) and (items["picture_error_2"] > 0).all()
    blind = system(tiny_model, right)  # all pictures look alike to it for a caption: a tie is no hit
    records, items = evaluate_retrieval(blind, pictured, QUICK, candidates=3, draws=4)
    assert {r.column: r.value for r in records} == {"retrieval_caption_r1": 100, "retrieval_picture_r1": 0}
    assert (items["picture_rank"] == 3).all()
