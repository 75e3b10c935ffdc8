"""One training stage of the denoiser (section 3.3 of the paper): packed rows, masked, scored where masked.

Everything random follows from (seed, stage, step), so a run that was killed and resumed repeats the losses of an
unbroken one exactly. The speech encoder is frozen: its frames come with the data. Its adapter trains.

A causal denoiser (`config.is_causal`) is the autoregressive twin: same data, rows and steps, but nothing is masked and
every answer token is a target.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from tqdm import tqdm

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import Preset, StageConfig, TrainingConfig, to_dict
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import PackedRow, PackedStream, efficiency, pack_all
from omnidiff_lite.diffusion.loss import scored_positions, token_losses
from omnidiff_lite.training.batches import Batch, answer_mask, collate, derive_seed, draw_mask
from omnidiff_lite.training.checkpoint import Checkpoints
from omnidiff_lite.training.log import StepLog, read_log

FIGURES = ["loss", "learning_rate", "gradient_norm", "tokens", "scored", "efficiency", "tokens_per_second",
           "data_seconds", "seconds"]
VALIDATION = 4  # in place of a stage's number where masks are drawn
Resume = Literal[True, False, "auto"]
Datasets = dict[str, list[EncodedSample]]


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to change."""


class AnswerLoss(nn.Module):
    """The denoiser and its loss as one module, so that mixed precision and data parallelism see one call."""

    def __init__(self, denoiser: Denoiser, precision: str) -> None:
        super().__init__()
        self.denoiser, self.bf16 = denoiser, precision == "bf16"

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of every target in row-major order, float32 [targets]."""
        positions, targets = scored_positions(batch.targets)
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.denoiser(batch.input_ids, speech_frames=batch.speech_frames, segment_ids=batch.segment_ids,
                                   position_ids=batch.position_ids, logits_positions=positions).logits
        return token_losses(logits, targets)


def stage_config(preset: Preset, stage: int) -> StageConfig:
    """The settings of stage 1, 2 or 3."""
    if stage not in (1, 2, 3):
        raise TrainingError(f"stage {stage}: the paper has stages 1, 2 and 3")
    return getattr(preset.training, f"stage{stage}")


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to 0; a function of the step alone."""
    warmup = max(1, int(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def train_stage(preset: Preset, stage: int, denoiser: Denoiser, datasets: Datasets, out_dir: str | Path, seed: int = 0,
                resume: Resume = True, progress: bool = True, stop_after: int | None = None) -> pd.DataFrame:
    """Train `denoiser` in place; returns one row a step, as in `out_dir/log.csv`. Leaves it in eval mode.

    `datasets`: encoded samples by task, at least those of the stage's mix. `resume`: True goes on from the newest good
    checkpoint under `out_dir` and refuses another run's; "auto" starts afresh there; False always does. `stop_after`:
    end, with a checkpoint, after this many steps of the stage. Several processes (`accelerate launch`) share the rows.
    Raises `TrainingError`, `PackingError`, `CheckpointError`.
    """
    config, plan = preset.training, stage_config(preset, stage)
    accelerator = _accelerator(plan)
    stream = PackedStream(datasets, plan.mix, config.length, plan.rows, seed, **_packing(config, denoiser))
    checkpoints = Checkpoints(Path(out_dir) / "checkpoints", fingerprint(preset, stage, denoiser, stream))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), eps=1e-8,
                                  weight_decay=config.weight_decay, fused=True)
    module, optimizer = accelerator.prepare(AnswerLoss(denoiser, config.precision), optimizer)
    start = _resume(checkpoints, denoiser, optimizer.optimizer, resume, accelerator)
    last = min(plan.steps, stop_after or plan.steps)
    with _log(out_dir, stream, start, accelerator) as log, _compiled(denoiser, config.compile), \
            tqdm(total=plan.steps, initial=start, desc=f"stage {stage}", unit="step", mininterval=5.0,
                 disable=not (progress and accelerator.is_main_process)) as bar:
        module.train()
        trainer = _Trainer(accelerator, module, optimizer, stream, config, (seed, stage), log.seconds if log else 0.0)
        for step in range(start, last):
            figures = trainer.step(step, learning_rate(plan, step))
            if log:
                log.write(step, figures)
            bar.set_postfix_str(f"loss {figures['loss']:.3f}, {figures['tokens_per_second']:.0f} tokens/s", refresh=False)
            bar.update()
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == last:
                checkpoints.save(step + 1, denoiser, optimizer.optimizer, write=accelerator.is_main_process)
    denoiser.eval()
    accelerator.wait_for_everyone()
    return read_log(Path(out_dir) / "log.csv")


