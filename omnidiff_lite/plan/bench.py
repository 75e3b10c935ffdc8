"""`omnidiff bench`: the fast decoder against a plain one and against the autoregressive twin, in quality and in time.

    records = bench(load_preset("cpu"), Artifacts.of("cpu"))      # table `bench`
    print(bench_report(records))

Rows `exact/<ids>/<masks>/<device>`: the same canvases in less time, at three vocabulary sizes; rows
`profile/<ids>/<masks>/<device>/<decoder>`: percent of that time by part of the network. Rows
`fast/<task>/<batch>/<device>/<way>`: the finished checkpoint, the same requests decoded in several ways in turn.
For seconds at any size with random weights, beside the paper's, see `plan.timing`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import mean

import numpy as np
import pandas as pd
import torch

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.config import Preset
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.evaluation.decoding import Compared, Way, compare_decoding, decoding_by
from omnidiff_lite.evaluation.exams import EXAMS
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.paired import TWIN
from omnidiff_lite.evaluation.records import Record, measured, with_provenance
from omnidiff_lite.evaluation.statistics import Estimate, median_interval, proportion_interval
from omnidiff_lite.evaluation.suite import autoregressive_twin, finished_system
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.plan.device import Rates, device_name, device_of, measure_rates, seconds_at
from omnidiff_lite.plan.exact_speed import SMALL, exact_speed
from omnidiff_lite.plan.floor import decoding_work
from omnidiff_lite.plan.profile import PARTS, REST, profile_records
from omnidiff_lite.provenance import provenance
from omnidiff_lite.world.dataset import samples

TABLE = "bench"
IDS, MASKS = (2048, 25_000, 176_264), (64, 128, 256)
EXACT_STEPS = 2
ITEMS = {1: 6, 8: 16}  # batch size -> answers per way; more of them narrow the quality intervals


def bench(preset: Preset, artifacts: Artifacts, device: str | torch.device = "cpu", *,
          tasks: Sequence[str] = ("t2i", "tts"), items: Mapping[int, int] = ITEMS, ids: Sequence[int] = IDS,
          masks: Sequence[int] = MASKS, repeats: int = 3, dtype: str = "auto", seed: int = 0) -> list[Record]:
    """All rows. `items`: batch size -> number of answers; `ids` and `masks`: sizes of the `exact` rows, each decoded
    `repeats` times; `dtype`: of the checkpoint's denoiser (see `finished_system`).

    Values are medians with bootstrap intervals, over repeats or over batches. Raises `PlanError` for a device that does
    not exist, `MissingArtifact` naming the notebook to run first. Without the twin, its rows are left out.
    """
    started, device = time.time(), device_of(device)
    model, judges = finished_system(preset, artifacts, device, dtype)
    twin = autoregressive_twin(model, artifacts) if artifacts.twin.exists() else None
    rates = measure_rates(device, model.denoiser.dtype)
    records = [record for size in ids for length in masks
               for record in exact_records(size, length, device, repeats, seed)]
    records += [record for size in (min(ids), max(ids))
                for record in profile_records(TABLE, size, max(masks), device, EXACT_STEPS, repeats, seed)]
    for task in tasks:
        for batch, count in items.items():
            found = compare_decoding(task, model, judges, samples(task, "test", count, seed, preset.world),
                                     bench_ways(task, model, twin, preset), preset, batch=batch, seed=seed)
            records += fast_records(found, f"fast/{task}/{batch}/{device.type}", model, rates)
    return with_provenance(records, provenance(
        preset, seed, started, on=device.type, device=device_name(device),
        dtype=str(model.denoiser.dtype).removeprefix("torch."), checkpoint=model.settings.provenance,
        exact=f"random weights, {asdict(SMALL)}, {EXACT_STEPS} steps"))


def bench_file(device: str | torch.device) -> str:
    """The name of the records file: each kind of device has its own."""
    return "bench.json" if torch.device(device).type == "cpu" else f"bench_{torch.device(device).type}.json"


def bench_ways(task: str, model: OmniDiffusion, twin: OmniDiffusion | None, preset: Preset) -> dict[str, Way]:
    """The ways a task's requests are decoded: `plain` and `exact` take all of the task's own steps."""
    few, name = {"steps": preset.evaluation.steps[1]}, f"{preset.evaluation.steps[1]} steps"
    if task == "tts":
        few, name = {"steps": preset.evaluation.ratios[-1]}, f"{preset.evaluation.ratios[-1]:g}L steps"
        if model.settings.decoding.get(task, {}).get("block_length"):  # a few steps in each block would be fewer still
            few, name = few | {"block_length": None}, f"all at once, {name}"
    ways = {"plain": Way(model=decoding_by(model, decode_plain)), "exact": Way(), "cache": Way({"cache": "dual"}),
            "threshold 0.9": Way({"algorithm": "confidence", "threshold": 0.9}), name: Way(few),
            f"cache, {name}": Way(few | {"cache": "dual"})}
    return ways if twin is None else ways | {TWIN: Way(model=twin)}


# --- records --------------------------------------------------------------------------------------------------------


def exact_records(ids: int, masks: int, device: torch.device, repeats: int, seed: int = 0) -> list[Record]:
    """One row: `masks` masks over `ids` ids, random weights.

    A denoiser as small as the `cpu` preset's, whatever the vocabulary, and `EXACT_STEPS` steps, so that 176 k ids take
    bearable time: the cost of the vocabulary weighs most here. A larger denoiser would bring the two decoders closer.
    """
    found = exact_speed(ids, masks, device, steps=EXACT_STEPS, repeats=repeats)
    pairs = list(zip(found.plain, found.fast, strict=True))
    times = {"ratio_to_plain": [plain / fast for plain, fast in pairs], "seconds": found.fast,
             "plain_seconds": found.plain, "tokens_per_second": [masks / fast for fast in found.fast],
             "forward_passes": [EXACT_STEPS] * repeats}
    same = Estimate(100.0 * found.same, None, None, repeats, "all canvases of all steps, or not")
    return measured(TABLE, f"exact/{ids}/{masks}/{device.type}", seed,
                    {name: median_interval(values) for name, values in times.items()} | {"identical": same})


def fast_records(found: Compared, prefix: str, model: OmniDiffusion, rates: Rates) -> list[Record]:
    """One row per way. `identical`: percent of the answers that equal the plain decoder's, token for token. The plain
    decoder takes a batch one sequence at a time, so its `forward_passes` add up."""
    records = []
    for way in found.items:
        same = [np.array_equal(a.ids, b.ids) for a, b in zip(found.answers[way], found.answers["plain"])]
        columns = {"quality": found.quality(way), **found.speed(way, "plain"),
                   "identical": proportion_interval(same, **found.settings.resampling).scaled(100)}
        if way != "plain":
            columns["quality_minus_plain"] = found.change(way, "plain")
        if way == "exact":
            columns |= _floor(found, model, rates)
        records += measured(TABLE, f"{prefix}/{way}", found.settings.seed, columns)
    return records


def _floor(found: Compared, model: OmniDiffusion, rates: Rates) -> dict[str, Estimate]:
    """The least seconds per answer without a cache, in as many passes as `exact`: weights read once per pass for the
    whole batch, multiplications for each answer in its own passes (means over answers). The prompt is left out."""
    vocabulary, denoiser, answers = model.tokenizers.vocabulary, model.denoiser, found.answers["exact"]
    ids = vocabulary.image_range if found.task in ("t2i", "s2i") else vocabulary.speech_range
    work = partial(decoding_work, denoiser.config, 0, number_bytes=denoiser.dtype.itemsize, allowed=len(ids))
    passes = found.rounds.loc[found.rounds["way"] == "exact", "passes"].median()
    shortest = min(len(answer.ids) for answer in answers)
    flops = mean(work(len(answer.ids), sum(bool(step.decided.any()) for step in answer.trace)).flops
                 for answer in answers)
    return {"floor_bytes_s": seconds_at(work(shortest, round(passes)).bytes / found.settings.batch, rates.bandwidth),
            "floor_flops_s": seconds_at(flops, rates.matmul)}


# --- what is printed ------------------------------------------------------------------------------------------------


# column of the records -> heading, digits, with its interval
SHOWN = {"ratio_to_plain": ("x plain", 2, True), "identical": ("same %", 0, False), "quality": ("quality %", 1, True),
         "quality_minus_plain": ("change", 1, True), "plain_seconds": ("plain s", 3, False), "seconds": ("s", 3, False),
         "latency_s": ("whole s", 3, False), "tokens_per_second": ("tokens/s", 0, False),
         "forward_passes": ("passes", 0, False), "memory_gib": ("GiB", 2, False),
         "floor_bytes_s": ("floor: bytes", 4, False), "floor_flops_s": ("floor: FLOPs", 4, False)}
SHOWN |= {part: (f"{part} %", 0, False) for part in (*PARTS, REST)}


def bench_report(records: Sequence[Record]) -> str:
    """The rows of each kind as a text table."""
    kinds = ("exact", "profile", "fast")
    return "\n\n".join(table.to_string() for table in (bench_table(records, kind) for kind in kinds) if len(table))


def bench_table(records: Sequence[Record], kind: str) -> pd.DataFrame:
    """`kind` "exact", "profile" or "fast": one row per setting, in text cells; seconds are per answer. Quality is the
    task's own (all-right pictures, or word errors), with its interval and n; other intervals are in the records."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if record.table == TABLE and record.row.startswith(f"{kind}/") and record.column in SHOWN:
            heading, digits, ends = SHOWN[record.column]
            rows.setdefault(record.row.removeprefix(f"{kind}/"), {})[heading] = _cell(record, digits, ends)
    frame = pd.DataFrame.from_dict(rows, orient="index")
    order = [heading for heading, *_ in SHOWN.values() if heading in frame]
    return frame[order].fillna("").rename_axis(kind)


