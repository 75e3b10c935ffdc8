"""Retrieval between pictures and captions by likelihood: is the true one ranked first among K?

One model scores both ways: the captions of a picture as answers to captioning; the pictures of a caption, as image
tokens, as answers to text-to-image. The paper measures no retrieval. Candidates are ranked by plain
log p(candidate | query): one that is likely whatever is asked ranks high for every query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.evaluation.log_likelihood import DRAWS, Likelihood
from omnidiff_lite.evaluation.likelihood import Given, score_answers, score_table
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Settings, media_refs, meta, reference_images
from omnidiff_lite.evaluation.statistics import proportion_interval
from omnidiff_lite.evaluation.vision import reference_captions
from omnidiff_lite.pipeline import OmniDiffusion

TABLE = "retrieval"


def evaluate_retrieval(model: OmniDiffusion, samples: Sequence[Sample], settings: Settings = Settings(), *,
                       candidates: int = 4, per_token: bool = False, draws: int = DRAWS
                       ) -> tuple[list[Record], pd.DataFrame]:
    """Recall@1 in percent among K = `candidates`, of captioning samples (one picture; meta "answer": its caption).

    Columns retrieval_caption_r1 (which caption belongs to the picture) and retrieval_picture_r1 (which picture to the
    caption); chance is 1 / K, 25 % for four. The true one must be likelier than every other: a tie is a miss. Both
    ways use the same candidates (`candidate_sets`). `per_token`, `draws`: as in `score_answers`. Per item: picture,
    caption, candidates (numbers of the samples, the true one first), and for both ways <way>_rank (1..K), <way>_right
    and <way>_score_k, <way>_error_k of candidate k = 1..K, in nats.
    """
    sets = candidate_sets(samples, candidates, settings.seed)
    shown = [media_refs(sample, "user")[0][0] for sample in samples]
    captions = [_caption(sample) for sample in samples]
    drawn = [Sample(build_messages("t2i", text, ""), [ref], [], "t2i") for text, ref in zip(captions, shown)]
    ways = {"caption": ("captioning", samples, captions), "picture": ("t2i", drawn, _codes(model, drawn, settings))}
    items = pd.DataFrame({"picture": shown, "caption": captions, "candidates": sets})
    for way, (task, questions, found) in ways.items():
        answers: list[list[Given]] = [[found[j] for j in numbers] for numbers in sets]
        scores = score_answers(model, questions, answers, settings, task=task, draws=draws, per_token=per_token)
        items[f"{way}_rank"] = [rank_of_first(row) for row in scores]
        items[f"{way}_right"] = items[f"{way}_rank"] == 1
        items = items.join(score_table(scores, [str(k) for k in range(1, candidates + 1)], f"{way}_"))
    return measured(TABLE, settings.row, settings.seed, {
        f"retrieval_{way}_r1": proportion_interval(items[f"{way}_right"], **settings.resampling).scaled(100)
        for way in ways}), items


def candidate_sets(samples: Sequence[Sample], candidates: int, seed: int = 0) -> list[list[int]]:
    """For each sample the numbers of `candidates` samples: itself first, then those whose captions share the most
    words with its own, ties in random order. Purely random others could be told apart by any single attribute.

    No other's caption is right for the sample's picture, in any known wording (`reference_captions`), nor the sample's
    caption for the other's picture; and all captions differ. Raises `ValueError` where too few are left.
    """
    if candidates < 2:
        raise ValueError(f"candidates is {candidates}: give at least 2, the true one and another")
    captions = [_caption(sample) for sample in samples]
    for number, sample in enumerate(samples):
        if len(shown := media_refs(sample, "user")[0]) != 1:
            raise ValueError(f"sample {number} shows {len(shown)} pictures: give captioning samples, of one picture")
    right = [{caption, *reference_captions(sample)} for caption, sample in zip(captions, samples)]
    sets = []
    for i, caption in enumerate(captions):
        order = np.random.default_rng([seed, i]).permutation(len(samples)).tolist()
        wrong = {captions[j]: j for j in order if caption not in right[j] and captions[j] not in right[i]}
        if len(wrong) < candidates - 1:
            raise ValueError(f"sample {i} has {len(wrong)} wrong candidates among {len(samples)} samples, not "
                             f"{candidates - 1}: give more samples, or fewer candidates")
        own = set(caption.split())
        nearest = sorted(wrong, key=lambda other: -len(own & set(other.split())))  # stable: ties stay shuffled
        sets.append([i, *(wrong[other] for other in nearest[:candidates - 1])])
    return sets


def rank_of_first(scores: Sequence[Likelihood]) -> int:
    """Rank of the first among all, 1 being the best; among equals it comes last."""
    return 1 + sum(not score.value < scores[0].value for score in scores[1:])


def _caption(sample: Sample) -> str:
    return meta(sample, "answer").strip()


def _codes(model: OmniDiffusion, drawn: Sequence[Sample], settings: Settings) -> list[list[int]]:
    """The pictures of text-to-image samples as their codes [tokens], a batch at a time."""
    size, step = model.settings.generation_size, settings.batch
    return [codes for start in range(0, len(drawn), step)
            for codes in model.image_codes(reference_images(drawn[start:start + step], settings), size)]