@torch.no_grad()
def validate(preset: Preset, denoiser: Denoiser, datasets: Datasets, seed: int = 0, rows: int = 8) -> pd.DataFrame:
    """Loss by task, the same masks at every call: columns task, loss, scored (tokens), samples.

    `rows`: packed rows a forward pass. The denoiser is left in eval mode.
    """
    module, device = AnswerLoss(denoiser.eval(), preset.training.precision), denoiser.device
    records = []
    for task, samples in datasets.items():
        packed = pack_all(samples, preset.training.length, seed, **_packing(preset.training, denoiser))
        scored = [_scored(row, preset.training, denoiser, (seed, VALIDATION, n)) for n, row in enumerate(packed)]
        losses = torch.cat([module(_batch(packed[i:i + rows], scored[i:i + rows], (task,), denoiser).to(device)).cpu()
                            for i in range(0, len(packed), rows)])
        records.append({"task": task, "loss": losses.mean().item(), "scored": len(losses), "samples": len(samples)})
    return pd.DataFrame(records)


class _Trainer:
    """What a step needs, and the step."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer,
                 stream: PackedStream, config: TrainingConfig, seed: tuple[int, int], seconds: float = 0.0) -> None:
        """`seconds`: of training before this call."""
        self.seconds = seconds
        self.accelerator, self.module, self.optimizer = accelerator, module, optimizer
        self.stream, self.config, self.seed = stream, config, seed
        self.denoiser = accelerator.unwrap_model(module).denoiser

    def step(self, step: int, rate: float) -> dict[str, float | None]:
        """One optimizer step; returns the figures to log."""
        # --- Data: the rows of the step, this process's share of them, and what to predict -----------------------
        begun = time.perf_counter()
        torch.manual_seed(derive_seed(*self.seed, step))
        rows = self.stream.batch(step)
        own = range(self.accelerator.process_index, len(rows), self.accelerator.num_processes)
        scored = {n: _scored(rows[n], self.config, self.denoiser, (*self.seed, step, n)) for n in own}
        size = self.config.micro_rows or len(own)
        batches = [_batch([rows[n] for n in part], [scored[n] for n in part], self.stream.tasks, self.denoiser)
                   for part in (own[i:i + size] for i in range(0, len(own), size))]
        data_seconds = time.perf_counter() - begun
        # --- Gradient: of the mean over all scored tokens of the step, whatever the micro-batch ------------------
        count = self._sum(sum(scored[n][1:].sum() for n in own)).clamp(min=1)
        sums = torch.zeros(2, len(self.stream.tasks), device=self.accelerator.device)
        for number, batch in enumerate(batches, 1):
            with contextlib.nullcontext() if number == len(batches) else self.accelerator.no_sync(self.module):
                sums += self._backward(batch.to(self.accelerator.device), self.accelerator.num_processes / count)
        # --- Update -----------------------------------------------------------------------------------------------
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        losses, counts = self._sum(sums).tolist()
        tokens, seconds = sum(row.tokens for row in rows), time.perf_counter() - begun
        self.seconds += seconds
        figures = {"loss": sum(losses) / max(1, sum(counts)), "learning_rate": rate, "gradient_norm": float(norm),
                   "tokens": tokens, "scored": int(sum(counts)), "efficiency": efficiency(rows),
                   "tokens_per_second": tokens / seconds, "data_seconds": data_seconds, "seconds": self.seconds}
        if not math.isfinite(figures["loss"] + figures["gradient_norm"]):
            raise TrainingError(f"step {step}: the loss is {figures['loss']}, the gradient's norm "
                                f"{figures['gradient_norm']}; lower the learning rate (now {rate:g}) and resume")
        return figures | {f"loss_{task}": loss / n if n else None
                          for task, loss, n in zip(self.stream.tasks, losses, counts)}

    def _backward(self, batch: Batch, scale: Tensor) -> Tensor:
        """Add the gradient of `scale` times the summed loss; returns loss and tokens by task, [2, tasks]."""
        losses = self.module(batch)
        self.accelerator.backward(losses.sum() * scale)
        tasks = batch.tasks[:, 1:][batch.targets[:, 1:] != IGNORE]
        sums = torch.zeros(2, len(self.stream.tasks), device=losses.device)
        return sums.index_add_(1, tasks, torch.stack([losses.detach(), torch.ones_like(losses)]))

    def _sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(value.to(self.accelerator.device, torch.float32), reduction="sum")


def _scored(row: PackedRow, config: TrainingConfig, denoiser: Denoiser, seed: Sequence[int]) -> Tensor:
    """The positions of a row to predict, bool [length]."""
    return answer_mask(row) if denoiser.config.is_causal else draw_mask(row, config, denoiser.config.pad_token_id, seed)


def _batch(rows: Sequence[PackedRow], scored: Sequence[Tensor], tasks: Sequence[str], denoiser: Denoiser) -> Batch:
    return collate(rows, scored, tasks, None if denoiser.config.is_causal else denoiser.config.mask_token_id)


def _packing(config: TrainingConfig, denoiser: Denoiser) -> dict[str, int]:
    return {"pad": denoiser.config.pad_token_id, "context_of_audio": denoiser.config.context_of_audio_token_id,
            "max_tail_pads": config.max_tail_pads}


def fingerprint(preset: Preset, stage: int, denoiser: Denoiser, stream: PackedStream) -> dict[str, Any]:
    """What makes a run this run: settings, data and the weights it starts from, flat and JSON-plain."""
    training = {key: value for key, value in to_dict(preset.training).items()
                if not isinstance(value, dict) and key not in ("compile", "micro_rows", "checkpoint_every")}
    plan = {key: value for key, value in to_dict(stage_config(preset, stage)).items() if key != "mix"}
    return ({"stage": stage, "seed": stream.seed, "start": _digest(t for _, t in sorted(denoiser.state_dict().items()))}
            | {f"training.{key}": value for key, value in training.items()}
            | {f"training.stage{stage}.{key}": value for key, value in plan.items()}
            | {f"mix.{task}": share for task, share in stream.shares.items()}
            | {f"data.{task}": f"{len(stream.data[task])} samples, {_digest(_arrays(stream.data[task]))}"
               for task in stream.tasks}
            | {f"denoiser.{key}": getattr(denoiser.config, key) for key in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "is_causal")})


def _arrays(samples: Sequence[EncodedSample]) -> Iterator[np.ndarray]:
    return (array for sample in samples for array in (sample.ids, sample.labels, sample.frames))


def _digest(arrays: Iterable[Tensor | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, Tensor):
            array = array.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def _accelerator(plan: StageConfig) -> Accelerator:
    """Whatever `accelerate launch` set up, checked. Mixed precision is `AnswerLoss`'s own affair."""
    accelerator = Accelerator()
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingError(f"{accelerator.distributed_type.value} keeps optimizer states that these checkpoints cannot "
                            "hold; use FSDP (accelerate config) to shard")
    if plan.rows % accelerator.num_processes:
        raise TrainingError(f"{plan.rows} rows a step do not divide among {accelerator.num_processes} processes; "
                            "change the stage's rows")
    return accelerator