def fastest_without_loss(records: Sequence[Record], bar: float = 5.0, fewest: int = 10) -> pd.DataFrame:
    """For each task and batch, the model's fastest way whose quality is not shown to be worse than the plain decoder's
    (the interval of its change reaches 0): times as fast and change, with intervals, n; and whether the lower end of
    the speedup reaches `bar`. Under `fewest` items, which hardly ever show a loss, it says "too few items"."""
    cells: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.row.startswith("fast/"):
            cells.setdefault(record.row, {})[record.column] = record
    best: dict[str, tuple[str, Record, Record]] = {}
    for row, found in cells.items():
        setting, _, way = row.removeprefix("fast/").rpartition("/")
        ratio, change = found["ratio_to_plain"], found.get("quality_minus_plain")
        if way == TWIN or change is None or not _no_loss(setting.partition("/")[0], change):
            continue
        if setting not in best or ratio.value > best[setting][1].value:
            best[setting] = way, ratio, change
    rows = {setting: {"fastest without a shown loss": way, "times as fast": _cell(ratio, 2, True),
                      "change": _cell(change, 1, True), "n": change.n,
                      f"{bar:g} times": _reached(ratio, change, bar, fewest)}
            for setting, (way, ratio, change) in best.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("task/batch/device")


def _reached(ratio: Record, change: Record, bar: float, fewest: int) -> str:
    if change.n < fewest:
        return "too few items"
    return "reached" if (ratio.low if ratio.low is not None else ratio.value) >= bar else "not reached"


def _no_loss(task: str, change: Record) -> bool:
    if change.low is None:  # every item as before
        return change.value == 0
    return change.low <= 0 if EXAMS[task].measures[0].better == "low" else change.high >= 0


def _cell(record: Record, digits: int, ends: bool) -> str:
    text = f"{record.value:.{digits}f}"
    if ends and record.low is not None:
        text += f" [{record.low:.{digits}f}, {record.high:.{digits}f}]"
    return text + (f" n={record.n}" if record.column == "quality" else "")
