"""One training step: rows, masks, loss where masked, gradient, update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import TrainingConfig
from omnidiff_lite.diffusion.loss import scored_positions, token_losses
from omnidiff_lite.training.batches import Batch, choose_scored, collate, derive_seed
from omnidiff_lite.training.feed import Feed


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


class Stepper:
    """One optimizer step after the other, each from its number alone."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
                 feed: Feed, config: TrainingConfig, evenness: float, seed: tuple[int, int],
                 seconds: float = 0.0) -> None:
        """`module`, `optimizers`: as prepared by `accelerator`. `seconds`: of training before this call."""
        self.seconds = seconds
        self.accelerator, self.module, self.optimizers = accelerator, module, optimizers
        self.feed, self.config, self.evenness, self.seed = feed, config, evenness, seed
        self.denoiser = accelerator.unwrap_model(module).denoiser.config

    def step(self, step: int, rate: float) -> dict[str, float | None]:
        """One optimizer step; returns the figures to log."""
        # --- Data: the rows of the step, this process's share of them, and what to predict -----------------------
        begun = time.perf_counter()
        torch.manual_seed(derive_seed(*self.seed, step))
        own = self.feed.own
        rows = dict(zip(own, self.feed.rows(step), strict=True))
        scored = {n: choose_scored(rows[n], self.config, self.denoiser, (*self.seed, step, n)) for n in own}
        size = self.config.micro_rows or len(own)
        batches = [collate([rows[n] for n in part], [scored[n] for n in part], self.feed.tasks, self.denoiser,
                           self.evenness)
                   for part in (own[i:i + size] for i in range(0, len(own), size))]
        data_seconds = time.perf_counter() - begun
        # --- Gradient: of the weighted mean over all scored tokens of the step, whatever the micro-batch ---------
        weight = self._sum(sum(target_weights(batch).sum() for batch in batches)).clamp(min=1e-9)
        sums = torch.zeros(2, len(self.feed.tasks), device=self.accelerator.device)
        for number, batch in enumerate(batches, 1):
            with contextlib.nullcontext() if number == len(batches) else self.accelerator.no_sync(self.module):
                sums += self._backward(batch.to(self.accelerator.device), self.accelerator.num_processes / weight)
        # --- Update -----------------------------------------------------------------------------------------------
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses, counts = self._sum(sums).tolist()
        tokens = int(self._sum(torch.tensor(sum(row.tokens for row in rows.values()))))
        positions = self.feed.rows_a_step * self.config.length
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        figures = {"loss": sum(losses) / max(1, sum(counts)), "learning_rate": rate, "gradient_norm": float(norm),
                   "tokens": tokens, "scored": int(sum(counts)), "efficiency": tokens / positions,
                   "tokens_per_second": tokens / seconds, "data_seconds": data_seconds,
                   "data_share": data_seconds / seconds, "seconds": self.seconds}
        if not math.isfinite(figures["loss"] + figures["gradient_norm"]):
            raise TrainingError(f"step {step}: the loss is {figures['loss']}, the gradient's norm "
                                f"{figures['gradient_norm']}; start afresh (--fresh, or resume=False) with a lower "
                                f"learning rate (here {rate:g})")
        return figures | {f"loss_{task}": loss / n if n else None
                          for task, loss, n in zip(self.feed.tasks, losses, counts)}

    def _backward(self, batch: Batch, scale: Tensor) -> Tensor:
        """Add the gradient of `scale` times the summed, weighted loss; returns loss and tokens by task, [2, tasks]."""
        losses = self.module(batch)
        self.accelerator.backward((losses * target_weights(batch)).sum() * scale)
        tasks = batch.tasks[:, 1:][batch.targets[:, 1:] != IGNORE]
        sums = torch.zeros(2, len(self.feed.tasks), device=losses.device)
        return sums.index_add_(1, tasks, torch.stack([losses.detach(), torch.ones_like(losses)]))

    def _sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(value.to(self.accelerator.device, torch.float32), reduction="sum")


def target_weights(batch: Batch) -> Tensor:
    """The weight of each target, in the order of `AnswerLoss`."""
    return batch.weights[:, 1:][batch.targets[:, 1:] != IGNORE]
