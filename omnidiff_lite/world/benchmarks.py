"""The protocols of POPE, MME-Perception and SEED-Bench-2-Plus on the embedded world's test split.

Every sample is a "vqa" row with one picture. Its meta: "question" (as spoken), "text" (as typed), "answer" (what the
model should write), "kind", "image" (index of the picture: questions of one index share it), "choices", and "scene" or
"chart" (the picture's content). Questions keep the benchmarks' wording but are lower-case, with digits as words.
Row i does not depend on how many rows are requested.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import count
from typing import Literal

import numpy as np

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.world.charts import Chart, chart_question, does_say, readings, sample_chart
from omnidiff_lite.world.questions import (NO, YES, Question, are_there, choose, does_stand, is_there, wrong_counts)
from omnidiff_lite.world.recipes import chart_ref, scene_ref
from omnidiff_lite.world.scenes import COLORS, SHAPES, Scene, sample_scene
from omnidiff_lite.world.splits import INVERSE, stream

Strategy = Literal["random", "popular", "adversarial"]
STRATEGIES: tuple[Strategy, ...] = ("random", "popular", "adversarial")
SUBTASKS = ("existence", "count", "position", "color", "OCR")
PER_ANSWER = 3  # POPE asks six questions per picture: three yes, three no
SURVEY = 2000  # training scenes that POPE's frequencies are counted on


def pope(strategy: Strategy, n: int, seed: int, config: WorldConfig) -> list[Sample]:
    """`n` object-existence questions, yes and no in turn (Li et al. 2023, "Polling-based Object Probing Evaluation").

    The objects are shapes. For each picture the questions name up to three shapes that it holds, and as many that it
    does not: "random" takes any absent ones; "popular" the most frequent in training pictures; "adversarial" those that
    most often occur in training pictures together with what this picture holds. All strategies see the same pictures.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no POPE strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    rows: list[Sample] = []
    for index in count():
        if len(rows) >= n:
            return rows[:n]
        rng = stream("pope", seed, index)
        scene = sample_scene(rng, config, "test")
        shapes = sorted({item.shape for item in scene.objects})
        present = [shapes[i] for i in rng.permutation(len(shapes))[:PER_ANSWER]]
        for yes, no in zip(present, _absent(strategy, set(shapes), rng, config)):
            rows += [_row(Question(is_there(shape), answer, "existence"), scene, index)
                     for shape, answer in ((yes, YES), (no, NO))]


def _absent(strategy: Strategy, present: set[str], rng: np.random.Generator, config: WorldConfig) -> list[str]:
    """Shapes that are not in the picture, in the order to ask them."""
    absent = [shape for shape in SHAPES if shape not in present]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    alone, together = _survey(config)
    weight = {"random": lambda shape: 0, "popular": lambda shape: alone[shape],
              "adversarial": lambda shape: sum(together[shape, other] for other in present)}[strategy]
    return sorted(absent, key=weight, reverse=True)  # stable: ties stay shuffled


@lru_cache(maxsize=4)
def _survey(config: WorldConfig) -> tuple[Counter, Counter]:
    """In how many training pictures each shape occurs, and each ordered pair of different shapes."""
    alone: Counter = Counter()
    together: Counter = Counter()
    for index in range(SURVEY):
        shapes = {item.shape for item in sample_scene(stream("survey", index), config, "train").objects}
        alone.update(shapes)
        together.update((a, b) for a in shapes for b in shapes if a != b)
    return alone, together


def mme(subtask: str, pictures: int, seed: int, config: WorldConfig) -> list[Sample]:
    """Two questions per picture, the first answered yes and the second no, as in MME (Fu et al. 2023).

    `subtask`: existence, count, position, color or OCR (signs with a word or a number). Score them with accuracy over
    questions plus accuracy over pictures (both right), each in percent: 200 points per subtask.
    """
    if subtask not in SUBTASKS:
        raise ValueError(f"no MME subtask {subtask!r}: choose one of {', '.join(SUBTASKS)}")
    rows: list[Sample] = []
    for index in range(pictures):
        rng = stream("mme", subtask, seed, index)
        if subtask == "OCR":
            item = sample_chart(rng, config, "sign", "test")
            wrong = choose(rng, [words for words in readings(item) if words != item.spoken])
            pair = does_say(item, item.spoken), does_say(item, wrong)
        else:
            least = 2 if subtask == "position" else 1
            item = sample_scene(rng, config, "test", int(rng.integers(least, max(least, config.max_objects) + 1)))
            pair = _mme_pair(subtask, item, rng)
        rows += [_row(Question(text, answer, subtask), item, index) for text, answer in zip(pair, (YES, NO))]
    return rows


def _mme_pair(subtask: str, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The question to be answered yes, and the one to be answered no."""
    if subtask == "existence":
        shapes = {item.shape for item in scene.objects}
        return (is_there(choose(rng, sorted(shapes))),
                is_there(choose(rng, [shape for shape in SHAPES if shape not in shapes])))
    if subtask == "count":
        number = len(scene.objects)
        return are_there(number, "object"), are_there(choose(rng, wrong_counts(number)), "object")
    if subtask == "position":
        first, second = scene.objects[:2]
        return does_stand(first, scene.relation, second), does_stand(first, INVERSE[scene.relation], second)
    item = choose(rng, scene.objects)
    used = {other.color for other in scene.objects if other.shape == item.shape}
    wrong = choose(rng, [color for color in COLORS if color not in used])
    return is_there(item.name), is_there(f"{wrong} {item.shape}")


def seed_bench(n: int, seed: int, config: WorldConfig) -> list[Sample]:
    """`n` questions with four choices, over charts, maps and web pages in turn (SEED-Bench-2-Plus, Li et al. 2024).

    The answer is a letter; with four choices chance is 25 %.
    """
    rows = []
    for index in range(n):
        rng = stream("seed-bench", seed, index)
        chart = sample_chart(rng, config, ("chart", "map", "web")[index % 3], "test")
        rows.append(_row(chart_question(chart, rng), chart, index))
    return rows


def _row(question: Question, item: Scene | Chart, index: int) -> Sample:
    is_scene = isinstance(item, Scene)
    meta = {"question": question.text, "text": question.prompt, "answer": question.reply, "kind": question.kind,
            "image": index, "choices": list(question.choices), "scene" if is_scene else "chart": item.to_dict()}
    ref = scene_ref(item) if is_scene else chart_ref(item)
    return Sample(build_messages("vqa", question.prompt, question.reply), [ref], [], "vqa", meta)
