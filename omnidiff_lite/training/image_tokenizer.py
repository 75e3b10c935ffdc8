"""Training the image tokenizer, and measuring how much of a picture its codes preserve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pandas import DataFrame
from torch import Tensor

from omnidiff_lite.config import Budget, ImageTokenizerConfig
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.training.fit import fit

# All that is known of the released weights' training is the quantizer's terms: 0.1 * commitment + 0.1 * entropy. In
# runs of 400 to 800 steps on 64x64 pictures (one seed each) less commitment gained 0.5 to 1.4 dB; without entropy all
# tokens became one code. There is no perceptual and no adversarial loss here.
COMMITMENT = 0.02
ENTROPY = 0.03
STEADINESS = 1.0  # see `steadiness`
FOREGROUND = 4.0  # extra weight of a pixel that is not background: +5 dB on the shapes of small pictures
ANNEALING = 0.3  # share of the steps over which z turns into signs: +0.6 dB, as the decoder learns faster from raw z


def train_image_tokenizer(config: ImageTokenizerConfig, images: Tensor, budget: Budget,
                          seed: int) -> tuple[ImageTokenizer, DataFrame]:
    """A new tokenizer trained on `images` (float [N, 3, H, W] in -1..1), in eval mode, and one row of figures per step.

    Raises `ValueError` for pictures of another shape or range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.abs().max() <= 1:
        raise ValueError(f"images {list(images.shape)}, {images.min():g} to {images.max():g}: expected [N, 3, H, W] "
                         "in -1..1, as `prepare` makes them")
    torch.manual_seed(seed)
    tokenizer = ImageTokenizer(config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)  # a step's batch depends only on seed and step
        pixels = images[torch.randint(len(images), (budget.batch,), generator=draw)]
        hardness = min(1.0, step / (ANNEALING * budget.steps))
        pixels = pixels.to(tokenizer.quantize.embedding.device)
        total, terms = tokenizer_loss(tokenizer, pixels, hardness)
        steady = steadiness(tokenizer, pixels, draw)
        return total + STEADINESS * steady, terms | {"steadiness": steady.item()}

    history = fit(tokenizer, loss, budget, name="image tokenizer", seed=seed)
    return tokenizer, history


