"""Table 3: decoding steps against quality, with latency and real-time factor measured in the same run.

Times are of whole requests, one at a time, after a warm-up: from the prompt's encoding to the picture or the wave.
Only the answer counts as output: throughput is in answer tokens, the real-time factor divides by the seconds of speech
produced. All methods share one clock, so the autoregressive twin is timed by the same code. It takes as many steps as
it produces tokens: one row per task, and its difference from the diffusion model at each number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import WorldConfig
from omnidiff_lite.evaluation.alignment import picture_items, score_pictures
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.paired import MINUS, TWIN, Columns, differences, is_difference
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Answer, Model, Settings, ask, requests_of
from omnidiff_lite.evaluation.speech import TTS_ITEMS, Recogniser, evaluate_tts
from omnidiff_lite.evaluation.statistics import Estimate, median_interval, ratio_interval
from omnidiff_lite.measure import seconds_of

TABLE = "table3_sampling"
NAMES = {"t2i": "text-to-image", "s2i": "speech-to-image", "tts": "text-to-speech", "asr": "speech-to-text",
         "svqa": "spoken answer"}


@dataclass(frozen=True)
class Point:
    """One row: its records, its items, and the seconds of its timed requests."""

    records: list[Record]
    items: pd.DataFrame
    seconds: list[float]


Measure = Callable[[Model, Settings], Point]


def sweep_images(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 task: str = "t2i", steps: Sequence[int] = (256, 50, 10), timed: int = 5,
                 world: WorldConfig | None = None, twin: Model | str | None = None
                 ) -> tuple[list[Record], pd.DataFrame]:
    """Image rows (task t2i or s2i): clip_t, clip_i, `image_*` with `world`, latency_s, tokens_per_s, one row for each
    number of steps; and the twin's, if it (or the reason for its absence) is given."""
    def measure(who: Model, here: Settings) -> Point:
        timing = time_answers(who, samples[:timed], here, to="image", task=task)
        pictures = [answer.image for answer in ask(who, samples, here, to="image", task=task)]
        scores, items = score_pictures(judges, pictures, samples, here, world=world)
        return Point(measured(TABLE, here.row, here.seed, scores | speed(timing, here)), items, timing.seconds)

    return _sweep(measure, model, twin, settings, task, {str(count): count for count in steps}, picture_items)


def sweep_speech(model: Model, judge: Recogniser, samples: Sequence[Sample], settings: Settings = Settings(), *,
                 ratios: Sequence[float] = (0.5, 0.25, 0.125), timed: int = 5, twin: Model | str | None = None
                 ) -> tuple[list[Record], pd.DataFrame]:
    """Speech rows: tts_wer, tts_silent, latency_s, tokens_per_s, rtf (seconds of computing per second of speech), one
    row for each number of steps as a share of the length L of the answer's canvas; and the twin's, as above."""
    def measure(who: Model, here: Settings) -> Point:
        timing = time_answers(who, samples[:timed], here, to="speech", task="tts")
        scores, items = evaluate_tts(who, judge, samples, here)
        records = [replace(record, table=TABLE) for record in scores]
        records += measured(TABLE, here.row, here.seed, speed(timing, here))
        return Point(records + _real_time(timing, here), items, timing.seconds)

    steps = {f"{share:g}L": share for share in ratios}
    return _sweep(measure, model, twin, settings, "tts", steps, lambda _: TTS_ITEMS)


def row_name(settings: Settings, task: str, steps: object = None) -> str:
    """"diffusion: text-to-image, 10 steps": the method, then the paper's name of the row; the twin's has no steps."""
    return f"{settings.row}: {NAMES[task]}" + ("" if steps is None else f", {steps_label(steps)}")


def steps_label(steps: object) -> str:
    """"1 step", "0.5L steps": a number of steps in the names of rows and figures."""
    return f"{steps} step" if str(steps) == "1" else f"{steps} steps"


