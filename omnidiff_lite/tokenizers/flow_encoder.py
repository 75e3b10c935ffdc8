"""The token side of the flow decoder: ESPnet's relative-position encoder with a block mask, and the length regulator.

Module names are those of the released `flow.pt` (`encoder.*`, `length_regulator.*`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidiff_lite.config import FlowConfig


def block_mask(length: int, block: int, device: torch.device | None = None) -> Tensor:
    """Bool [length, length], true where a query (row) may attend: everything before it, and its whole own block."""
    position = torch.arange(length, device=device)
    block_end = (position // block + 1) * block
    return position[None, :] < block_end[:, None]


def relative_sinusoids(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """[2 length - 1, dim]: row r encodes the offset (query - key) length - 1 - r; even columns sines, odd cosines."""
    offset = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    frequency = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000.0) / dim))
    angle = offset[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


class RelativeAttention(nn.Module):
    """Self-attention with Transformer-XL positions: score = ((q + u) k + (q + v) p[offset]) / sqrt(head)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, dim // heads))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, dim], positions [2L - 1, dim], mask bool [L, L] (true = visible) -> [B, L, dim]."""
        length = x.shape[1]
        query, key, value, place = (self._split(t) for t in (
            self.linear_q(x), self.linear_k(x), self.linear_v(x), self.linear_pos(positions)[None]))
        by_offset = (query + self.pos_bias_v[:, None]) @ place.mT  # [B, H, L, 2L - 1]
        step = torch.arange(length, device=x.device)
        row = (length - 1 - step[:, None] + step).expand(*by_offset.shape[:2], -1, -1)
        bias = by_offset.gather(-1, row) / math.sqrt(query.shape[-1])
        bias = bias.masked_fill(~mask, float("-inf"))
        y = F.scaled_dot_product_attention(query + self.pos_bias_u[:, None], key, value, attn_mask=bias)
        return self.linear_out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w_1 = nn.Linear(dim, hidden)
        self.w_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, dim: int, heads: int, ffn: int):
        super().__init__()
        self.norm_mha = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = RelativeAttention(dim, heads)
        self.norm_ff = nn.LayerNorm(dim, eps=1e-5)
        self.feed_forward = FeedForward(dim, ffn)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        return x + self.feed_forward(self.norm_ff(x))


class InputProjection(nn.Module):
    """Linear and LayerNorm, as `embed.out.0` and `embed.out.1`."""

    def __init__(self, dim: int):
        super().__init__()
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class BlockEncoder(nn.Module):
    """Token embeddings [B, n, dim] -> hidden states [B, n, dim]; a token sees the past and its own block of tokens."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.block = config.block
        self.embed = InputProjection(config.dim)
        self.encoders = nn.ModuleList(EncoderBlock(config.dim, config.heads, config.ffn) for _ in range(config.blocks))
        self.after_norm = nn.LayerNorm(config.dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        length, dim = x.shape[1:]
        positions = relative_sinusoids(length, dim, x.device).to(x.dtype)
        mask = block_mask(length, self.block, x.device)
        x = self.embed(x) * math.sqrt(dim)
        for block in self.encoders:
            x = block(x, positions, mask)
        return self.after_norm(x)


class LengthRegulator(nn.Module):
    """From the token rate to the frame rate: nearest neighbour, then four convolutions to smooth the steps."""

    def __init__(self, mels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [nn.Conv1d(mels, mels, 3, padding=1), nn.GroupNorm(1, mels), nn.Mish()]
        self.model = nn.Sequential(*layers, nn.Conv1d(mels, mels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[B, mels, n] -> [B, mels, frames]."""
        return self.model(F.interpolate(x, size=frames, mode="nearest"))
