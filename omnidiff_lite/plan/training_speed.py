"""How fast a stage trained, against the least time its steps could take: a bare forward and backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import Preset
from omnidiff_lite.data.packing import PackedRow
from omnidiff_lite.plan.compute import flops
from omnidiff_lite.measure import seconds_of
from omnidiff_lite.plan.device import device_name, measure_rates
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.batches import choose_scored, collate
from omnidiff_lite.processes import threads, usable
from omnidiff_lite.training.step import AnswerLoss
from omnidiff_lite.training.trainer import prepared


@dataclass(frozen=True)
class TrainingSpeed:
    """Medians over the `steps` of one run, for the bare pass over `repeats`; times in seconds per step."""

    tokens_per_second: float  # of samples; padding is not counted
    step: float
    data: float  # packing, masking and stacking
    bare: float  # forward and backward on one fixed batch, nothing else
    flops: float  # of forward and backward
    peak: float  # FLOP per second of a large matrix product in the run's precision, measured here
    dtype: str  # that precision
    device: str
    steps: int
    repeats: int

    def table(self) -> pd.DataFrame:
        """Where a step's time goes: columns part, ms, share (of the step). A bare pass that is slower now than in the
        run leaves 0 for the rest."""
        parts = {"data": self.data, "forward and backward": self.bare,
                 "update, log, unlike batches": max(0.0, self.step - self.data - self.bare), "step": self.step}
        return pd.DataFrame([{"part": part, "ms": round(1e3 * seconds, 1), "share": f"{seconds / self.step:.0%}"}
                             for part, seconds in parts.items()])

    def __str__(self) -> str:
        return (f"{self.tokens_per_second:.0f} tokens/s on {self.device}; "
                f"{self.bare / self.step:.0%} of the bare pass; "
                f"{self.flops / self.step / 1e9:.0f} GFLOP/s, {self.flops / self.step / self.peak:.0%} of a large "
                f"{self.dtype} product's {self.peak / 1e9:.0f}; "
                f"medians of {self.steps} steps, of the bare pass {self.repeats}")


def training_speed(preset: Preset, denoiser: Denoiser, rows: Sequence[PackedRow], tasks: Sequence[str],
                   log: pd.DataFrame, repeats: int = 9) -> TrainingSpeed:
    """Measure the bare pass on `rows`, one step's own, beside the steps of `log` (a stage's log.csv).

    As in training, `training.micro_rows` rows are passed at a time, and their gradients add up. Where several processes
    share a CPU, the bare pass is one process's share of the rows on its share of the threads, the others idle, and the
    peak is that of its threads times the number of processes. Model, precision and compilation are as in training, on
    this machine now: compare with a log from the same machine when idle. The denoiser's gradients are dropped and its
    weights left alone.
    """
    config, device, processes = preset.training, denoiser.device, usable(preset.training.processes)
    rows = rows[::processes]
    scored = [choose_scored(row, config, denoiser.config, (0, number)) for number, row in enumerate(rows)]
    size = config.micro_rows or len(rows)
    batches = [collate(rows[i:i + size], scored[i:i + size], tasks, denoiser.config).to(device)
               for i in range(0, len(rows), size)]
    module = AnswerLoss(denoiser, config.precision)

    def bare_pass() -> None:
        for batch in batches:
            module(batch).sum().backward()

    dtype = matrix_dtype(config.precision, device)
    with prepared(denoiser, config), threads(max(1, torch.get_num_threads() // processes)):
        passes = seconds_of(bare_pass, device, repeats + 2)[2:]  # the first two warm up
        peak = measure_rates(device, dtype).matmul.value * processes
    denoiser.zero_grad(set_to_none=True)
    work = flops(denoiser.config, len(rows), config.length, float(sum(s.sum() for s in scored)),
                 sum(len(row.frames) for row in rows))
    seconds = log["seconds"].diff().median()
    return TrainingSpeed(float(log["tokens_per_second"].median()), float(seconds), float(log["data_seconds"].median()),
                         float(pd.Series(passes).median()), work.training * processes, peak,
                         str(dtype).removeprefix("torch."), device_name(device), len(log), repeats)
