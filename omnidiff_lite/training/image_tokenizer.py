"""Training the image tokenizer, and measuring what its codes keep of a picture."""

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

# Of the released weights' training only the quantizer's terms are known: 0.1 * commitment + 0.1 * entropy. In runs of
# 400 to 800 steps on 64x64 pictures (one seed each) less commitment gave 0.5 to 1.4 dB; without entropy all tokens
# became one code. There is no perceptual and no adversarial loss here.
COMMITMENT = 0.02
ENTROPY = 0.02
FOREGROUND = 4.0  # extra weight of a pixel that is not background: +5 dB on the shapes of small pictures
ANNEALING = 0.3  # share of the steps over which z turns into signs: +0.6 dB, the decoder learns sooner from an uncut z


def train_image_tokenizer(config: ImageTokenizerConfig, images: Tensor, budget: Budget,
                          seed: int) -> tuple[ImageTokenizer, DataFrame]:
    """A new tokenizer trained on `images` (float [N, 3, H, W] in -1..1), in eval mode, and one row of figures a step.

    Raises `ValueError` for pictures of another shape or range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.abs().max() <= 1:
        raise ValueError(f"images {list(images.shape)}, {images.min():g} to {images.max():g}: expected [N, 3, H, W] "
                         "in -1..1, as `prepare` makes them")
    torch.manual_seed(seed)
    tokenizer = ImageTokenizer(config)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)  # a step's batch depends on seed and step alone
        pixels = images[torch.randint(len(images), (budget.batch,), generator=draw)]
        hardness = min(1.0, step / (ANNEALING * budget.steps))
        return tokenizer_loss(tokenizer, pixels.to(tokenizer.quantize.embedding.device), hardness)

    history = fit(tokenizer, loss, budget, name="image tokenizer", seed=seed)
    return tokenizer, history


def tokenizer_loss(tokenizer: ImageTokenizer, pixels: Tensor,
                   hardness: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction + commitment + entropy of pixels [B, 3, H, W], and the terms by name.

    Reconstruction is squared error, which PSNR measures, plus half the absolute error, which still pulls where a pixel
    is nearly right. `hardness` as in `ImageTokenizer.forward`.
    """
    reconstruction, z = (t.float() for t in tokenizer(pixels, hardness))
    error = reconstruction - pixels
    token, batch = code_entropies(z, tokenizer.quantize.embedding)
    terms = {
        "reconstruction": (foreground_weights(pixels) * (error.square() + 0.5 * error.abs())).mean(),
        "commitment": F.mse_loss(z, torch.where(z > 0, 1.0, -1.0)),
        "entropy_token": token, "entropy_batch": batch,
    }
    total = terms["reconstruction"] + COMMITMENT * terms["commitment"] + ENTROPY * (token - batch)
    return total, {name: term.item() for name, term in terms.items()}


def foreground_weights(pixels: Tensor) -> Tensor:
    """Weights [B, 1, H, W], 1 on average: higher where a pixel differs from its picture's median colour.

    A plain ground fills most of a drawn picture, and its error would drown that of the shapes. In a photograph nearly
    every pixel differs from the median, so that the weights are about even.
    """
    median = pixels.flatten(2).median(dim=-1).values[..., None, None]
    weights = 1 + FOREGROUND * ((pixels - median).abs().amax(dim=1, keepdim=True) > 0.1)
    return weights / weights.mean()


def code_entropies(z: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of the soft code choice of z [B, bits, h, w]: mean of the tokens' own entropies, entropy of their mean.

    A code's probability is softmax over codes of -|z - vector|^2, `vectors` [codes, bits] of -1 and +1. The bits are
    independent given z, so a token's entropy is the sum of its bits'; the mean over tokens needs the joint table
    [tokens, codes], because codes can go unused while every single bit is evenly used.
    """
    logits = 4 * z.float()  # log odds of a bit: |z + 1|^2 - |z - 1|^2
    token = (F.softplus(logits) - logits * logits.sigmoid()).sum(dim=1).mean()
    flat = z.float().movedim(1, -1).flatten(0, -2)  # [tokens, bits]
    mean = (2 * flat @ vectors.float().T).softmax(dim=-1).mean(dim=0)
    return token, -torch.xlogy(mean, mean).sum()


@torch.no_grad()
def reconstruction_report(tokenizer: ImageTokenizer, images: Tensor, batch: int = 32) -> dict[str, Any]:
    """What encoding and decoding keep of images [N, 3, H, W] in -1..1.

    `psnr`: dB, mean over pictures; `psnr_per_image`: float64 [N], to bootstrap from; `codes_used`: distinct ids;
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
