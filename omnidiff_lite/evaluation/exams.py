"""How a way of decoding is examined: per task, how answers are scored item by item, and into which numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import Preset
from omnidiff_lite.evaluation.alignment import score_pictures
from omnidiff_lite.evaluation.answers import answer_items
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.requests import Answer, Settings, meta
from omnidiff_lite.evaluation.scene_analysis import repeats
from omnidiff_lite.evaluation.speech import compare, transcribe_all
from omnidiff_lite.evaluation.statistics import Estimate, mean_interval, paired_difference, ratio_interval
from omnidiff_lite.world.scenes import Scene


@dataclass(frozen=True)
class Measure:
    """A number from a per-item table: column `count` over column `of` (None: over the items), times `scale`."""

    column: str
    count: str
    of: str | None = None
    scale: float = 100
    better: Literal["high", "low"] = "high"

    def estimate(self, items: pd.DataFrame, settings: Settings) -> Estimate:
        """The number over all items, with its interval."""
        values = items[self.count].astype(float)
        if self.of is None:
            return mean_interval(values, **settings.resampling).scaled(self.scale)
        return ratio_interval(values, items[self.of], **settings.resampling).scaled(self.scale)

    def change(self, items: pd.DataFrame, base: pd.DataFrame, settings: Settings) -> Estimate:
        """`items` minus `base`, paired by item."""
        words = () if self.of is None else (items[self.of], base[self.of])
        values = (table[self.count].astype(float) for table in (items, base))
        return paired_difference(*values, *words, **settings.resampling).scaled(self.scale)

    def worse(self, change: float) -> bool:
        return change < 0 if self.better == "high" else change > 0


@dataclass(frozen=True)
class Exam:
    """A task: what its answers hold, how they are scored, and its `measures`, the deciding one first."""

    to: tuple[str, ...]
    score: Callable[[Sequence[Answer], Sequence[Sample], Judges, Preset, Settings], pd.DataFrame]
    measures: tuple[Measure, ...]


def _pictures(answers: Sequence[Answer], samples: Sequence[Sample], judges: Judges, preset: Preset,
              settings: Settings) -> pd.DataFrame:
    pictures = [answer.image for answer in answers]
    _, items = score_pictures(judges, pictures, samples, settings, world=preset.world)
    scenes = [Scene.from_dict(meta(sample, "scene")) for sample in samples]
    return items.assign(repeated=[picture is not None and repeats(picture, scene, preset.world)
                                  for picture, scene in zip(pictures, scenes)])


def _said(answers: Sequence[Answer], samples: Sequence[Sample], judges: Judges, preset: Preset,
          settings: Settings) -> pd.DataFrame:
    heard = transcribe_all(judges.recognition, [answer.speech for answer in answers])
    return compare([meta(sample, "text") for sample in samples], heard, "libritts")


def _recognised(answers: Sequence[Answer], samples: Sequence[Sample], judges: Judges, preset: Preset,
                settings: Settings) -> pd.DataFrame:
    return compare([meta(sample, "answer") for sample in samples], [answer.text for answer in answers])


def _answered(answers: Sequence[Answer], samples: Sequence[Sample], judges: Judges, preset: Preset,
              settings: Settings) -> pd.DataFrame:
    items = answer_items(answers, samples, judges.recognition)
    return items.assign(seconds=[answer.speech.seconds if answer.speech else 0.0 for answer in answers],
                        letters=items["prediction"].str.len())


_SPOKEN = (Measure("svqa_spoken_right", "spoken_right"), Measure("svqa_right", "right"),
           Measure("text_letters", "letters", scale=1), Measure("speech_s", "seconds", scale=1))
_DRAWN = (Measure("image_all_right", "all_right"), Measure("image_repeated", "repeated", better="low"),
          Measure("clip_t", "clip_t", scale=1))
EXAMS = {
    "t2i": Exam(("image",), _pictures, _DRAWN), "s2i": Exam(("image",), _pictures, _DRAWN),
    "tts": Exam(("speech",), _said, (Measure("tts_wer", "errors", "words", better="low"),)),
    "asr": Exam(("text",), _recognised, (Measure("asr_wer", "errors", "words", better="low"),)),
    "svqa": Exam(("text", "speech"), _answered, _SPOKEN),
}
