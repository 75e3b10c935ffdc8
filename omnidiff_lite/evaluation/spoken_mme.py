"""Spoken MME (the ICML version's table): MME's questions typed and read aloud, answered in writing and aloud.

The camera-ready reads them with CosyVoice2; here the world's held-out voices do. A spoken question is answered once:
the answer's text and what the recognition judge hears of its speech make the two rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.evaluation.paired import MINUS
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Model, Settings, ask, meta
from omnidiff_lite.evaluation.speech import Recogniser, transcribe_all
from omnidiff_lite.evaluation.statistics import Estimate, proportion_interval
from omnidiff_lite.evaluation.vision import (mme_difference, mme_points, mme_scores, picture_of, spoken_questions,
                                             yes_or_no)
from omnidiff_lite.media import Waveform
from omnidiff_lite.world.voices import ANSWER_VOICE, Voice, speak

TABLE = "spoken_mme"
TYPED, WRITTEN, SPOKEN = "text + image -> text", "speech + image -> text", "speech + image -> speech"


def evaluate_spoken_mme(model: Model, judge: Recogniser, samples: Sequence[Sample], voices: Sequence[Voice],
                        settings: Settings = Settings()) -> tuple[list[Record], pd.DataFrame]:
    """MME's questions (meta "answer", "kind", "question"), two per picture, in the three settings of the table.

    One row per setting, "diffusion: speech + image -> text"; columns mme_p (sum over the subtasks, 200 points each),
    mme_accuracy, mme_accuracy_plus (percent), mme_<subtask>; then what a spoken question and a spoken answer cost,
    paired by picture (mme_p). Per item: setting, subtask, picture, answer, prediction, right.
    """
    aloud = spoken_questions(samples, voices, settings.seed)
    typed = ask(model, samples, settings, to="text", task="vqa")
    answers = ask(model, aloud, settings, to=("text", "speech"), task="svqa")
    said = {TYPED: [a.text for a in typed], WRITTEN: [a.text for a in answers],
            SPOKEN: transcribe_all(judge, [a.speech for a in answers])}
    items = {name: _marked(samples, texts).assign(setting=name) for name, texts in said.items()}
    records = [r for name in items for r in _scored(items[name], replace(settings, row=f"{settings.row}: {name}"))]
    for name, other in ((WRITTEN, TYPED), (SPOKEN, WRITTEN)):
        cost = replace(settings, row=f"{settings.row}: {name}{MINUS}{other}")
        records += _difference(items[name], items[other], cost)
    return records, pd.concat(items.values(), ignore_index=True)


def spoken_mme_differences(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    """mme_p of `a` minus that of `b`, two tables of `evaluate_spoken_mme`, per setting: "x minus y: <setting>"."""
    return [record for name in (TYPED, WRITTEN, SPOKEN)
            for record in _difference(a[a["setting"] == name], b[b["setting"] == name],
                                      replace(settings, row=f"{settings.row}: {name}"))]


def spoken_ceiling(judge: Recogniser, samples: Sequence[Sample],
                   settings: Settings = Settings(row="real data (ceiling)"),
                   through: Callable[[list[Waveform]], list[Waveform]] = list) -> list[Record]:
    """The score of right answers spoken by the world's answer voice, optionally passed `through` something, as the
    judge hears them. There are only as many recordings as different answers, hence no interval."""
    texts = sorted({meta(sample, "answer").strip() for sample in samples})
    heard = dict(zip(texts, transcribe_all(judge, through([speak(text, ANSWER_VOICE) for text in texts]))))
    items = _marked(samples, [heard[meta(sample, "answer").strip()] for sample in samples])
    records = _scored(items, replace(settings, row=f"{settings.row}: {SPOKEN}"))
    return [replace(r, low=None, high=None, reason=f"no interval: {len(texts)} recordings") for r in records]


def _marked(samples: Sequence[Sample], texts: Sequence[str | None]) -> pd.DataFrame:
    items = pd.DataFrame({"subtask": [meta(sample, "kind") for sample in samples],
                          "picture": [picture_of(sample) for sample in samples],
                          "answer": [meta(sample, "answer").strip() for sample in samples],
                          "prediction": [text or "" for text in texts]})
    return items.assign(right=items["prediction"].map(yes_or_no) == items["answer"].str.lower())


def _scored(items: pd.DataFrame, settings: Settings) -> list[Record]:
    """acc counts questions, acc+ pictures with both right; over all subtasks together, and as MME's points."""
    both = mme_points(items["subtask"], items["picture"], items["right"])["points"] == 200
    scores = mme_scores(items["subtask"], items["picture"], items["right"], settings)
    shares: dict[str, Estimate] = {
        "mme_accuracy": proportion_interval(items["right"], groups=items["subtask"] + items["picture"],
                                            **settings.resampling).scaled(100),
        "mme_accuracy_plus": proportion_interval(both, **settings.resampling).scaled(100)}
    return measured(TABLE, settings.row, settings.seed, {"mme_p": scores.pop("mme_p"), **shares, **scores})


def _difference(a: pd.DataFrame, b: pd.DataFrame, settings: Settings) -> list[Record]:
    return measured(TABLE, settings.row, settings.seed, {"mme_p": mme_difference(a, b, settings)})
