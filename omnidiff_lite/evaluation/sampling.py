"""Table 3: decoding steps against quality, with latency and real-time factor measured in the same run.

Times are of whole requests, one at a time, after one to warm up: from the prompt's encoding to the picture or the wave.
Only the answer counts as output: throughput is in answer tokens, the real-time factor divides by the seconds of speech
that came out. One clock for every method, so the autoregressive twin is timed by the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.alignment import score_pictures
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Answer, Model, Settings, ask, requests_of
from omnidiff_lite.evaluation.speech import Recogniser, evaluate_tts
from omnidiff_lite.evaluation.statistics import Estimate, median_interval, ratio_interval
from omnidiff_lite.measure import seconds_of

TABLE = "table3_sampling"
NAMES = {"t2i": "text-to-image", "s2i": "speech-to-image", "tts": "text-to-speech", "asr": "speech-to-text",
         "svqa": "spoken answer"}


def sweep_images(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 task: str = "t2i", steps: Sequence[int] = (256, 50, 10), timed: int = 5,
                 world: WorldConfig | None = None) -> tuple[list[Record], pd.DataFrame]:
    """Image rows (task t2i or s2i): clip_t, clip_i, `image_*` with `world`, latency_s, tokens_per_s, a row for each
    number of steps."""
    records, tables = [], []
    for count in steps:
        here = _decoding(settings, {"steps": count})
        timing = time_answers(model, samples[:timed], here, to="image", task=task)
        pictures = [answer.image for answer in ask(model, samples, here, to="image", task=task)]
        scores, items = score_pictures(judges, pictures, samples, here, world=world)
        records += measured(TABLE, row_name(settings, task, count), settings.seed, scores | speed(timing, here))
        tables.append(items.assign(steps=count))
    return records, pd.concat(tables, ignore_index=True)


def sweep_speech(model: Model, judge: Recogniser, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 ratios: Sequence[float] = (0.5, 0.25, 0.125), timed: int = 5) -> tuple[list[Record], pd.DataFrame]:
    """Speech rows: tts_wer, tts_silent, latency_s, tokens_per_s, rtf (seconds of computing a second of speech), a row
    for each number of steps as a share of the length L of the answer's canvas."""
    records, tables = [], []
    for share in ratios:
        here = _decoding(settings, {"steps": share})
        row = row_name(settings, "tts", f"{share:g}L")
        timing = time_answers(model, samples[:timed], here, to="speech", task="tts")
        scores, items = evaluate_tts(model, judge, samples, here)
        records += [replace(record, table=TABLE, row=row) for record in scores]
        records += measured(TABLE, row, settings.seed, speed(timing, here))
        records += _real_time(timing, row, here)
        tables.append(items.assign(steps=share))
    return records, pd.concat(tables, ignore_index=True)


def row_name(settings: Settings, task: str, steps: object) -> str:
    """"diffusion: text-to-image, 10 steps": the method, then the row as the paper names it."""
    return f"{settings.row}: {NAMES[task]}, {steps} steps"


@dataclass(frozen=True)
class Timing:
    """Wall-clock `seconds` of each answer, and the answers."""

    seconds: list[float]
    answers: list[Answer]


def time_answers(model: Model, samples: Sequence[Sample], settings: Settings, *, to: str | Sequence[str], task: str
                 ) -> Timing:
    """Answer the samples one by one and time each; the first is answered twice, the first time to warm up."""
    requests = requests_of(samples, settings.root, settings.image_sizes[0])  # loading media is not the model's time

    answers: list[Answer] = []

    def answer(i: int) -> None:
        answers.extend(model.generate_many([requests[i]], to=to, task=task, decoding=settings.decoding,
                                           seed=settings.seed + i, batch_size=1))

    answer(0)
    answers.clear()
    seconds = [seconds_of(partial(answer, i))[0] for i in range(len(samples))]
    return Timing(seconds, answers)


def speed(timing: Timing, settings: Settings) -> dict[str, Estimate]:
    """Median latency_s of a request, and tokens_per_s: answer tokens over all seconds."""
    tokens = [len(answer.ids) for answer in timing.answers]
    return {"latency_s": median_interval(timing.seconds, **settings.resampling),
            "tokens_per_s": ratio_interval(tokens, timing.seconds, **settings.resampling)}


def _real_time(timing: Timing, row: str, settings: Settings) -> list[Record]:
    spoken = np.array([answer.speech.seconds if answer.speech else 0.0 for answer in timing.answers])
    if not spoken.any():
        return [missing(TABLE, row, "rtf", "every timed answer was silent")]
    return measured(TABLE, row, settings.seed, {"rtf": ratio_interval(timing.seconds, spoken, **settings.resampling)})


def _decoding(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    return replace(settings, decoding={**(settings.decoding or {}), **changes})
