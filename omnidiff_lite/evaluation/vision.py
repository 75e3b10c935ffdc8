"""Table 2, understanding: POPE, MME-Perception, SEED-Bench-2-Plus and captioning.

Scores are functions of sums over items, so each has a bootstrap interval; questions about one picture are resampled
together. An answer that is empty, or none of the answers asked for, is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.evaluation.cider import caption_words, cider_scores
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Model, Settings, ask, media_refs, meta
from omnidiff_lite.evaluation.statistics import Estimate, bootstrap_interval, mean_interval, proportion_interval
from omnidiff_lite.world.captions import matches, wordings
from omnidiff_lite.world.scenes import Scene
from omnidiff_lite.world.voices import Voice, speech_ref

TABLE = "table2_vision"


def yes_or_no(text: str | None) -> str:
    """"yes", "no" or "other", as MME scores (calculation.py, parse_pred_ans): the answer in lower case where it is
    exactly that, else whichever stands in its first four characters, "yes" before "no".

    So "Not visible" and "know" are no, and "I think yes" is other. Special tokens and the white space before an answer
    do not count. POPE's answers are read in the same way; its own script takes any answer without "no" or "not" as yes.
    """
    answer = re.sub(r"<\|.*?\|>", "", text or "").lstrip().lower()
    if answer in ("yes", "no"):
        return answer
    return next((word for word in ("yes", "no") if word in answer[:4]), "other")


def chosen_letter(text: str | None) -> str:
    """The option that an answer opens with: "B", "(b)", "b. blue", "B: blue"; "" where it opens with none.

    A sentence is no choice: the article of "A red bar" does not choose A.
    """
    found = re.match(r"\s*\(?([A-Za-z])(?:\s*[).:,]|\s*$)", re.sub(r"<\|.*?\|>", "", text or ""))
    return found.group(1).upper() if found else ""


# --- POPE ------------------------------------------------------------------------------------------------------------

def pope_scores(answers: Sequence[str], predictions: Sequence[str | None], pictures: Sequence[str] | None = None,
                settings: Settings = Settings()) -> dict[str, Estimate]:
    """POPE's five figures in percent: accuracy, precision, recall, F1 (of "yes") and the share of "yes" answers.

    An answer that is neither yes nor no is neither right nor a "yes". A share of nothing (precision without any "yes")
    is 0, without an interval.
    """
    said = np.array([yes_or_no(text) for text in predictions])
    truth = np.array([answer.strip().lower() for answer in answers])
    yes, wanted, right = said == "yes", truth == "yes", said == truth

    def share(of: NDArray, among: NDArray) -> Estimate:
        if not among.any():
            return Estimate(0.0, None, None, len(said), "no interval: a share of no items")
        return proportion_interval(of, among, groups=pictures, **settings.resampling)

    everything = np.ones(len(said), bool)
    scores = {"accuracy": share(right, everything), "precision": share(wanted, yes), "recall": share(yes, wanted),
              # F1 grows with the overlap of said and wanted: 2 o / (1 + o).
              "f1": share(yes & wanted, yes | wanted).mapped(lambda overlap: 2 * overlap / (1 + overlap)),
              "yes": share(yes, everything)}
    return {name: score.scaled(100) for name, score in scores.items()}


def evaluate_pope(model: Model, samples: Sequence[Sample], settings: Settings = Settings(), *, name: str = "pope"
                  ) -> tuple[list[Record], pd.DataFrame]:
    """Yes/no questions about objects (meta "answer"). Columns `name`_accuracy, _precision, _recall, _f1, _yes."""
    items = ask_questions(model, samples, settings)
    scores = pope_scores(items["answer"], items["prediction"], items["picture"], settings)
    items["right"] = [yes_or_no(p) == a.lower() for p, a in zip(items["prediction"], items["answer"])]
    return measured(TABLE, settings.row, settings.seed, {f"{name}_{k}": v for k, v in scores.items()}), items


# --- MME -------------------------------------------------------------------------------------------------------------

# MME-Perception's other five subtasks, and why the world has none of them.
MME_ABSENT = {"posters": "the world has no films", "celebrity": "the world has no people",
              "scene": "the world has no places to name", "landmark": "the world has no landmarks",
              "artwork": "the world has no works of art"}


def mme_scores(subtasks: Sequence[str], pictures: Sequence[str], right: Sequence[bool],
               settings: Settings = Settings()) -> dict[str, Estimate]:
    """MME's score of each subtask, accuracy + accuracy+ (0..200), and their sum "mme_p" (MME calculation.py).

    accuracy: percent of questions; accuracy+: percent of pictures with both questions right. Where the pictures of
    every subtask are alike, the ends of mme_p are the sums of the subtasks' own, which is on the safe side. Raises
    `ValueError` if a picture of a subtask does not have two questions. n counts questions.
    """
    pairs = mme_points(subtasks, pictures, right)
    scores = {f"mme_{name}": mean_interval(points, bounds=(0, 200), **settings.resampling)
              for name, points in pairs.groupby("subtask")["points"]}
    total = mme_sum(pairs["points"], pairs["subtask"], settings)
    if total.low is None:
        total = replace(total, low=sum(e.low for e in scores.values()), high=sum(e.high for e in scores.values()),
                        reason="")
    return {name: replace(e, n=2 * e.n) for name, e in {**scores, "mme_p": total}.items()}


def mme_points(subtasks: Sequence[str], pictures: Sequence[str], right: Sequence[bool]) -> pd.DataFrame:
    """One row per picture, sorted: subtask, picture, points (its own accuracy + accuracy+: 0, 50 or 200)."""
    items = pd.DataFrame({"subtask": list(subtasks), "picture": list(pictures), "right": np.asarray(right, float)})
    pairs = items.groupby(["subtask", "picture"], sort=True)["right"].agg(["count", "sum"]).reset_index()
    if (pairs["count"] != 2).any():
        odd = pairs[pairs["count"] != 2].iloc[0]
        raise ValueError(f"MME asks two questions a picture; {odd.picture!r} of {odd.subtask} has {odd['count']}")
    return pairs.assign(points=np.where(pairs["sum"] == 2, 200.0, 50.0 * pairs["sum"]))


def mme_sum(points: pd.Series, subtasks: pd.Series, settings: Settings) -> Estimate:
    """Sum over the subtasks of the mean points of their pictures; each subtask is resampled to its own size. Serves
    differences in points as well. n counts pictures."""
    member = np.column_stack([subtasks == name for name in sorted(set(subtasks))])
    return bootstrap_interval(points.to_numpy()[:, None] * member,
                              lambda sums: (sums / member.sum(axis=0)).sum(axis=-1), strata=subtasks,
                              **settings.resampling)


def mme_difference(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> Estimate:
    """mme_p of `a` minus that of `b`, paired by picture: two tables with subtask, picture and right of each question.
    n counts questions. Raises `ValueError` if the two sides have different questions."""
    first, second = (mme_points(items["subtask"], items["picture"], items["right"]) for items in (a, b))
    if not np.array_equal(first[["subtask", "picture"]], second[["subtask", "picture"]]):
        raise ValueError("a paired difference needs the same questions on both sides")
    found = mme_sum(first["points"] - second["points"], first["subtask"], settings)
    return replace(found, n=2 * found.n)


def mme_accuracies(items: pd.DataFrame, settings: Settings = Settings()) -> dict[str, Estimate]:
    """The two halves of each subtask's score, in percent, from the table of `evaluate_mme`:
    mme_<subtask>_accuracy (n questions) and mme_<subtask>_accuracy_plus (n pictures)."""
    scores, how = {}, settings.resampling
    pairs = mme_points(items["subtask"], items["picture"], items["right"])
    for name, asked in items.groupby("subtask"):
        both = pairs["points"][pairs["subtask"] == name] == 200
        scores[f"mme_{name}_accuracy"] = proportion_interval(asked["right"], groups=asked["picture"], **how).scaled(100)
        scores[f"mme_{name}_accuracy_plus"] = proportion_interval(both, **how).scaled(100)
    return scores


def evaluate_mme(model: Model, samples: Sequence[Sample], settings: Settings = Settings()
                 ) -> tuple[list[Record], pd.DataFrame]:
    """MME's yes/no questions (meta "answer", "kind": the subtask), two per picture. Columns mme_<subtask>, mme_p (sum).
    """
    items = ask_questions(model, samples, settings)
    items["subtask"] = [meta(sample, "kind") for sample in samples]
    items["right"] = [yes_or_no(p) == a.lower() for p, a in zip(items["prediction"], items["answer"])]
    scores = mme_scores(items["subtask"], items["picture"], items["right"], settings)
    return measured(TABLE, settings.row, settings.seed, scores), items


def spoken_questions(samples: Sequence[Sample], voices: Sequence[Voice], seed: int = 0) -> list[Sample]:
    """Visual questions asked aloud (meta "question"), each in a voice drawn from `voices`: samples of task svqa.

    The camera-ready converts MME's questions to speech in the same way, with CosyVoice2.
    """
    drawn = np.random.default_rng(seed).integers(len(voices), size=len(samples))
    return [replace(sample, messages=build_messages("svqa"), task="svqa",
                    audios=[speech_ref(meta(sample, "question"), voices[i])]) for sample, i in zip(samples, drawn)]


# --- SEED-Bench-2-Plus ------------------------------------------------------------------------------------------------


def multiple_choice_accuracy(answers: Sequence[str], predictions: Sequence[str | None],
                             pictures: Sequence[str] | None = None, settings: Settings = Settings()) -> Estimate:
    """Percent of questions whose generated letter is the right one.

    The benchmark's authors rank the options by likelihood instead, which a masked diffusion model cannot compute
    exactly (a bound: `evaluation.likelihood.evaluate_choices`); the paper does not say how it scored.
    """
    right = [chosen_letter(p) == a.strip().upper() for p, a in zip(predictions, answers, strict=True)]
    return proportion_interval(right, groups=pictures, **settings.resampling).scaled(100)


def evaluate_seed_bench(model: Model, samples: Sequence[Sample], settings: Settings = Settings(), *,
                        name: str = "seed2plus") -> tuple[list[Record], pd.DataFrame]:
    """Multiple choice over charts, maps and pages (meta "answer": a letter, or one of meta "choices"), or MMMU's.
    Column `name`."""
    items = ask_questions(model, samples, settings)
    items["answer"] = [right_letter(sample) for sample in samples]
    score = multiple_choice_accuracy(items["answer"], items["prediction"], items["picture"], settings)
    items["right"] = [chosen_letter(p) == a for p, a in zip(items["prediction"], items["answer"])]
    return measured(TABLE, settings.row, settings.seed, {name: score}), items


def right_letter(sample: Sample) -> str:
    """The right option's letter (meta "answer": the letter itself, or the words of one of meta "choices").

    A single letter counts as one if there are enough choices; "4" among 3, 4, 5 is words. Raises `ValueError` for an
    answer that is neither.
    """
    answer, choices = meta(sample, "answer").strip(), list(sample.meta.get("choices") or ())
    letters = ascii_uppercase[:len(choices) or None]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if answer not in choices:
        raise ValueError(f"meta 'answer' is {answer!r}: give one of {', '.join(letters)}, or one of the choices in "
                         "words")
    return letters[choices.index(answer)]


def ask_questions(model: Model, samples: Sequence[Sample], settings: Settings) -> pd.DataFrame:
    """Per item: picture (its number in meta "image", or its reference), question, answer, prediction ("" for none)."""
    texts = [answer.text or "" for answer in ask(model, samples, settings, to="text", task="vqa")]
    return pd.DataFrame({"picture": [picture_of(s) for s in samples],
                         "question": [s.meta.get("question", "") for s in samples],
                         "answer": [meta(s, "answer").strip() for s in samples], "prediction": texts})


def picture_of(sample: Sample) -> str:
    """Which picture a question is about: its number in meta "image", or its reference."""
    return str(sample.meta.get("image", " ".join(media_refs(sample, "user")[0])))


# --- captioning ------------------------------------------------------------------------------------------------------


def bleu_statistics(hypothesis: str, references: Sequence[str]) -> list[float]:
    """BLEU's sums for one caption: matches of 1- to 4-grams, n-grams, hypothesis length, reference length.

    Words are those of `cider.caption_words`, as on COCO's server: case and punctuation do not count.
    """
    from sacrebleu.metrics import BLEU

    said, *right = (" ".join(caption_words(text)) for text in (hypothesis, *references))
    score = BLEU(tokenize="none", effective_order=True).sentence_score(said, right)
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu(sums: NDArray) -> NDArray:
    """Corpus BLEU-4 (0..100) of sums [..., 10]; orders without a match are smoothed as sacrebleu does by default."""
    matches, totals, length, reference = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    halvings = 0.5 ** np.cumsum(matches == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches > 0, matches, halvings) / totals
        score = 100 * np.exp(np.log(precisions).mean(axis=-1) + np.minimum(0, 1 - reference / length))
    return np.where((totals > 0).all(axis=-1) & (matches > 0).any(axis=-1), score, 0.0)


def evaluate_captioning(model: Model, samples: Sequence[Sample], settings: Settings = Settings()
                        ) -> tuple[list[Record], pd.DataFrame]:
    """Captions of pictures (meta "answer"; "captions" where a picture has several; "scene" for the world's own).

    Columns caption_bleu4 (0..100) and caption_cider (0..10), against every wording that the world has for a scene;
    where scenes are known also what a reader learns: percent of captions with the objects, their attributes, the
    relation, the background and all of it right (`world.captions.matches`). Per item: picture, first reference,
    prediction, cider, bleu (the sums of `bleu_statistics`), and what is right.
    """
    texts = [answer.text or "" for answer in ask(model, samples, settings, to="text", task="captioning")]
    references = [reference_captions(sample) for sample in samples]
    items = pd.DataFrame({"picture": [s.images[0] for s in samples], "reference": [r[0] for r in references],
                          "prediction": texts, "cider": cider_scores(texts, references),
                          "bleu": [bleu_statistics(text, truth) for text, truth in zip(texts, references)]})
    how = settings.resampling
    scores = {"caption_bleu4": bootstrap_interval(items["bleu"].tolist(), bleu, **how),
              "caption_cider": mean_interval(items["cider"], bounds=(0, 10), **how)}
    if all("scene" in sample.meta for sample in samples):
        facts = [matches(text, Scene.from_dict(sample.meta["scene"])) for text, sample in zip(texts, samples)]
        items = items.join(pd.DataFrame(facts))
        scores |= {f"caption_{name}": proportion_interval(items[name], **how).scaled(100) for name in facts[0]}
    return measured(TABLE, settings.row, settings.seed, scores), items


def reference_captions(sample: Sample) -> list[str]:
    """All right captions: as the data set gives them, or every wording of the world's scene."""
    if "captions" in sample.meta:
        return list(sample.meta["captions"])
    if "scene" in sample.meta:
        return wordings(Scene.from_dict(sample.meta["scene"]))
    return [meta(sample, "answer")]
