"""What is measured of decoded answers: per item a numerator and a denominator, so that every metric is a ratio of sums.

Besides the columns of `evaluate_task` (those that are sums over items): `passes`, decoding steps that decided
something; `length`, tokens of the answer before it ends; `length_error`, its distance from the reference answer's;
`pads`, percent of the canvas decoded as pad. No seconds: a study's cells run minutes apart, so that a passing load on
the machine would be read as an effect. Ways of decoding are timed in turn by `evaluation.decoding` (notebook 06) and
`omnidiff bench`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from omnidiff_lite.chat import IGNORE, Sample
from omnidiff_lite.config import ConfigError, Preset
from omnidiff_lite.data.encode import encode_samples
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.requests import Answer
from omnidiff_lite.evaluation.suite import evaluate_items
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.world.dataset import samples as world_samples

VERDICT = ("objects_right", "attributes_right", "relation_right", "background_right", "all_right")
CANVAS = ("passes", "length", "length_error", "pads")
_PICTURE = ("clip_t", "clip_i", "image_missing", *(f"image_{name}" for name in VERDICT))
COLUMNS: dict[str, tuple[str, ...]] = {
    "asr": ("asr_wer",), "tts": ("tts_wer", "tts_silent"),
    "captioning": ("caption_cider", *(f"caption_{name}" for name in VERDICT)),
    "t2i": _PICTURE, "s2i": tuple(f"s2i_{name}" for name in _PICTURE),
    "text_qa": ("text_qa_right",), "vqa": ("vqa_right",),
    "sqa": ("sqa_right", "sqa_spoken_right"), "svqa": ("svqa_right", "svqa_spoken_right")}

Sums = NDArray[np.float64]  # [n, 2]: numerator and denominator of each item


def check_metric(task: str, metric: str) -> None:
    """Raises `ConfigError` for a task or a metric of it that does not exist."""
    if task not in COLUMNS:
        raise ConfigError(f"task {task!r} is none of {', '.join(COLUMNS)}")
    known = COLUMNS[task] + CANVAS
    if metric not in known:
        raise ConfigError(f"metric {metric!r} of task {task!r} is none of {', '.join(known)}")


def measure(task: str, metrics: Sequence[str], model: OmniDiffusion, judges: Judges, preset: Preset, seed: int,
            items: int, decoding: Mapping[str, Any] | None) -> dict[str, Sums]:
    """The sums of `metrics` over `items` test samples of the embedded world. The samples do not depend on `seed`, which
    is the sampler's."""
    drawn = world_samples(task, "test", items, 0, preset.world)
    listener = _Listener(model)
    table = evaluate_items(task, listener, judges, drawn, preset, seed, decoding)[1]
    return {metric: _sums(metric, table, drawn, listener.answers, model, preset) for metric in metrics}


@dataclass
class _Listener:
    """A model that remembers its answers."""

    model: OmniDiffusion
    answers: list[Answer] = field(default_factory=list)

    def generate_many(self, *asked: Any, **how: Any) -> Sequence[Answer]:
        answers = self.model.generate_many(*asked, **how)
        self.answers += answers
        return answers


def _sums(metric: str, table: pd.DataFrame, samples: Sequence[Sample], answers: Sequence[Answer],
          model: OmniDiffusion, preset: Preset) -> Sums:
    if metric == "passes":
        return _mean([sum(bool(step.decided.any()) for step in answer.trace) for answer in answers])
    if metric == "pads":
        pad = model.tokenizers.vocabulary.pad
        return np.array([(100 * np.sum(answer.ids == pad), len(answer.ids)) for answer in answers], float)
    if metric in ("length", "length_error"):
        lengths = np.array([_until_end(answer.ids, model) for answer in answers])
        return _mean(lengths if metric == "length" else abs(lengths - _references(samples, model, preset)))
    return column_sums(metric, table)


def column_sums(metric: str, table: pd.DataFrame) -> Sums:
    """One column of `evaluate_task` from its per-item table; shares and error rates in percent."""
    if metric in ("asr_wer", "tts_wer"):
        return np.column_stack([100.0 * table["errors"], table["words"]])
    if metric == "tts_silent":
        return _mean(100.0 * (table["seconds"] == 0))
    names = [name for name in table if metric == name or metric.endswith(f"_{name}")]
    name = max(names, key=len)  # s2i_image_all_right: all_right; svqa_spoken_right: spoken_right
    return _mean(100.0 * table[name] if table[name].dtype == bool else table[name])


def _mean(values: Sequence[float] | NDArray | pd.Series) -> Sums:
    return np.column_stack([np.asarray(values, float), np.ones(len(values))])


def _until_end(ids: NDArray, model: OmniDiffusion) -> int:
    """Tokens before the turn's end."""
    ends = np.flatnonzero(np.asarray(ids) == model.tokenizers.vocabulary.im_end)
    return int(ends[0]) if len(ends) else len(ids)


def _references(samples: Sequence[Sample], model: OmniDiffusion, preset: Preset) -> NDArray:
    """The same for each sample's own answer."""
    encoded = encode_samples(samples, model.tokenizers, preset.image_tokenizer.sizes,
                             draw_size=preset.world.image_size)
    return np.array([_until_end(sample.labels[sample.labels != IGNORE], model) for sample in encoded])
