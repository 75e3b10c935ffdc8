"""How fast one process trains and how fast several do, on this machine, at a preset's size, on synthetic samples.

    records = measure_scaling(load_preset("smoke"), "work/scaling")
    scaling_table(records)

Each round starts every way afresh, one after the other, so that a machine that slows down slows them all. Samples are
random ids of the preset's vocabulary: their content does not change how long a step takes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import Preset
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.evaluation.records import Record, measured, missing, with_provenance
from omnidiff_lite.evaluation.statistics import Estimate, median_interval, seed_interval
from omnidiff_lite.plan.parts import denoiser_config
from omnidiff_lite.provenance import provenance
from omnidiff_lite.training.launch import Expected
from omnidiff_lite.training.log import read_log
from omnidiff_lite.processes import together
from omnidiff_lite.training.trainer import train_stage

TABLE = "scaling"
WAYS = (Expected(1, "single", "cpu"), Expected(2, "ddp", "cpu"), Expected(2, "fsdp2", "cpu"))
WARM_UP = 2  # steps of each run that are not counted


def measure_scaling(preset: Preset, folder: str | Path, ways: Sequence[Expected] = WAYS, steps: int = 8,
                    rounds: int = 2, seed: int = 0) -> list[Record]:
    """Train stage 1 for a few steps in each of `ways` (the first: one process), `rounds` times over, on the CPU.

    Row "<processes> x <kind>", columns `tokens_per_second` (median over steps of all rounds), `speedup` over the first
    way, round by round (mean; its interval needs two rounds), and `loss_difference`: the largest difference of a step's
    loss from the first way's, as a share of it. `folder` is for the runs, and empty afterwards.
    """
    started, folder = time.time(), Path(folder)
    logs: dict[Expected, list[pd.DataFrame]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            shutil.rmtree(folder, ignore_errors=True)
            together(way.processes or 1, partial(_train, _short(preset, steps + WARM_UP), folder, way, seed))
            logs[way].append(read_log(folder / "log.csv"))
    shutil.rmtree(folder, ignore_errors=True)
    records = [record for way in ways for record in _records(way, logs[way], logs[ways[0]], seed)]
    return with_provenance(records, provenance(preset, seed, started, on="cpu", steps=steps, rounds=rounds,
                                               rows=preset.training.stage1.rows, length=preset.training.length))


def scaling_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per way: its figures, each with its interval and n."""
    rows: dict[str, dict[str, object]] = {}
    for record in records:
        bounds = f" ({record.reason})" if record.low is None else f" [{record.low:.4g}, {record.high:.4g}]"
        text = record.reason if record.value is None else f"{record.value:.4g}{bounds}, n = {record.n}"
        rows.setdefault(record.row, {})[record.column] = text
    return pd.DataFrame.from_dict(rows, orient="index")


def _records(way: Expected, runs: Sequence[pd.DataFrame], alone: Sequence[pd.DataFrame], seed: int) -> list[Record]:
    row = f"{way.processes} x {way.kind}"
    speeds, bases = ([run["tokens_per_second"].to_numpy()[WARM_UP:] for run in of] for of in (runs, alone))
    differences = np.concatenate([(run["loss"] / base["loss"] - 1).abs() for run, base in zip(runs, alone)])
    records = measured(TABLE, row, seed, {
        "tokens_per_second": median_interval(np.concatenate(speeds)),
        "loss_difference": Estimate(float(differences.max()), None, None, len(differences), "the most of all steps")})
    if len(runs) < 2:
        return records + [missing(TABLE, row, "speedup", "one round has no spread")]
    ratios = [np.median(speed) / np.median(base) for speed, base in zip(speeds, bases)]
    return records + measured(TABLE, row, seed, {"speedup": seed_interval(ratios)})


def _short(preset: Preset, steps: int) -> Preset:
    """Stage 1 on one synthetic task, with one checkpoint at its end."""
    stage = replace(preset.training.stage1, steps=steps, mix={"t2i": 1.0})
    return replace(preset, training=replace(preset.training, stage1=stage, checkpoint_every=steps, compile=False))


def _train(preset: Preset, folder: Path, way: Expected, seed: int) -> None:
    """One process's part of one run."""
    os.environ["ACCELERATE_USE_FSDP"] = str(way.kind in ("fsdp2", "zero2")).lower()
    os.environ["FSDP_RESHARD_AFTER_FORWARD"] = str(way.kind == "fsdp2").lower()
    torch.manual_seed(seed)
    denoiser = Denoiser(denoiser_config(preset))
    train_stage(preset, 1, denoiser, {"t2i": _made_up(preset, denoiser)}, folder, seed, progress=False, expected=way)


def _made_up(preset: Preset, denoiser: Denoiser, samples: int = 64) -> list[EncodedSample]:
    """Prompts and answers of random ids, each a quarter of a row long, the second half to be predicted."""
    rng, length = np.random.default_rng(0), preset.training.length // 4 - preset.training.max_tail_pads
    rows = rng.integers(0, min(256, denoiser.config.pad_token_id), (samples, length), dtype=np.int32)
    labels = np.where(np.arange(length) < length // 2, -100, rows).astype(np.int32)
    frames = np.zeros((0, denoiser.config.speech_dim), np.float16)
    return [EncodedSample(ids, answer, frames, "t2i") for ids, answer in zip(rows, labels)]
