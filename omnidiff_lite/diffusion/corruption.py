"""Forward process: which answer tokens are replaced by the mask (section 3.1, and 3.3 for the tail pads)."""

from __future__ import annotations

import math
from typing import Literal, Sequence, get_args

import torch
from torch import Tensor

from omnidiff_lite.config import MaskSchedule

SCHEDULES: tuple[MaskSchedule, ...] = get_args(MaskSchedule)
RELEASED_EPS = 1e-3  # the smallest t of the released code (dataset_qwen2.py:73-79)


def sample_time(shape: Sequence[int] | Tensor, how: Literal["sequence", "token"] = "sequence",
                generator: torch.Generator | None = None, segment_ids: Tensor | None = None) -> Tensor:
    """Noise levels t in 0..1 for sequences of `shape` [.., L] (or shaped like a tensor, on its device).

    "sequence" (the paper): one t, uniform in 0..1, per sequence, as [.., 1]; with `segment_ids` [B,L], one per segment
    of a packed row, as [B,L]. A sequence may thus stay entirely unmasked and contribute no loss.
    "token" (the released code): a separate t for every token, 0.999 u + 0.001, as [.., L]. Every token is then masked
    with probability 1/2, and nearly full or nearly empty masks are never seen.
    """
    device = shape.device if isinstance(shape, Tensor) else None
    size = tuple(shape.shape if isinstance(shape, Tensor) else shape)
    if how == "token":
        return (1 - RELEASED_EPS) * _uniform(size, generator, device) + RELEASED_EPS
    if how != "sequence":
        raise ValueError(f"time {how!r} is none of 'sequence', 'token'")
    if segment_ids is None:
        return _uniform((*size[:-1], 1), generator, device)
    segments = segment_ids.clamp_min(0)  # padding borrows the first segment's t; it is never masked
    return _uniform((len(segments), int(segments.max()) + 1), generator, segment_ids.device).gather(1, segments)


def mask_rate(t: Tensor, schedule: MaskSchedule = "linear") -> Tensor:
    """Share of the answer that is masked at time t, both in 0..1: t (the paper), sin(pi t / 2), or 1 - (1 - t)^3.

    "cosine" and "cubic" are MaskGIT's (Chang et al., 2022, section 3.3): they mask 64 % and 75 % on average, and often
    give nearly full masks, from which decoding starts: over 95 % in one answer of 20 (linear), of 5 and of 2.7.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"mask schedule {schedule!r} is none of {', '.join(map(repr, SCHEDULES))}")
    return {"linear": t, "cosine": torch.sin(t * math.pi / 2), "cubic": 1 - (1 - t) ** 3}[schedule]


def corrupt_suffix(answer: Tensor, t: Tensor) -> Tensor:
    """Which tokens to mask if answers are masked from some point onward: the last round(t n) of n, pads included.

    `answer`: the answer that each token belongs to, int64 [L], numbered from 0 in order; -1 outside, where nothing is
    masked. `t` [L]: one value per sample, 0..1. Returns bool [L]. Left-to-right decoding, by token or by block, starts
    every token or block from such a canvas; `corrupt`, which masks tokens independently, hardly ever yields a complete
    beginning with nothing after it.
    """
    inside, own = answer >= 0, answer.clamp_min(0)
    lengths = torch.bincount(answer[inside], minlength=1)
    place = inside.cumsum(0) - 1 - (lengths.cumsum(0) - lengths)[own]
    return (place >= lengths[own] - (t * lengths[own]).round()) & inside


def bound_weight(t: Tensor, schedule: MaskSchedule = "linear") -> Tensor:
    """Weight of a masked token's loss at time t in the likelihood bound: rate'(t) / rate(t), shaped like t.

    With this weight and t uniform in 0..1, the expected sum over an answer's masked tokens is an upper bound on
    -log p(answer), and its mean over all orders of decoding one token at a time (Ou et al., 2024, arXiv 2406.03736; Shi
    et al., 2024, arXiv 2406.04329): `evaluation.log_likelihood` estimates the same number from a drawn count of
    masks, L / l. Any schedule gives the same bound: linear weighs 1 / t, cosine (pi / 2) / tan(pi t / 2). The paper has
    no weight (equation 1). A tail pad, masked at gamma * rate, has the same weight; the bound is then that of an answer
    whose pads are each given with probability 1 - gamma.
    Times below 0.001 weigh as much as 0.001: at most 1000, and up to 0.15 % of the bound is lost.
    """
    rate = mask_rate(t := t.clamp_min(RELEASED_EPS), schedule)
    slopes = {"linear": torch.ones_like(t), "cosine": torch.cos(t * math.pi / 2) * math.pi / 2,
              "cubic": 3 * (1 - t) ** 2}
    return slopes[schedule] / rate


def corrupt(answer_ids: Tensor, is_pad: Tensor | bool, t: Tensor | float, gamma: float = 0.6,
            generator: torch.Generator | None = None) -> Tensor:
    """Which tokens to mask: bool, shaped like `answer_ids` [.., L].

    An ordinary token is masked with probability t, a tail pad (`is_pad`) with gamma * t: attenuated tail-pad masking,
    section 3.3 (gamma 0.6, appendix A). Negative ids (a prompt's label -100) are never masked, so a whole row of
    labels may be passed. `t`: a number, one per sequence [..], or anything that broadcasts over `answer_ids`.
    """
    t = torch.as_tensor(t, device=answer_ids.device)
    if t.dim() == answer_ids.dim() - 1:
        t = t.unsqueeze(-1)
    probability = torch.where(torch.as_tensor(is_pad, device=answer_ids.device), gamma * t, t)
    return (_uniform(answer_ids.shape, generator, answer_ids.device) < probability) & (answer_ids >= 0)


def _uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device | None) -> Tensor:
    """Uniform numbers on `device`, drawn on the generator's device: a CPU seed gives the same draw everywhere."""
    source = generator.device if generator is not None else device
    return torch.rand(tuple(shape), generator=generator, device=source).to(device or source)