def tokenizer_loss(tokenizer: ImageTokenizer, pixels: Tensor,
                   hardness: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction + commitment + entropy of pixels [B, 3, H, W], and the terms by name.

    Reconstruction is squared error, which PSNR measures, plus half the absolute error, which still pulls when a pixel
    is nearly right. `hardness` as in `ImageTokenizer.forward`.
    """
    reconstruction, z = (t.float() for t in tokenizer(pixels, hardness))
    error, weights = reconstruction - pixels, foreground_weights(pixels)
    token, batch = code_entropies(z, tokenizer.quantize.embedding, F.avg_pool2d(weights, tokenizer.config.factor))
    terms = {
        "reconstruction": (weights * (error.square() + 0.5 * error.abs())).mean(),
        "commitment": F.mse_loss(z, torch.where(z > 0, 1.0, -1.0)),
        "entropy_token": token, "entropy_batch": batch,
    }
    total = terms["reconstruction"] + COMMITMENT * terms["commitment"] + ENTROPY * (token - batch)
    return total, {name: term.item() for name, term in terms.items()}


def steadiness(tokenizer: ImageTokenizer, pixels: Tensor, draw: torch.Generator) -> Tensor:
    """How far z is from the same signs for the same content: pixels [B, 3, H, W] are encoded again after each picture
    is rolled by whole tokens and joined, at a token edge, with another one.

    Without this term a code says little about its own place in the picture: convolutions across it, attention and
    group norms let every object change the codes of all others. In one run each (2,500 steps and 10 bits without, 3,500
    and 9 with) an object moved or put beside another object kept 50 % of its codes without and 97 % with, and 16 tokens
    of one plain ground had 14 and 1.2 different codes. Otherwise, what a denoiser has to predict is mostly noise.
    """
    factor = tokenizer.config.factor
    size = pixels.shape[2] // factor, pixels.shape[3] // factor
    rolls = [tuple(int(torch.randint(n, (), generator=draw)) for n in size) for _ in pixels]
    cut = torch.stack([_half(size, draw) for _ in pixels]).to(pixels.device)
    with torch.no_grad():
        kept = _rearranged(tokenizer.encoder(pixels).float(), rolls, cut, 1)
    z = tokenizer.encoder(_rearranged(pixels, rolls, cut, factor)).float()
    return F.mse_loss(z, torch.where(kept > 0, 1.0, -1.0))


def _half(size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Rows above, or columns left of, a random line: bool [1, h, w]."""
    axis = int(torch.randint(2, (), generator=draw))
    line = int(torch.randint(1, max(2, size[axis]), (), generator=draw))
    before = torch.arange(size[axis]) < line
    return (before[:, None] if axis == 0 else before[None]).expand(1, *size)


def _rearranged(x: Tensor, rolls: list[tuple[int, ...]], cut: Tensor, unit: int) -> Tensor:
    """x [B, C, h, w] rolled by `rolls` x `unit`; where `cut` [B, 1, h / unit, w / unit] is False, a neighbour's."""
    rolled = torch.stack([item.roll([unit * by for by in roll], (1, 2)) for item, roll in zip(x, rolls)])
    mask = cut.repeat_interleave(unit, 2).repeat_interleave(unit, 3)
    return torch.where(mask, rolled, rolled.roll(1, 0))


def foreground_weights(pixels: Tensor) -> Tensor:
    """Weights [B, 1, H, W], 1 on average: higher where a pixel differs from its picture's median colour.

    A plain ground fills most of a drawn picture, and its error would drown out that of the shapes. In a photograph
    nearly every pixel differs from the median, so the weights are about equal.
    """
    median = pixels.flatten(2).median(dim=-1).values[..., None, None]
    weights = 1 + FOREGROUND * ((pixels - median).abs().amax(dim=1, keepdim=True) > 0.1)
    return weights / weights.mean()


def code_entropies(z: Tensor, vectors: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Entropies in nats of the soft code choice of z [B, bits, h, w]: mean over tokens, and entropy of their mean.

    `weights` [B, 1, h, w]: how much a token counts in both means; equal by default. If a plain ground fills most
    tokens, equal weights would push it to take many codes.

    A code's probability is softmax over codes of -|z - vector|^2, `vectors` [codes, bits] of -1 and +1. The bits are
    independent given z, so a token's entropy is the sum of its bits'; the mean over tokens needs the joint table
    [tokens, codes], because codes can go unused while every single bit is evenly used.
    """
    logits = 4 * z.float()  # log odds of a bit: |z + 1|^2 - |z - 1|^2
    share = torch.ones_like(logits[:, 0]) if weights is None else weights[:, 0]
    share = share / share.sum()
    token = ((F.softplus(logits) - logits * logits.sigmoid()).sum(dim=1) * share).sum()
    flat = z.float().movedim(1, -1).flatten(0, -2)  # [tokens, bits]
    mean = share.flatten() @ (2 * flat @ vectors.float().T).softmax(dim=-1)
    return token, -torch.xlogy(mean, mean).sum()


@torch.no_grad()
def reconstruction_report(tokenizer: ImageTokenizer, images: Tensor, batch: int = 32) -> dict[str, Any]:
    """How much of images [N, 3, H, W] in -1..1 survives encoding and decoding.

    `psnr`: dB, mean over pictures; `psnr_per_image`: float64 [N], for bootstrapping; `codes_used`: distinct ids;
    `codes_share`: the same as a share of all codes. PSNR is over the clamped 0..1 range and at most 100 dB.
    """
    psnr, used = [], set()
    for pixels in images.split(batch):
        ids = tokenizer.encode(pixels)
        decoded = tokenizer.decode(ids).to(pixels).clamp(-1, 1)
        error = ((decoded - pixels) / 2).square().mean(dim=(1, 2, 3)).double().clamp(min=1e-10)
        psnr.append(-10 * error.log10().cpu().numpy())
        used.update(ids.unique().tolist())
    per_image = np.concatenate(psnr)
    return {"psnr": float(per_image.mean()), "psnr_per_image": per_image, "codes_used": len(used),
            "codes_share": len(used) / tokenizer.config.codes}
