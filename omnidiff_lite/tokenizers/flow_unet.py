"""The velocity estimator of the flow decoder: a 1-D U-Net over mel frames with transformer blocks.

Module names are those of the released `flow.pt` below `decoder.estimator` (Matcha-TTS `decoder.py` and diffusers'
`BasicTransformerBlock`, as configured there). All frames of a batch are real: sequences are never padded, so that
the group norms see the same statistics in a batch as alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidiff_lite.config import FlowConfig

NORM_GROUPS = 8


class TimeEmbedding(nn.Module):
    """Flow time [B] in 0..1 -> [B, hidden]: sines and cosines of 1000 t, then two linear layers with SiLU."""

    def __init__(self, sinusoids: int, hidden: int):
        super().__init__()
        self.sinusoids = sinusoids
        self.linear_1 = nn.Linear(sinusoids, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, t: Tensor) -> Tensor:
        half = self.sinusoids // 2
        frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / (half - 1)))
        angle = 1000.0 * t[:, None] * frequency
        waves = torch.cat((angle.sin(), angle.cos()), dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


class ConvBlock(nn.Module):
    """Convolution of 3 frames, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(NORM_GROUPS, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks with the flow time added between them."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time, outputs))
        self.block1 = ConvBlock(inputs, outputs)
        self.block2 = ConvBlock(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.block1(x) + self.mlp(time)[..., None]
        return self.block2(h) + self.res_conv(x)


class Attention(nn.Module):
    """Full self-attention over frames; queries, keys and values without bias."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_k = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_v = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for projection in (self.to_q, self.to_k, self.to_v))
        y = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(y.transpose(1, 2).flatten(2))


class GeluProjection(nn.Module):
    """Linear and exact GELU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Four times wider inside; `net.1` was a dropout, and only its index remains."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GeluProjection(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward over [B, T, dim]; no `norm2`, as there is no cross-attention."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, head_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        return x + self.ff(self.norm3(x))


class Resample(nn.Module):
    """Halves (`nn.Conv1d`) or doubles (`nn.ConvTranspose1d`) the number of frames."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Estimator(nn.Module):
    """Velocity of the flow at noisy mel x and time t, given mu, the speaker and the prompt.

    Stages are lists (residual block, transformer blocks[, resampling]), numbered as in the release. The number of
    frames is halved after every stage on the way down except the last, and doubled likewise on the way up.
    """

    def __init__(self, config: FlowConfig):
        super().__init__()
        channels, inputs = config.channels, 4 * config.mels
        time = 4 * channels[0]
        self.time_mlp = TimeEmbedding(inputs, time)

        def stage(inputs: int, outputs: int, *resampling: nn.Module) -> nn.ModuleList:
            blocks = [TransformerBlock(outputs, config.unet_heads, config.unet_head_dim)
                      for _ in range(config.unet_blocks)]
            return nn.ModuleList([ResidualBlock(inputs, outputs, time), nn.ModuleList(blocks), *resampling])

        def same(width: int) -> nn.Module:
            return nn.Conv1d(width, width, 3, padding=1)

        def half(width: int) -> nn.Module:
            return Resample(nn.Conv1d(width, width, 3, stride=2, padding=1))

        def double(width: int) -> nn.Module:
            return Resample(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1))

        last = len(channels) - 1
        self.down_blocks = nn.ModuleList(
            stage(before, width, same(width) if i == last else half(width))
            for i, (before, width) in enumerate(zip((inputs, *channels), channels)))
        self.mid_blocks = nn.ModuleList(stage(channels[-1], channels[-1]) for _ in range(config.unet_mid_blocks))
        rising = (*channels[::-1], channels[0])
        self.up_blocks = nn.ModuleList(
            stage(2 * rising[i], rising[i + 1], same(rising[i + 1]) if i == last else double(rising[i + 1]))
            for i in range(len(channels)))
        self.final_block = ConvBlock(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], config.mels, 1)

    def forward(self, x: Tensor, t: Tensor, mu: Tensor, speaker: Tensor, prompt: Tensor) -> Tensor:
        """x, mu, prompt [B, mels, T], t [B] in 0..1, speaker [B, mels] -> velocity [B, mels, T]."""
        time = self.time_mlp(t)
        x = torch.cat((x, mu, speaker[..., None].expand_as(x), prompt), dim=1)
        skips: list[Tensor] = []
        for stage in self.down_blocks:
            x = _run(stage, x, time)
            skips.append(x)
            x = stage[2](x)
        for stage in self.mid_blocks:
            x = _run(stage, x, time)
        for stage in self.up_blocks:
            skip = skips.pop()
            x = torch.cat((x[..., :skip.shape[-1]], skip), dim=1)  # an odd length comes back one frame longer
            x = stage[2](_run(stage, x, time))
        return self.final_proj(self.final_block(x))


def _run(stage: nn.ModuleList, x: Tensor, time: Tensor) -> Tensor:
    x = stage[0](x, time).transpose(1, 2)
    for block in stage[1]:
        x = block(x)
    return x.transpose(1, 2)
