"""What a key-value cache costs: how far its answers drift from those without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.decoding import decode, start
from omnidiff_lite.diffusion.settings import DecodingConfig


@dataclass
class Drift:
    """`tokens`: share of decided tokens that came out differently. `logits`: the largest difference between a logit and
    that of a full pass over the same canvas; `typical`: the mean over passes of their largest difference."""

    tokens: float
    logits: float
    typical: float


@torch.no_grad()
def drift(model: Denoiser, prompt_ids: Any, config: DecodingConfig, **call: Any) -> Drift:
    """Decode with `config.cache`, also running each pass in full, then once more without it; `call` as for `decode`.

    Raises `ConfigError` if the settings have no cache.
    """
    if config.cache == "none":
        raise ConfigError("drift compares a cache with none: set cache to 'prefix' or 'dual'")
    gaps: list[float] = []

    def compare(cached: Tensor, full: Tensor) -> None:
        gaps.append(float((model.lm_head(cached) - model.lm_head(full)).abs().max()))

    decoder = start(model, prompt_ids, config, **call)
    decoder.layout.probe = compare
    near, exact = decoder.run(), decode(model, prompt_ids, config.replace(cache="none"), **call)
    drawn = exact.decided >= 0
    share = (near.ids != exact.ids)[drawn].float().mean() if drawn.any() else torch.zeros(())
    return Drift(float(share), max(gaps, default=0.0), sum(gaps) / max(len(gaps), 1))