def _sweep(measure: Measure, model: Model, twin: Model | str | None, settings: Settings, task: str,
           steps: Mapping[str, float], columns: Callable[[pd.DataFrame], Columns]) -> tuple[list[Record], pd.DataFrame]:
    """A row for each of `steps` (label -> setting), the first minus each of the others, paired by item, then the
    twin's; per item also steps, NaN for the twin."""
    points = {}
    for name, count in steps.items():
        here = replace(settings, row=row_name(settings, task, name))
        points[name] = measure(model, _decoding(here, {"steps": count}))
    records = [record for point in points.values() for record in point.records]
    (most, all_steps), *fewer = points.items()
    for name, point in fewer:
        lost = replace(settings, row=f"{row_name(settings, task, most)}{MINUS}{steps_label(name)}")
        records += differences(TABLE, columns(point.items), all_steps.items, point.items, lost)
    tables = [point.items.assign(steps=count) for point, count in zip(points.values(), steps.values())]
    if isinstance(twin, str):
        row, one = row_name(replace(settings, row=TWIN), task), next(iter(points.values()))
        records += [missing(TABLE, row, record.column, twin) for record in one.records]
    elif twin is not None:
        found, items = _twin_beside(measure, twin, settings, task, points, columns)
        records, tables = records + found, [*tables, items.assign(steps=np.nan)]
    return records, pd.concat(tables, ignore_index=True)


def _twin_beside(measure: Measure, twin: Model, settings: Settings, task: str, points: Mapping[str, Point],
                 columns: Callable[[pd.DataFrame], Columns]) -> tuple[list[Record], pd.DataFrame]:
    """The twin's row, one token per step, and its difference from each of `points`."""
    row = row_name(replace(settings, row=TWIN), task)
    own = measure(twin, _decoding(replace(settings, row=row), {"steps": None}))
    records = list(own.records)
    for name, point in points.items():
        between = replace(settings, row=f"{row}{MINUS}{settings.row}, {steps_label(name)}")
        records += _between(own, point, columns(own.items), between)
    return records, own.items


def _between(a: Point, b: Point, columns: Columns, settings: Settings) -> list[Record]:
    """a minus b, paired: scores by item, seconds by request (median)."""
    longer = median_interval(np.subtract(a.seconds, b.seconds), **settings.resampling)
    return (differences(TABLE, columns, a.items, b.items, settings)
            + measured(TABLE, settings.row, settings.seed, {"latency_s": longer}))


def trade_offs(records: Iterable[Record], scores: Mapping[str, str]) -> pd.DataFrame:
    """Data for a figure of quality against latency: task, method, steps ("" for the twin), and value, low and high of
    both as quality, quality_low, ..., latency_high. `scores`: which column is the quality of each task."""
    cells = {(r.row, r.column): r for r in records if r.table == TABLE and r.value is not None and not is_difference(r)}
    rows = []
    for row in dict.fromkeys(row for row, _ in cells):
        method, _, place = row.partition(": ")
        task, _, steps = place.partition(", ")
        quality, latency = (cells.get((row, column)) for column in (scores.get(task), "latency_s"))
        if quality and latency:
            rows.append({"task": task, "method": method, "steps": steps.partition(" ")[0],
                         **_ends("quality", quality), **_ends("latency", latency)})
    return pd.DataFrame(rows)


def _ends(name: str, record: Record) -> dict[str, float]:
    """Without an interval, both ends are the value."""
    low, high = (record.value, record.value) if record.low is None else (record.low, record.high)
    return {name: record.value, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class Timing:
    """Wall-clock `seconds` per answer, and the answers."""

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
    """Median latency_s per request, and tokens_per_s: answer tokens over total seconds."""
    tokens = [len(answer.ids) for answer in timing.answers]
    return {"latency_s": median_interval(timing.seconds, **settings.resampling),
            "tokens_per_s": ratio_interval(tokens, timing.seconds, **settings.resampling)}


def _real_time(timing: Timing, settings: Settings) -> list[Record]:
    spoken = np.array([answer.speech.seconds if answer.speech else 0.0 for answer in timing.answers])
    if not spoken.any():
        return [missing(TABLE, settings.row, "rtf", "every timed answer was silent")]
    factor = ratio_interval(timing.seconds, spoken, **settings.resampling)
    return measured(TABLE, settings.row, settings.seed, {"rtf": factor})


def _decoding(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    return replace(settings, decoding={**(settings.decoding or {}), **changes})
