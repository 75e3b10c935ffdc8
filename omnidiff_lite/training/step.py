"""One training step: rows, masks, loss where masked, gradient, update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import StageConfig, TrainingConfig
from omnidiff_lite.diffusion.loss import scored_positions, token_losses
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.batches import Batch, choose_scored, collate, derive_seed, time_weights
from omnidiff_lite.training.engine import engine_of
from omnidiff_lite.training.feed import Feed


class TrainingError(RuntimeError):
    """A run that cannot continue; the message says why and what to change."""


class AnswerLoss(nn.Module):
    """The denoiser and its loss as one module, so that mixed precision and data parallelism see one call."""

    def __init__(self, denoiser: Denoiser, precision: str) -> None:
        super().__init__()
        self.denoiser, self.precision = denoiser, precision

    def forward(self, batch: Batch) -> Tensor:
        """Cross-entropy of every target in row-major order, float32 [targets]."""
        positions, targets = scored_positions(batch.targets)
        bf16 = matrix_dtype(self.precision, targets.device) is torch.bfloat16
        with torch.autocast(targets.device.type, torch.bfloat16, enabled=bf16):
            logits = self.denoiser(batch.input_ids, speech_frames=batch.speech_frames, segment_ids=batch.segment_ids,
                                   position_ids=batch.position_ids, logits_positions=positions,
                                   masked_share=batch.masked_share).logits
        return token_losses(logits, targets)


class Stepper:
    """One optimizer step after another, each determined by its number alone."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
                 feed: Feed, config: TrainingConfig, plan: StageConfig, seed: tuple[int, int],
                 seconds: float = 0.0) -> None:
        """`module`, `optimizers`: as prepared by `accelerator`. `seconds`: training time before this call."""
        self.seconds, self.accelerator, self.module = seconds, accelerator, module
        self.engine = engine_of(accelerator, module, optimizers, config.clip)
        self.feed, self.config, self.plan, self.seed = feed, config, plan, seed
        self.denoiser = accelerator.unwrap_model(module).denoiser.config

    def step(self, step: int, rate: float) -> dict[str, float | None]:
        """One optimizer step; returns the figures to log."""
        # --- Data: the rows of the step, this process's share of them, and what to predict -----------------------
        begun = time.perf_counter()
        torch.manual_seed(derive_seed(*self.seed, step))
        own = self.feed.own
        rows = dict(zip(own, self.feed.rows(step), strict=True))
        scored, factors = ({n: chosen(rows[n], self.config, self.denoiser, (*self.seed, step, n)) for n in own}
                           for chosen in (choose_scored, time_weights))
        size = self.config.micro_rows or len(own)
        batches = [collate([rows[n] for n in part], [scored[n] for n in part], self.feed.tasks, self.denoiser,
                           self.plan.evenness, [factors[n] for n in part], self.plan.weights)
                   for part in (own[i:i + size] for i in range(0, len(own), size))]
        data_seconds = time.perf_counter() - begun
        # --- Gradient: of the weighted mean over all tokens of the step, whatever the micro-batch ----------------
        weight = self._sum(sum(self._tokens(batch) for batch in batches)).clamp(min=1e-9)
        sums = torch.zeros(2, len(self.feed.tasks), device=self.accelerator.device)
        for number, batch in enumerate(batches, 1):
            with self.engine.averaging(last=number == len(batches)):
                sums += self._backward(batch.to(self.accelerator.device), self.accelerator.num_processes / weight)
        # --- Update, unless a value is not finite: the weights stay good -----------------------------------------
        losses, counts = self._sum(sums).tolist()
        self._refuse_no_number(step, rate, "loss", losses)
        norm = self.engine.update(rate, lambda norm: self._refuse_no_number(step, rate, "gradient's norm", [norm]))
        tokens = int(self._sum(torch.tensor(sum(row.tokens for row in rows.values()))))
        positions = self.feed.rows_a_step * self.config.length
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        figures = {"loss": sum(losses) / max(1, sum(counts)), "learning_rate": rate, "gradient_norm": norm,
                   "tokens": tokens, "scored": int(sum(counts)), "efficiency": tokens / positions,
                   "tokens_per_second": tokens / seconds, "data_seconds": data_seconds,
                   "data_share": data_seconds / seconds, "seconds": self.seconds}
        return figures | {f"loss_{task}": loss / n if n else None
                          for task, loss, n in zip(self.feed.tasks, losses, counts)}

    def _refuse_no_number(self, step: int, rate: float, what: str, values: Sequence[float]) -> None:
        """`values`: the loss by task, or the norm; the same on all processes, as they cover all of them."""
        if not math.isfinite(sum(values)):
            tasks = [task for task, loss in zip(self.feed.tasks, values) if what == "loss" and not math.isfinite(loss)]
            raise TrainingError(
                f"step {step}: the {what} is {sum(values)}{' (' + ', '.join(tasks) + ')' if tasks else ''}; nothing "
                "was updated. The same command goes on from the last checkpoint; where it comes again, start afresh "
                f"(--fresh, or resume=False) with a lower learning rate (here {rate:g})")

    def _backward(self, batch: Batch, scale: Tensor) -> Tensor:
        """Add the gradient of `scale` times the summed, weighted loss; returns loss and tokens by task, [2, tasks]."""
        losses = self.module(batch)
        self.engine.backward((losses * target_weights(batch)).sum() * scale)
        tasks = batch.tasks[:, 1:][batch.targets[:, 1:] != IGNORE]
        sums = torch.zeros(2, len(self.feed.tasks), device=losses.device)
        return sums.index_add_(1, tasks, torch.stack([losses.detach(), torch.ones_like(losses)]))

    def _tokens(self, batch: Batch) -> Tensor:
        """What the weighted losses are divided by: the weight of the scored tokens (the released code's mean); for the
        bound, that of all answer tokens, which the scored ones stand for."""
        return batch.weights.sum() if self.config.loss_weight == "bound" else target_weights(batch).sum()

    def _sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(value.to(self.accelerator.device, torch.float32), reduction="sum")


def target_weights(batch: Batch) -> Tensor:
    """The weight of each target, in the order of `AnswerLoss`."""
    return (batch.weights * batch.time_weights)[:, 1:][batch.targets[:, 1:] != IGNORE]