def _resume(checkpoints: Checkpoints, denoiser: Denoiser, optimizer: torch.optim.Optimizer, resume: Resume,
            accelerator: Accelerator) -> int:
    """The step to begin with."""
    if resume == "auto" and not checkpoints.same_run():
        warnings.warn(f"{checkpoints.directory} holds another run: starting afresh", stacklevel=3)
        resume = False
    if resume:
        return checkpoints.load(denoiser, optimizer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoints.clear()
    accelerator.wait_for_everyone()
    return 0


@contextlib.contextmanager
def _log(out_dir: str | Path, stream: PackedStream, start: int, accelerator: Accelerator) -> Iterator[StepLog | None]:
    """The log, on the first process only."""
    log = (StepLog(out_dir, FIGURES + [f"loss_{task}" for task in stream.tasks], start)
           if accelerator.is_main_process else None)
    try:
        yield log
    finally:
        if log:
            log.close()


@contextlib.contextmanager
def _compiled(denoiser: Denoiser, wanted: bool) -> Iterator[None]:
    """The trunk compiled for the fixed shape of training rows; outside it runs as before, at any length."""
    if wanted:
        denoiser.model.forward = torch.compile(denoiser.model.forward)
    try:
        yield
    finally:
        if wanted:
            del denoiser.model.forward
