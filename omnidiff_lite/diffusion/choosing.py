"""Which masked positions a step fixes: the most confident, as many as scheduled, and any others confident enough."""

from __future__ import annotations

import torch
from torch import Tensor

from omnidiff_lite.diffusion.schedule import Step
from omnidiff_lite.diffusion.settings import DecodingConfig


def choose(sure: Tensor, inside: Tensor, step: Step, config: DecodingConfig, generator: torch.Generator,
           entropy: Tensor | None = None) -> Tensor:
    """The indices of the rows [M] of one sequence that are fixed in this step.

    `sure` [M]: confidences. `inside` bool [M]: in the step's block. `entropy` [M], needed for an entropy bound.
    """
    sure = sure.masked_fill(~inside, -torch.inf)
    count = step.count(int(inside.sum()))
    if config.threshold is not None:
        count = max(count, int((sure >= config.threshold).sum()))
    if config.entropy_bound is not None:
        count = max(count, bounded(sure[inside], entropy[inside], config.entropy_bound))
    if config.confidence_temperature > 0:  # Gumbel top-k = k draws without replacement
        noise = -torch.empty_like(sure).exponential_(generator=generator).log()
        sure = sure / config.confidence_temperature + noise
    # A block shortened by a pre-filled token may be done before its last step; the step then fixes a token of a
    # later block, as in the release.
    return sure.topk(min(count, len(sure))).indices


def bounded(sure: Tensor, entropy: Tensor, bound: float) -> int:
    """How many of the most confident rows may be fixed together (EB-sampler, arXiv 2505.24857).

    Fixing several at once treats them as independent. The error is at most the sum of their entropies without the
    largest, in nats: as many are taken as keep it within `bound`. The most confident row alone always does.
    """
    ordered = entropy[sure.argsort(descending=True, stable=True)].clamp_min(0)
    return int((ordered.cumsum(0) - ordered.cummax(0).values <= bound).long().cumprod(0).sum())
