"""The fast decoder against the plain one, in one run: how much faster it gives the same answer.

    exact_speed(176264, 256)        # ratio: how many times as fast
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import DenoiserSize
from omnidiff_lite.diffusion.canvas import Canvas, answer_canvas
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.measure import seconds_of
from omnidiff_lite.vocabulary import Vocabulary

PROMPT = 30  # tokens
SMALL = DenoiserSize(hidden_size=256, intermediate_size=768, layers=6, heads=4, kv_heads=2, rope_theta=1e4)
SHARES = {"speech": 16384 / 176264, "image": 8192 / 176264}  # of the released vocabulary


@dataclass
class ExactSpeed:
    """Seconds of each repeat of one answer, and whether all canvases came out the `same`."""

    plain: list[float]
    fast: list[float]
    same: bool

    @property
    def ratio(self) -> float:
        """How many times as fast, by the medians."""
        return median(self.plain) / median(self.fast)


def exact_speed(ids: int, masks: int, device: str | torch.device = "cpu", steps: int = 4, repeats: int = 3,
                limited: bool = True, size: DenoiserSize = SMALL, seed: int = 0) -> ExactSpeed:
    """A picture of `masks` tokens from random weights of `size` over about `ids` ids, in `steps` steps (None: all).

    Settings are the paper's (temperature, top-p, repetition and position penalty). `limited`: the canvas says which ids
    a picture can hold, a 21st of all in the release; else any id may occur. Both decoders take turns, so that a slow
    phase of the machine is slow for both; the first turn of each is not counted.
    """
    model = random_denoiser(ids, size, seed).to(device)
    prompt, canvas, config = picture_request(ids, masks, steps, seed)
    if not limited:
        canvas = Canvas(canvas.ids)
    seconds: dict[str, list[float]] = {"plain": [], "fast": []}
    found = {}
    for _ in range(repeats + 1):
        for name, decoder in (("plain", decode_plain), ("fast", decode)):
            def work(name: str = name, decoder=decoder) -> None:
                found[name] = decoder(model, prompt, config, canvas=canvas)
            seconds[name] += seconds_of(work, torch.device(device))
    same = [torch.equal(a, b) for a, b in zip(found["plain"].history, found["fast"].history, strict=True)]
    return ExactSpeed(seconds["plain"][1:], seconds["fast"][1:], all(same))


def picture_request(ids: int, masks: int, steps: int | None, seed: int = 0) -> tuple[Tensor, Canvas, DecodingConfig]:
    """A random prompt [30], the canvas of a picture of `masks` tokens, and the paper's settings in `steps` steps."""
    v = vocabulary(ids)
    prompt = torch.randint(v.text, (PROMPT,), generator=torch.Generator().manual_seed(seed))
    config = DecodingConfig.paper("t2i", v).replace(length=None, steps=steps, seed=seed)
    return prompt, answer_canvas(v, ["image"], {"image": masks}), config


def vocabulary(ids: int) -> Vocabulary:
    """About `ids` ids, in the released proportions of text, speech and image."""
    speech, image = (round(ids * SHARES[name]) for name in ("speech", "image"))
    return Vocabulary.small(text=ids - speech - image, speech_codes=speech, image_codes=image)


def random_denoiser(ids: int, size: DenoiserSize = SMALL, seed: int = 0) -> Denoiser:
    """Random weights, drawn from a wide distribution so that no decision depends on rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DenoiserConfig.from_size(size, vocabulary(ids), speech_dim=8, initializer_range=0.1)
        return Denoiser(config).eval().requires_grad_(False)
