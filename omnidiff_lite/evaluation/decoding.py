"""Ways of decoding compared on the same requests in the same run: quality and speed, both paired.

    found = compare_decoding("t2i", model, judges, samples, {"base": {}, "argmax": {"temperature": 0.0}}, preset)
    found.records("base")       # one row per way: quality, its change, seconds, tokens per second, forward passes

    trials = Trials("t2i", model, judges, samples, preset, {"steps": 16})     # many tricks, one base
    trials.run({"argmax": {"temperature": 0.0}}).table()

Every way answers one batch before any answers the next (A B C A B C), so that a slow phase of the machine hits all
alike. Only decoding is timed, from the prompt's embeddings to the last token: what comes before and after, media to
prompt and tokens to picture or wave, is the same for every way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
from tqdm import tqdm

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import Preset
from omnidiff_lite.diffusion.decoding import DecodeResult
from omnidiff_lite.evaluation.exams import EXAMS, Measure
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.requests import Answer, Settings, ask
from omnidiff_lite.evaluation.sampling import NAMES
from omnidiff_lite.evaluation.statistics import Estimate, median_interval
from omnidiff_lite.evaluation.tables import comparison
from omnidiff_lite.measure import PeakMemory, seconds_of
from omnidiff_lite.pipeline import OmniDiffusion

TABLE = "ablation_decoding"
BASE = "base"
GIB = 2**30


@dataclass(frozen=True)
class Way:
    """One way to answer: fields of `DecodingConfig` to change, and the model to ask if not the common one: the
    twin, or the same system with another decoder (`decoding_by`) or other answer lengths (`with_lengths`)."""

    decoding: Mapping[str, Any] = field(default_factory=dict)
    model: OmniDiffusion | None = None


def decoding_by(model: OmniDiffusion, decoder: Callable[..., DecodeResult]) -> OmniDiffusion:
    """The same system with `decoder` in place of its own."""
    other = copy.copy(model)
    other.decoder = decoder
    return other


def with_lengths(model: OmniDiffusion, **changes: Any) -> OmniDiffusion:
    """The same system with other `AnswerLengths`. A slope of 0 leaves the offset: one fixed length."""
    other = copy.copy(model)
    other.settings = replace(model.settings, lengths=replace(model.settings.lengths, **changes))
    return other


def compare_decoding(task: str, model: OmniDiffusion, judges: Judges, samples: Sequence[Sample],
                     ways: Mapping[str, Way | Mapping[str, Any]], preset: Preset, *, batch: int = 0, seed: int = 0,
                     common: Mapping[str, Any] = {}, progress: bool = True) -> Compared:
    """Answer `samples` of `task` (a key of `EXAMS`) in each of `ways`, `batch` at a time (0: the preset's number).

    `common`: decoding settings under every way's own. Each way first answers one request to warm up. Request i takes
    the noise of seed + i, in every way and at every batch size.
    """
    settings = Settings.of(preset, seed=seed, **{"batch": batch} if batch else {})
    plain = {name: way if isinstance(way, Way) else Way(way) for name, way in ways.items()}
    asked = {name: _Asked(task, way.model or model, replace(settings, decoding={**common, **way.decoding}))
             for name, way in plain.items()}
    answers: dict[str, list[Answer]] = {name: [] for name in ways}
    rounds = []
    starts = range(0, len(samples), settings.batch)
    for one in asked.values():
        one.answer(samples[:1], 0)
    for start in tqdm(starts, desc=task, mininterval=5.0, disable=not progress):
        for name, one in asked.items():
            found, row = one.answer(samples[start:start + settings.batch], start)
            answers[name] += found
            rounds.append({"way": name, **row})
    items = {name: EXAMS[task].score(found, samples, judges, preset, settings) for name, found in answers.items()}
    return Compared(task, answers, items, pd.DataFrame(rounds), settings)


class _Asked:
    """A way with a stopwatch on its decoder."""

    def __init__(self, task: str, model: OmniDiffusion, settings: Settings) -> None:
        self.task, self.settings = task, settings
        self.decoder, self.model = model.decoder, decoding_by(model, self._decode)
        self.seconds, self.passes = 0.0, 0

    def answer(self, samples: Sequence[Sample], start: int) -> tuple[list[Answer], dict[str, float]]:
        """Answers to `samples`, the first of which is number `start`, and the row for `Compared.rounds`."""
        self.seconds, self.passes = 0.0, 0
        here = replace(self.settings, seed=self.settings.seed + start)
        found: list[Answer] = []
        with PeakMemory(self.model.device) as memory:
            whole, = seconds_of(lambda: found.extend(ask(self.model, samples, here, to=EXAMS[self.task].to,
                                                         task=self.task)), self.model.device)
        pad = self.model.tokenizers.vocabulary.pad
        return found, {"answers": len(found), "seconds": self.seconds, "whole": whole, "passes": self.passes,
                       "peak": memory.peak, "tokens": sum(int((answer.ids != pad).sum()) for answer in found)}

    def _decode(self, *arguments: Any, **named: Any) -> DecodeResult:
        results: list[DecodeResult] = []
        self.seconds += seconds_of(lambda: results.append(self.decoder(*arguments, **named)), self.model.device)[0]
        self.passes += results[0].passes
        return results[0]


@dataclass(frozen=True)
class Compared:
    """The result. `answers`: by way, in the order of the samples. `items`: by way, a table with one row per sample,
    from which the task's measures are computed. `rounds`: one row per batch and way: answers, seconds (of decoding),
    whole (seconds with media and rendering), passes (of the denoiser), tokens (of the answers; no prompts, no
    pads), peak (bytes of memory)."""

    task: str
    answers: dict[str, list[Answer]]
    items: dict[str, pd.DataFrame]
    rounds: pd.DataFrame
    settings: Settings

    @property
    def measure(self) -> Measure:
        """The measure that decides."""
        return EXAMS[self.task].measures[0]

    @property
    def name(self) -> str:
        """The task's name in the tables."""
        return NAMES[self.task]

    def quality(self, way: str, measure: Measure | None = None) -> Estimate:
        return (measure or self.measure).estimate(self.items[way], self.settings)

    def change(self, way: str, base: str, measure: Measure | None = None) -> Estimate:
        """`way` minus `base`, paired by item."""
        return (measure or self.measure).change(self.items[way], self.items[base], self.settings)

    def joined(self, other: Compared) -> Compared:
        """The ways of both, on the same requests. Their speeds are not comparable: they were not measured in turn."""
        return replace(self, answers=self.answers | other.answers, items=self.items | other.items,
                       rounds=pd.concat([self.rounds, other.rounds], ignore_index=True))

    def speed(self, way: str, base: str) -> dict[str, Estimate]:
        """Medians over batches: `ratio_to_<base>` (how many times as fast on the same batch), `seconds` of decoding,
        `latency_s` of a whole answer, `tokens_per_second`, `forward_passes` per batch; and the peak, `memory_gib`."""
        own, other = (self.rounds[self.rounds["way"] == name].reset_index() for name in (way, base))
        columns = {f"ratio_to_{base}": other["seconds"] / own["seconds"], "seconds": own["seconds"] / own["answers"],
                   "latency_s": own["whole"] / own["answers"],
                   "tokens_per_second": own["tokens"] / own["seconds"], "forward_passes": own["passes"]}
        return {name: median_interval(values, **self.settings.resampling) for name, values in columns.items()} | {
            "memory_gib": Estimate(own["peak"].max() / GIB, None, None, len(own), "the most of all batches")}

    def records(self, base: str, prefix: str = "", speed: bool = True) -> list[Record]:
        """For each way and measure the value and, except for `base` itself, its change as `<column>_minus_<base>`;
        with `speed`, the speeds too."""
        found = []
        for way in self.items:
            columns = self.speed(way, base) if speed else {}
            for measure in EXAMS[self.task].measures:
                columns[measure.column] = self.quality(way, measure)
                if way != base:
                    columns[f"{measure.column}_minus_{base}"] = self.change(way, base, measure)
            found += measured(TABLE, prefix + way, self.settings.seed, columns)
        return found

    def changes(self, base: str, measure: Measure | None = None) -> pd.DataFrame:
        """One row per way: label, value, low, high, n, and the change from `base` (none for `base` itself)."""
        rows = []
        for way in self.items:
            value = self.quality(way, measure)
            rows.append({"label": way, "value": value.value, "low": value.low, "high": value.high, "n": value.n})
            if way != base:
                change = self.change(way, base, measure)
                rows[-1] |= {"change": change.value, "change_low": change.low, "change_high": change.high}
        return pd.DataFrame(rows, columns=["label", "value", "low", "high", "n", "change", "change_low", "change_high"])

    def verdict(self, base: str = BASE, measure: Measure | None = None) -> str:
        """In words, which ways are better than `base`, which are worse, and for which neither is shown."""
        measure, found = measure or self.measure, {"better": [], "worse": [], "no difference shown": []}
        for row in self.changes(base, measure).dropna(subset="change").itertuples():
            shown = row.change_low > 0 or row.change_high < 0
            kind = "no difference shown" if not shown else "worse" if measure.worse(row.change) else "better"
            found[kind].append(row.label)
        return "; ".join(f"{kind}: {', '.join(ways)}" for kind, ways in found.items() if ways)

    def table(self, *columns: str, base: str = BASE) -> pd.DataFrame:
        """Text cells: for each measure in `columns` (none given: the deciding one) the value and its change from
        `base`, with intervals."""
        wanted = [column + end for column in columns or (self.measure.column,) for end in ("", f"_minus_{base}")]
        return comparison(self.records(base, speed=False), wanted)["ours"]

    def curve(self, base: str) -> pd.DataFrame:
        """`changes`, and for each way how many times as fast it is (ratio), its seconds and its forward passes."""
        speeds = [self.speed(way, base) for way in self.items]
        return self.changes(base).assign(**{name: [speed[column].value for speed in speeds] for name, column in (
            ("ratio", f"ratio_to_{base}"), ("seconds", "seconds"), ("passes", "forward_passes"))})

    def fastest_as_good(self, than: str) -> str:
        """The fastest way that is at least as good as `than`, which may be that one itself.

        Judged by the measured values: with few items chance plays a part, so look at the change's interval too.
        """
        good = [way for way in self.items if not self.measure.worse(self.change(way, than).value)]
        return min(good, key=lambda way: self.speed(way, than)["seconds"].value)

    def at_equal_quality(self, than: str) -> pd.Series:
        """`fastest_as_good` beside `than`: seconds and quality of both, the change with its interval, and the ratio."""
        fastest = self.fastest_as_good(than)
        speed, change = self.speed(fastest, than), self.change(fastest, than)
        return pd.Series({
            "fastest that is as good": fastest, "its seconds": speed["seconds"].value,
            f"{than}: seconds": self.speed(than, than)["seconds"].value, "its quality": self.quality(fastest).value,
            f"{than}: quality": self.quality(than).value, "change": change.value, "low": change.low,
            "high": change.high, "n": change.n, "times as fast": speed[f"ratio_to_{than}"].value})


class Trials:
    """Tricks tried one after another on the requests of one task, each against the same base, which is answered once.

    `all`: the base and whatever was tried so far.
    """

    def __init__(self, task: str, model: OmniDiffusion, judges: Judges, samples: Sequence[Sample], preset: Preset,
                 common: Mapping[str, Any] = {}, seed: int = 0) -> None:
        """`common`: the decoding settings of the base; a way changes some of them."""
        self._compare = partial(compare_decoding, task, model, judges, samples, preset=preset, common=common, seed=seed)
        self.base = self.all = self._compare({BASE: {}})

    def run(self, ways: Mapping[str, Way | Mapping[str, Any]]) -> Compared:
        """The base and `ways`."""
        found = self._compare(ways)
        self.all = self.all.joined(found)
        return self.base.joined(found)

    def records(self) -> list[Record]:
        """Quality and its change, for all ways; rows like "text-to-image: top-k"."""
        return self.all.records(BASE, f"{self.base.name}: ", speed=False)
