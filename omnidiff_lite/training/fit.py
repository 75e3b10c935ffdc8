"""The loop that trains a tokenizer or a judge: warm-up and cosine, clipping, AdamW or Muon, bfloat16 autocast."""

from __future__ import annotations

import time
from typing import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from omnidiff_lite.config import Budget
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.optimizers import make_optimizers

Loss = Callable[[int], tuple[Tensor, dict[str, float]]]


def fit(module: nn.Module, loss: Loss, budget: Budget, *, name: str, seed: int = 0,
        clip: float = 1.0, progress: bool = True) -> pd.DataFrame:
    """Train `module` in place for `budget.steps` steps; leaves it in eval mode.

    `loss(step)` builds that step's batch (from the step alone, so that a run is repeatable) and returns the loss and
    the figures to log. Returns one row per step: step, loss, seconds, learning_rate and those figures.
    `budget.precision`: "bf16" runs `loss` under autocast if the device multiplies bfloat16. Trains on a GPU if there is
    one, and moves the module back to its device.
    """
    torch.manual_seed(seed)
    home = next(module.parameters()).device
    device = "cuda" if torch.cuda.is_available() else home.type
    module.to(device)
    optimizers = make_optimizers(module, budget.optimizer, budget.learning_rate, budget.weight_decay)
    schedules = [get_cosine_schedule_with_warmup(optimizer, max(1, int(budget.warmup * budget.steps)), budget.steps)
                 for optimizer in optimizers]
    module.train()
    bf16 = matrix_dtype(budget.precision, device) is torch.bfloat16
    rows, start = [], time.perf_counter()
    bar = tqdm(range(budget.steps), desc=name, disable=not progress, mininterval=5.0)
    for step in bar:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value, figures = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        rows.append({"step": step, "loss": value.item(), "seconds": time.perf_counter() - start,
                     "learning_rate": schedules[0].get_last_lr()[0], **figures})
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", refresh=False)
    module.to(home).eval()
    return pd.DataFrame(rows)
