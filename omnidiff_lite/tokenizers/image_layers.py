"""The convolutional halves of MAGVIT-v2 under the released parameter names (`encoder.*`, `decoder.*`).

Every tensor is [B, C, H, W]. Released code: omni_diffusion/models/magvit/modeling_magvitv2.py. There is no attention
outside `mid`: the released `attn_resolutions=[5]` matches no level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidiff_lite.config import ImageTokenizerConfig


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice; plus the input, through a 1x1 `nin_shortcut` only if channels change."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs, groups), conv(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs, groups), conv(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all positions, scale C^-0.5; q, k, v and the output are 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, kernel_size=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, H*W, C]
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Mid(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve height and width. Padded on the right and at the bottom only, as in the release."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, then (by name) `downsample` or `upsample` if `resample` gives one."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, **resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))
        self._resample = next(iter(resample), None)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return getattr(self, self._resample)(x) if self._resample else x


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in -1..1 -> z [B, code_bits, H / factor, W / factor], one channel per bit."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.encoder_multipliers) - 1
        widths = [config.channels * m for m in config.encoder_multipliers]
        self.patch_size = config.patch_size
        self.conv_in = conv(3 * config.patch_size**2, config.channels)
        self.down = nn.ModuleList()
        for i, (width, blocks) in enumerate(zip(widths, config.encoder_blocks)):
            halve = {"downsample": Downsample(width)} if i < last else {}
            self.down.append(Level(widths[i - 1] if i else config.channels, width, blocks, groups, **halve))
        self.mid = Mid(widths[-1], groups)
        self.norm_out, self.conv_out = norm(widths[-1], groups), conv(widths[-1], config.code_bits)
        self.quant_conv = nn.Conv2d(config.code_bits, config.code_bits, kernel_size=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(pixels, self.patch_size))
        for level in self.down:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return self.quant_conv(x)


class Decoder(nn.Module):
    """Code vectors [B, code_bits, h, w] of -1 and +1 -> pixels [B, 3, h * factor, w * factor], not clamped."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        groups, last = config.norm_groups, len(config.decoder_multipliers) - 1
        widths = [config.channels * m for m in config.decoder_multipliers]  # index 0 = highest resolution, as released
        self.patch_size = config.patch_size
        self.post_quant_conv = nn.Conv2d(config.code_bits, config.code_bits, kernel_size=1)
        self.conv_in = conv(config.code_bits, widths[-1])
        self.mid = Mid(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, (width, blocks) in enumerate(zip(widths, config.decoder_blocks)):
            double = {"upsample": Upsample(width)} if i > 0 else {}
            self.up.append(Level(widths[min(i + 1, last)], width, blocks, groups, **double))
        self.norm_out, self.conv_out = norm(widths[0], groups), conv(widths[0], 3 * config.patch_size**2)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(vectors)))
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size)


class LookupFreeQuantizer(nn.Module):
    """LFQ (Yu et al. 2023, MAGVIT-v2): the code is the signs of z; there is no learned codebook.

    Bit = 1 iff z > 0 (both +0 and -0 give 0); channel 0 is the most significant bit; bit 1 is +1, bit 0 is -1. The
    buffers follow from `bits` alone; they exist because released checkpoints hold them.
    """

    embedding: Tensor  # float32 [2**bits, bits]: every code's vector
    power_vals: Tensor  # int64 [bits]

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.register_buffer("power_vals", 2 ** torch.arange(bits - 1, -1, -1))
        ones = torch.arange(2**bits)[:, None] & self.power_vals != 0
        self.register_buffer("embedding", torch.where(ones, 1.0, -1.0))

    def forward(self, z: Tensor, hardness: float = 1.0) -> Tensor:
        """z [B, bits, h, w] -> code vectors of the same shape, straight-through: the gradient passes to z unchanged.

        With `hardness` below 1, z moves only that share of the way to its code vector.
        """
        return z + hardness * (torch.where(z > 0, 1.0, -1.0) - z).detach()

    def ids(self, z: Tensor) -> Tensor:
        """z [B, bits, h, w] -> int64 ids [B, h, w]."""
        return ((z > 0) * self.power_vals[:, None, None]).sum(dim=1)

    def vectors(self, ids: Tensor) -> Tensor:
        """ids [B, h, w] -> code vectors [B, bits, h, w]."""
        return self.embedding[ids].movedim(-1, 1)
