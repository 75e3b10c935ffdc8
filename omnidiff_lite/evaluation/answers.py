"""Open questions, typed or spoken: is the answer right, and does the voice say what the text says?

The paper shows such answers (figure 4) but gives no numbers; on the embedded world each has one short answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from omnidiff_lite.chat import TASKS, Sample
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Answer, Model, Settings, ask, meta
from omnidiff_lite.evaluation.speech import Recogniser, compare, normalize_libritts, transcribe_all, wer
from omnidiff_lite.evaluation.statistics import proportion_interval
from omnidiff_lite.evaluation.vision import yes_or_no
from omnidiff_lite.world.questions import NO, YES


def evaluate_answers(model: Model, samples: Sequence[Sample], settings: Settings = Settings(), *, task: str,
                     judge: Recogniser | None = None, table: str = "table2_vision"
                     ) -> tuple[list[Record], pd.DataFrame]:
    """Tasks text_qa, vqa, sqa, svqa (meta "answer"). Column <task>_right: percent of answers that are `right`. With
    `judge`, for tasks that answer aloud: <task>_spoken_right, the same for what is heard, and <task>_voice_wer, between
    the text and the voice of one answer (only answers with a text; a silent one is all errors).
    """
    outputs = TASKS[task].outputs if judge else ("text",)
    answers = ask(model, samples, settings, to=outputs, task=task)
    items = answer_items(answers, samples, judge if "speech" in outputs else None)
    scores = {f"{task}_right": proportion_interval(items["right"], **settings.resampling).scaled(100)}
    if judge is None or "speech" not in outputs:
        return measured(table, settings.row, settings.seed, scores), items
    scores[f"{task}_spoken_right"] = proportion_interval(items["spoken_right"], **settings.resampling).scaled(100)
    said = items[items["prediction"].map(lambda text: bool(normalize_libritts(text)))]
    if said.empty:
        return measured(table, settings.row, settings.seed, scores) + [
            missing(table, settings.row, f"{task}_voice_wer", "no answer had a text")], items
    scores[f"{task}_voice_wer"] = wer(compare(said["prediction"], said["heard"], "libritts"), settings)
    return measured(table, settings.row, settings.seed, scores), items


def answer_items(answers: Sequence[Answer], samples: Sequence[Sample], judge: Recogniser | None = None
                 ) -> pd.DataFrame:
    """Per item: question, answer (the right one), prediction, right; with `judge` also heard and spoken_right."""
    items = pd.DataFrame({"question": [s.meta.get("question", "") for s in samples],
                          "answer": [meta(s, "answer") for s in samples],
                          "prediction": [a.text or "" for a in answers]})
    items["right"] = list(map(right, items["prediction"], items["answer"]))
    if judge is not None:
        items["heard"] = transcribe_all(judge, [a.speech for a in answers])
        items["spoken_right"] = list(map(right, items["heard"], items["answer"]))
    return items


def right(said: str, answer: str) -> bool:
    """Whether the words are the answer's, case and punctuation aside. Where the answer is "yes" or "no", alone or
    with its evidence after a comma, only the first word counts, as in MME."""
    verdict = answer.split(",")[0].strip().lower()
    if verdict in (YES, NO):
        return yes_or_no(said) == verdict
    return normalize_libritts(said) == normalize_libritts(answer)
