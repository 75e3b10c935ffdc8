"""The image tokenizer: MAGVIT-v2 (showlab/magvitv2), pixels <-> one grid of discrete codes.

Full size: 256x256 pixels <-> 16x16 tokens of 8,192 codes. A small configuration is the same network with fewer,
narrower layers, and with pixels folded into channels before the first convolution (`patch_size`), as a laptop would
otherwise spend most of its time there.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from omnidiff_lite.config import ConfigError, ImageTokenizerConfig
from omnidiff_lite.tokenizers.image_layers import Decoder, Encoder, LookupFreeQuantizer
from omnidiff_lite.weights import read_part_config, read_weights, save_part, strict_load, unfilled


class ImageTokenizer(nn.Module):
    """MAGVIT-v2: a convolutional autoencoder around a lookup-free quantizer (section 3.1 of the paper)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        levels = {name: len(getattr(config, name)) for name in (
            "encoder_multipliers", "encoder_blocks", "decoder_multipliers", "decoder_blocks")}
        if len(set(levels.values())) > 1:
            raise ConfigError(f"image tokenizer: these need one entry a level, equally many: {levels}")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LookupFreeQuantizer(config.code_bits)

    def forward(self, pixels: Tensor, hardness: float = 1.0) -> tuple[Tensor, Tensor]:
        """The training path: pixels [B, 3, H, W] -> (reconstruction of the same shape, z [B, code_bits, h, w]).

        `hardness`: how far z is moved towards its signs before decoding, from 0 (not at all) to 1 (fully, as in
        `encode` and `decode`).
        """
        z = self.encoder(pixels)
        return self.decoder(self.quantize(z, hardness)), z

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 -> int64 ids [B, H / factor, W / factor], rows from the top.

        H and W need not be equal. Raises `ValueError` unless they are multiples of `config.factor`.
        """
        factor = self.config.factor
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ValueError(f"pixels {list(pixels.shape)}: expected [B, 3, H, W] with H and W multiples of {factor}; "
                             "`prepare` makes such a picture")
        return self.quantize.ids(self.encoder(pixels.to(self.encoder.conv_in.weight)))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Ids [B, h, w] -> float32 pixels [B, 3, h * factor, w * factor], about -1..1 (not clamped, as in the release).

        Raises `ValueError` for an id outside the codebook.
        """
        codes = self.config.codes
        if ids.ndim != 3 or ids.min() < 0 or ids.max() >= codes:
            raise ValueError(f"image ids {list(ids.shape)}: expected [B, h, w] with every id in 0..{codes - 1}")
        vectors = self.quantize.vectors(ids.to(self.quantize.power_vals))
        return self.decoder(vectors.to(self.decoder.conv_in.weight)).float()

    @classmethod
    def from_pretrained(cls, directory: str | Path, config: ImageTokenizerConfig | None = None) -> ImageTokenizer:
        """Load the kit's own directory, or the released one, whose config.json has no sizes: they are `config`, or
        inferred from the weights. Raises `CheckpointError` if the weights do not fit."""
        weights = read_weights(directory, without="quantize.")
        tokenizer = unfilled(cls, read_part_config(ImageTokenizerConfig, directory) or config or _sizes(weights))
        strict_load(tokenizer, weights, directory, derivable=lambda name: name.startswith("quantize."))
        return tokenizer.eval()

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the latter in `dtype` if given."""
        save_part(self, self.config, directory, dtype)


def _sizes(weights: dict[str, Tensor]) -> ImageTokenizerConfig:
    """The configuration of a released checkpoint; the tensors do not show the number of groups, so it is the
    released 32."""
    first, codes = weights.get("encoder.conv_in.weight"), weights.get("encoder.quant_conv.weight")
    if first is None or codes is None:
        return ImageTokenizerConfig()  # something else: loading it will name what is missing
    channels, sizes = len(first), {}
    for half, levels in (("encoder", "down"), ("decoder", "up")):
        blocks: dict[int, list[int]] = {}  # level -> width of each of its blocks
        for name, tensor in weights.items():
            if found := re.fullmatch(rf"{half}\.{levels}\.(\d+)\.block\.\d+\.conv2\.weight", name):
                blocks.setdefault(int(found[1]), []).append(len(tensor))
        sizes[f"{half}_blocks"] = tuple(len(blocks[level]) for level in sorted(blocks))
        sizes[f"{half}_multipliers"] = tuple(blocks[level][0] // channels for level in sorted(blocks))
    return ImageTokenizerConfig(channels=channels, code_bits=len(codes), **sizes)


def prepare(image: PIL.Image.Image, size: int) -> Tensor:
    """A picture as float32 [3, size, size] in -1..1: shorter side scaled to `size` (bicubic), then the centre square.

    Rounding as in the released transform: the longer side is truncated, the crop offset rounded half to even.
    """
    image = centre_square(image.convert("RGB"), size, PIL.Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def centre_square(image: PIL.Image.Image, size: int, resampling: PIL.Image.Resampling) -> PIL.Image.Image:
    """The centre square of a picture, `size` x `size`, by the rule of `prepare`."""
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), resampling).crop((left, top, left + size, top + size))


def to_image(pixels: Tensor) -> PIL.Image.Image:
    """Pixels [3, H, W] in -1..1 (clamped) as an RGB picture; fractions are truncated, as in the release."""
    levels = ((pixels.detach().float() + 1) / 2).clamp(0, 1) * 255
    return PIL.Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
