"""Which answer is the likeliest: given answers scored by their log-likelihood, and multiple choice decided by it.

SEED-Bench-2-Plus is scored this way by its authors (Li et al. 2024): the model's choice is the option it finds
likeliest, so that an answer in the wrong form costs nothing. The paper does not say how it scored; `vision` reads the
generated letter. A masked denoiser gives a bound, with an error (`evaluation.log_likelihood`); the autoregressive
twin gives the likelihood itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from omnidiff_lite.chat import IGNORE, TASKS, Sample, build_messages
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.evaluation.log_likelihood import DRAWS, Likelihood, log_likelihoods
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Settings, meta, requests_of
from omnidiff_lite.evaluation.statistics import proportion_interval
from omnidiff_lite.evaluation.vision import TABLE, picture_of, right_letter
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.requests import read_request

Given = str | Sequence[int]  # an answer: its text, or the row-major codes of its picture
SCORABLE = tuple(task for task, form in TASKS.items() if form.outputs in (("text",), ("image",)))


def score_answers(model: OmniDiffusion, questions: Sequence[Sample], answers: Sequence[Sequence[Given]],
                  settings: Settings = Settings(), *, task: str, draws: int = DRAWS, per_token: bool = False
                  ) -> list[list[Likelihood]]:
    """The log-likelihood (nats) of each of `answers[i]` as the answer to question i, in order.

    Questions are asked as `requests.ask` asks them, in the prompt of training. An answer is a text, or the codes of a
    picture where `task` gives pictures (`OmniDiffusion.image_codes` at `generation_size`). For `draws`, and what else
    counts as answer, see `evaluation.log_likelihood.log_likelihoods`. The masks follow from `settings.seed`.
    `per_token`: mean over the answer's tokens instead of their sum. Raises `ValueError` for a task with several
    outputs, or speech, and for an empty answer; `TypeError` for an answer of a kind other than the task's.
    """
    _check(answers, len(questions), task)
    encoded: list[EncodedSample] = []
    for start in range(0, len(questions), settings.batch):
        part = slice(start, start + settings.batch)
        requests = requests_of(questions[part], settings.root, settings.image_sizes[0])
        read = [read_request(request, TASKS[task].outputs, task) for request in requests]
        for (ids, frames), given in zip(model.prompts(read), answers[part], strict=True):
            encoded += [_encoded(model, ids, frames, answer, task) for answer in given]
    found = iter(log_likelihoods(model.denoiser, encoded, draws, settings.seed, settings.batch))
    return [[_unit(next(found), per_token) for _ in given] for given in answers]


def evaluate_choices(model: OmniDiffusion, samples: Sequence[Sample], settings: Settings = Settings(), *,
                     name: str = "seed2plus_likelihood", task: str = "vqa", words: bool = False,
                     per_token: bool = False, draws: int = DRAWS) -> tuple[list[Record], pd.DataFrame]:
    """Multiple choice by likelihood (meta "choices", and "answer": a letter or one of the choices). Column `name`.

    Percent of questions whose likeliest choice is the right one; chance is 100 / choices. The letters are scored, in
    the form that the question asks for. `words`: score the choices' own words instead, as answers to meta "question"
    without the options, as the benchmark's authors do; they differ in length, so see `per_token`. Per item: picture,
    question, answer and prediction (letters), right, and score_A, error_A, ...: log-likelihood and its standard error,
    in nats. Choices of equal length share their masks, so their difference is surer than their errors suggest. Raises
    `ValueError` for a sample without choices or with an answer that is none of them, `TypeError` for choices that are
    not text.
    """
    choices = [_choices(sample, number) for number, sample in enumerate(samples)]
    letters = [[chr(ord("A") + i) for i in range(len(options))] for options in choices]
    asked = [replace(s, messages=build_messages(task, meta(s, "question"))) for s in samples] if words else samples
    scores = score_answers(model, asked, choices if words else letters, settings, task=task, draws=draws,
                           per_token=per_token)
    items = pd.DataFrame({"picture": [picture_of(s) for s in samples],
                          "question": [s.meta.get("question", "") for s in samples],
                          "answer": [right_letter(s) for s in samples],
                          "prediction": [options[likeliest(row)] for options, row in zip(letters, scores)]})
    items["right"] = items["prediction"] == items["answer"]
    share = proportion_interval(items["right"], groups=items["picture"], **settings.resampling).scaled(100)
    items = items.join(score_table(scores, max(letters, key=len)))
    return measured(TABLE, settings.row, settings.seed, {name: share}), items


def likeliest(scores: Sequence[Likelihood]) -> int:
    """Index of the greatest; the first of equals."""
    return int(np.argmax([score.value for score in scores]))


def score_table(scores: Sequence[Sequence[Likelihood]], names: Sequence[str], prefix: str = "") -> pd.DataFrame:
    """Columns `prefix`score_<name>, then `prefix`error_<name>, for each question's answers; NaN where it has fewer."""
    return pd.concat([pd.DataFrame([[getattr(s, part) for s in row] for row in scores],
                                   columns=[f"{prefix}{label}_{name}" for name in names])
                      for part, label in (("value", "score"), ("error", "error"))], axis=1)


# --- from an answer to what is scored ---------------------------------------------------------------------------------


def _encoded(model: OmniDiffusion, ids: list[int], frames: torch.Tensor, answer: Given, task: str) -> EncodedSample:
    """A prompt (ids [P], aligned frames [P, dim]) and one answer to it, encoded as in training."""
    written = isinstance(answer, str)
    turn = build_messages(task, "", answer if written else "")[-1]
    _, labels = model.chat.sample([turn], () if written else (answer,))
    said = [label for label in labels if label != IGNORE]
    heard = torch.tensor(ids) == model.tokenizers.vocabulary.context_of_audio
    return EncodedSample(np.array(ids + said, np.int32), np.array([IGNORE] * len(ids) + said, np.int32),
                         frames[heard].numpy(), task)


def _unit(score: Likelihood, per_token: bool) -> Likelihood:
    return score.per_token() if per_token else score


def _check(answers: Sequence[Sequence[Given]], questions: int, task: str) -> None:
    if task not in SCORABLE:
        raise ValueError(f"task {task!r} does not answer in text alone or in one picture: give one of "
                         f"{', '.join(SCORABLE)}")
    if len(answers) != questions:
        raise ValueError(f"{len(answers)} lists of answers to {questions} questions: give one list each")
    for number, given in enumerate(answers):
        for place, answer in enumerate(given):
            _check_one(answer, f"answer {place} of question {number}", task)


def _check_one(answer: Given, which: str, task: str) -> None:
    written = TASKS[task].outputs == ("text",)
    if isinstance(answer, str) != written or not hasattr(answer, "__len__"):
        raise TypeError(f"{which} is a {type(answer).__name__}, but task {task!r} is answered in " + (
            "text: give a str" if written else "pictures: give the codes of one, from OmniDiffusion.image_codes"))
    if not len(answer.strip() if written else answer):
        raise ValueError(f"{which} is empty: give a text of at least one word, or the codes of a picture")


def _choices(sample: Sample, number: int) -> list[str]:
    """A sample's options, at least two, including the right one."""
    choices = meta(sample, "choices")
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError(f"sample {number}: meta 'choices' is {choices!r}: give a list of strings")
    if len(choices) < 2:
        raise ValueError(f"sample {number} has {len(choices)} choices: take questions with at least two, such as "
                         "world.benchmarks.seed_bench draws")
    try:
        right_letter(sample)
    except ValueError as error:
        raise ValueError(f"sample {number}: {error}") from None
    return list(choices)
