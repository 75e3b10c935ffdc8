"""Modules around the denoiser's trunk: the speech adapter, and two that the paper does not have.

The step embedding and the per-modality heads are ablation switches (`denoiser.step_embedding`,
`denoiser.output_heads`), off by default; a denoiser without them has none of their weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from omnidiff_lite.backbone import DenoiserConfig

NO_ANSWER = -1.0  # masked share of tokens outside any answer
WAVES = 16  # frequencies of the step embedding
FASTEST, SLOWEST = 1000.0, 0.1  # radians the first and the last frequency turn through as the share goes from 0 to 1


class SpeechAdapter(nn.Module):
    """Speech frames [.., speech_dim] -> embeddings [.., hidden_size] (resampler_projector.py:12-23)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(config.speech_dim)
        self.mlp = nn.Sequential(nn.Linear(config.speech_dim, config.hidden_size, bias=False), nn.GELU(),
                                 nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def forward(self, frames: Tensor) -> Tensor:
        return self.mlp(self.pre_proj_layernorm(frames.to(self.mlp[0].weight.dtype)))


class StepEmbedding(nn.Module):
    """The noise level of each answer token: masked share [..] in 0..1 -> [.., hidden_size]; 0 outside answers.

    The paper has none: a sequence's mask tokens already show how noisy it is. The level is the share of the answer's
    tokens that are masked, not the t it was drawn from: a decoder knows the share but has no t. 32 sinusoids
    (Vaswani et al., 2017, section 3.5) and a small MLP, as in DiT (Peebles and Xie, 2023, section 3.2):
    32 H + H^2 parameters at hidden width H.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * WAVES, config.hidden_size, bias=False), nn.SiLU(),
                                 nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def forward(self, masked_share: Tensor) -> Tensor:
        steps = torch.linspace(math.log(FASTEST), math.log(SLOWEST), WAVES, device=masked_share.device)
        angles = masked_share.float()[..., None] * steps.exp()
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.mlp[0].weight.dtype)
        return self.mlp(waves) * (masked_share != NO_ANSWER)[..., None]


class ModalityHeads(nn.Module):
    """The output matrix, behind a separate residual MLP for each modality's range of ids.

    Hidden states [.., H] -> logits [.., V]. An output matrix has one row per id, so splitting it into one matrix per
    modality changes nothing, and a linear layer in front of one range's rows could be multiplied into them. What a
    head can add is a nonlinear layer: h + W2 silu(W1 h), with H/2 units between. 3 H^2 parameters for text and special
    ids, speech, image.
    """

    def __init__(self, head: nn.Linear, config: DenoiserConfig) -> None:
        """`head` is the matrix that all share; `config.head_starts` says where the ranges begin."""
        super().__init__()
        self.shared = head
        self.sizes = [b - a for a, b in zip([0, *config.head_starts], [*config.head_starts, config.vocab_size])]
        self.adapters = nn.ModuleList(_bottleneck(config.hidden_size) for _ in self.sizes)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([F.linear(hidden + adapter(hidden), rows)
                          for adapter, rows in zip(self.adapters, self.shared.weight.split(self.sizes))], dim=-1)


def _bottleneck(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width // 2, bias=False), nn.SiLU(), nn.Linear(width // 2, width, bias=False))
