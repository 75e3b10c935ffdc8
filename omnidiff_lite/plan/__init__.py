"""What a preset costs before anything is bought: parameters, GPU memory, FLOPs, days, disk (`omnidiff plan`).

    plan = make_plan(load_preset("full"), gpus=8, gpu_memory=80)
    plan.memory          # a pandas table; also .parts, .stages, .disk, .assumptions
    print(plan.report())

Parameters are counted on modules without memory; memory and FLOPs follow formulas that the tests check against
measured runs; tokens follow the paper's table 4 and the assumptions of `plan.data`. What an answer costs is timed by
`plan.timing.bench`, beside the floor of `plan.floor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from omnidiff_lite.config import Preset
from omnidiff_lite.plan.compute import Flops, StageWork, flops, most_scored, stage_work
from omnidiff_lite.plan.data import TABLE_4, assumptions, disk
from omnidiff_lite.plan.memory import (
    GIB, Activations, Memory, Strategy, activations, largest_micro_batch, memory, usable)
from omnidiff_lite.plan.parts import Part, PlanError, denoiser_config, denoiser_parameters, parts
from omnidiff_lite.training.checkpoint import KEEP
from omnidiff_lite.training.trainer import stage_config

__all__ = ["Activations", "Flops", "Memory", "Part", "Plan", "PlanError", "StageWork", "activations", "assumptions",
           "denoiser_config", "denoiser_parameters", "flops", "largest_micro_batch", "make_plan", "memory", "parts",
           "stage_work", "usable"]

STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp2", "zero2")
SHARES = ("weights", "gradients", "optimizer", "working", "activations", "total")


@dataclass(frozen=True)
class Plan:
    """Five tables and what they were made for."""

    preset: str
    gpus: int
    gpu_memory: float  # GiB
    flops_per_second: float  # of all GPUs, at the stated utilisation
    row_length: int
    parts: pd.DataFrame
    memory: pd.DataFrame  # GiB; one row per strategy, with and without recomputation
    stages: pd.DataFrame
    disk: pd.DataFrame  # GB, by task
    assumptions: pd.DataFrame

    def report(self, with_assumptions: bool = False) -> str:
        """The tables as text, none wider than 120 characters."""
        sections = [
            (f"Parameters of {self.preset!r}", self.parts),
            (f"GiB of each of {self.gpus} GPUs, one packed row of {self.row_length} tokens at a time; and the largest "
             f"micro batch\nthat fits {usable(self.gpu_memory) / GIB:.0f} of {self.gpu_memory:g} GiB (- = none)",
             self.memory),
            (f"Work at {self.flops_per_second / 1e15:.2f} PFLOP/s over all GPUs: one pass over the paper's table 4, "
             "and the preset's own steps", self.stages),
            ("Disk, GB: the data as published, and as the ids and speech frames of omnidiff tokenize", self.disk)]
        if with_assumptions:
            sections.append(("Assumptions: the paper states none of these", self.assumptions))
        text = "\n\n".join(f"{title}\n{_text(table)}" for title, table in sections)
        return text + ("" if with_assumptions else "\n\nTokens, days and disk rest on lengths, rates and file sizes "
                       "that the paper does not state: --assumptions lists them.")


def make_plan(preset: Preset, gpus: int = 8, gpu_memory: float = 80, mfu: float = 0.4, gpu_tflops: float = 990) -> Plan:
    """Plan a preset's training on `gpus` GPUs of `gpu_memory` GiB.

    `gpu_tflops`: peak of one GPU in dense bfloat16 (an H100 SXM: 990). `mfu`: model FLOPs utilisation, 0..1.
    Raises `PlanError` for impossible values.
    """
    for name, value in (("--gpus", gpus), ("--gpu-memory", gpu_memory), ("--gpu-tflops", gpu_tflops)):
        if not value > 0 or math.isinf(value):
            raise PlanError(f"{name} {value:g}: give a number above 0")
    if not 0 < mfu <= 1:
        raise PlanError(f"--mfu {mfu:g}: utilisation is above 0 and at most 1; 0.3 to 0.5 is usual")
    rate = gpus * gpu_tflops * 1e12 * mfu
    counted = parts(preset)
    return Plan(preset.name, gpus, gpu_memory, rate, preset.training.length, _parts_table(counted),
                _memory_table(preset, gpus, gpu_memory), _stages_table(preset, rate), _disk_table(preset, counted),
                assumptions())


def _parts_table(counted: list[Part]) -> pd.DataFrame:
    rows = [{"part": part.name, "tensors": part.tensors, "parameters": part.parameters,
             "GiB in bfloat16": 2 * part.parameters / GIB, "trained": "yes" if part.trained else "no"}
            for part in counted]
    whole = {"part": "all", "tensors": sum(part.tensors for part in counted), "trained": "",
             "parameters": sum(part.parameters for part in counted)}
    return pd.DataFrame([*rows, whole | {"GiB in bfloat16": 2 * whole["parameters"] / GIB}])


def _memory_table(preset: Preset, gpus: int, gpu_memory: float) -> pd.DataFrame:
    config, length, scored = denoiser_config(preset), preset.training.length, most_scored(preset)
    per_step = math.gcd(*(stage_config(preset, stage).rows for stage in (1, 2, 3)))
    table = []
    for strategy in STRATEGIES:
        for recompute in (False, True):
            one = memory(config, strategy, gpus, 1, length, scored, recompute)
            best = largest_micro_batch(config, strategy, gpus, gpu_memory, per_step, length, scored, recompute)
            table.append({"strategy": strategy, "recompute": "yes" if recompute else "no"}
                         | {share: getattr(one, share) / GIB for share in SHARES}
                         | {"micro batch": best.rows if best else "-",
                            "its total": best.total / GIB if best else float("nan")})
    return pd.DataFrame(table)


def _stages_table(preset: Preset, rate: float) -> pd.DataFrame:
    works = [stage_work(preset, stage, rate) for stage in (1, 2, 3)]
    table = [{"stage": str(w.stage), "M samples": w.data.samples / 1e6, "G tokens": w.data.tokens / 1e9,
              "rows filled": w.efficiency, "k steps": w.data.steps / 1e3, "ZFLOP": w.data.flops / 1e21,
              "days": w.data.days, "own k steps": w.planned.steps / 1e3, "own G tokens": w.planned.tokens / 1e9,
              "own ZFLOP": w.planned.flops / 1e21, "own days": w.planned.days} for w in works]
    sums = {key: sum(row[key] for row in table) for key in table[0] if key not in ("stage", "rows filled", "M samples")}
    return pd.DataFrame([*table, {"stage": "all", **sums}])


def _disk_table(preset: Preset, counted: list[Part]) -> pd.DataFrame:
    table = pd.DataFrame([{"what": source.task, **{key: getattr(disk(preset, source), key) / 1e9
                                                   for key in ("raw", "encoded")}} for source in TABLE_4])
    table = table.groupby("what", sort=False, as_index=False).sum()
    trained = sum(part.parameters for part in counted if part.trained)
    # Weights and two moments in float32; while one checkpoint is written, `KEEP` older ones still exist.
    table.loc[len(table)] = [f"checkpoints, {KEEP} and one being written", 0.0, (KEEP + 1) * 12 * trained / 1e9]
    table.loc[len(table)] = ["all", table["raw"].sum(), table["encoded"].sum()]
    return table.rename(columns={"encoded": "written by the kit"})


def _text(table: pd.DataFrame) -> str:
    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" \
            if abs(value) < 1 else f"{value:.1f}"

    shown = table.copy()
    for column in shown:
        shown[column] = [number(v) if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
                         for v in shown[column].tolist()]
    return shown.to_string(index=False)
