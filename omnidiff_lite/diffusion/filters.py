"""What happens to the logits of masked positions: filters, penalties, the candidate and its confidence.

All work on rows [M,V], one per masked position in a batch, where V is the whole vocabulary or the ids that may occur,
and are applied in the order of this file (generation_utils.py:59-117 of the released code). Rows are float32 whatever
the denoiser computes in: half precision has so few numbers that ties would decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omnidiff_lite.diffusion.settings import DecodingConfig

LIKELY = 128  # ids that `keep_top_p` looks at first
DROPPED = torch.finfo(torch.float32).min  # as in the release: the lowest finite number, so no row becomes NaN


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens of each row [M,V] until their mass exceeds `p`; the one that crosses it stays.

    The likeliest `LIKELY` are checked first: they usually hold that mass, which saves sorting the whole vocabulary,
    slower than a small denoiser. Rows too flat for that are sorted.
    """
    total = logits.logsumexp(-1, keepdim=True)
    dropped = torch.ones_like(logits, dtype=torch.bool)
    flat = (logits.amax(-1, keepdim=True) - total).exp().squeeze(-1) * LIKELY <= p  # the likeliest cannot hold it
    if not bool(flat.all()):
        ordered, order = logits.topk(min(LIKELY, logits.shape[-1]), dim=-1)
        mass = (ordered - total).exp().cumsum(-1)
        dropped.scatter_(-1, order, _before(mass) > p)
        flat = mass[:, -1] <= p
    if logits.shape[-1] > LIKELY and bool(flat.any()):
        rows = slice(None) if bool(flat.all()) else flat.nonzero().squeeze(-1)
        ordered, order = logits[rows].sort(dim=-1, descending=True)
        dropped[rows] = torch.empty_like(order, dtype=torch.bool).scatter_(
            -1, order, _before(ordered.softmax(-1).cumsum(-1)) > p)
    return logits.masked_fill(dropped, DROPPED)


def _before(mass: Tensor) -> Tensor:
    """The mass before each token, from the cumulative mass that includes it."""
    return torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Drop everything strictly below the row's k-th largest logit."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, DROPPED)


def penalise(logits: Tensor, factor: Tensor | float) -> Tensor:
    """Lower logits by a factor > 1 whatever their sign: multiply negative ones by it, divide others."""
    return torch.where(logits < 0, logits * factor, logits / factor)


def repetition_penalty(logits: Tensor, generated: Tensor, factor: float) -> Tensor:
    """Penalise each id in `generated` [M,K] once; -1 is ignored."""
    some = generated.amax(-1, keepdim=True)  # an id of the row replaces -1: penalising it twice has the same effect
    index = torch.where(generated < 0, some, generated).clamp_min(0)
    values = logits.gather(-1, index)
    return logits.scatter(-1, index, torch.where(some >= 0, penalise(values, factor), values))


def said(canvas: Tensor, drawn: Tensor) -> Tensor:
    """The ids [B,N] of `canvas` where `drawn`, else -1; also -1 for id 0, never penalised, as in the release."""
    return canvas.masked_fill(~drawn | (canvas == 0), -1)


def filtered(logits: Tensor, config: DecodingConfig, allowed: Tensor | None, said: Tensor | None) -> Tensor:
    """Apply what `config` sets of these: allowed ids, temperature, top-p, top-k, repetition penalty, in this order.

    `allowed` bool [M,V]: which ids a row may become, None: any. `said` [M,K]: the ids already decoded in its sequence,
    -1 for none. Both may be on another device.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_p is not None and config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.repetition_penalty != 1 and said is not None:
        logits = repetition_penalty(logits, said.to(logits.device), config.repetition_penalty)
    return logits


def ramp_penalty(logits: Tensor, rank: Tensor, rows: Tensor, largest: float, free: int) -> Tensor:
    """Released position penalty: row `free` + j of the n still masked is divided by 1 + (largest - 1) j / (n - free).

    `rank` [M]: the row's index among its sequence's masked ones; `rows` [M]: their count n. No penalty while n <= free.
    """
    slope = (rank - free).clamp_min(0) / (rows - free).clamp_min(1)
    return penalise(logits, torch.where(rows > free, 1 + (largest - 1) * slope, 1.0)[:, None])


def fixed_penalty(logits: Tensor, position: Tensor, rows: Tensor, gamma: float, free: int) -> Tensor:
    """Position penalty of section 3.4: the logits of all but the first `free` positions times gamma (0.5, < 1).

    "In the early stages" is read as: while more than `free` tokens are masked (the paper does not say how long).
    """
    return logits * torch.where((position >= free) & (rows > free), gamma, 1.0)[:, None]


def position_penalty(logits: Tensor, sequence: Tensor, position: Tensor, config: DecodingConfig) -> Tensor:
    """The position penalty set in `config`, on rows of `sequence` [M] (ascending) at answer `position` [M]."""
    counts = sequence.bincount()
    if int(counts.max()) <= config.position_free:
        return logits
    rows, device = counts[sequence], logits.device
    if config.position_penalty_mode == "fixed":
        return fixed_penalty(logits, position.to(device), rows.to(device), config.position_penalty,
                             config.position_free)
    rank = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
    return ramp_penalty(logits, rank.to(device), rows.to(device), config.position_penalty, config.position_free)


@dataclass
class Scores:
    """For each row [M], on the CPU: the candidate's id, its confidence, and the entropy in nats if needed."""

    tokens: Tensor
    sure: Tensor
    entropy: Tensor | None


def score(logits: Tensor, uniform: Tensor | None, config: DecodingConfig,
          name: Callable[[Tensor], Tensor] = Tensor.cpu, position: Tensor | None = None) -> Scores:
    """Candidate and confidence of filtered rows. `uniform` [M] in 0..1: where to draw, None: the likeliest token.

    `name`: columns -> ids on the CPU, if the columns are not ids. `position` [M]: places in the answer.
    """
    probabilities = logits.softmax(-1)
    tokens = probabilities.argmax(-1) if uniform is None else draw(probabilities, uniform.to(logits.device))
    sure = confidence(probabilities, tokens, config.algorithm, position).cpu()
    entropy = None
    if config.entropy_bound is not None:
        entropy = -(sure if config.algorithm == "entropy" else confidence(probabilities, tokens, "entropy").cpu())
    return Scores(name(tokens), sure, entropy)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token per row, by inverting the distribution function at `uniform` [M] in 0..1."""
    mass = probabilities.cumsum(-1)
    token = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).squeeze(-1)
    # At a rounding edge the search may end past the last token, or on one with no mass: then take the likeliest.
    token = token.clamp_max(probabilities.shape[-1] - 1)
    empty = probabilities.gather(-1, token[:, None]).squeeze(-1) == 0
    return torch.where(empty, probabilities.argmax(-1), token)


# --- the order of decoding --------------------------------------------------------------------------------------------

Order = Callable[[Tensor, Tensor, Tensor], Tensor]
ORDERS: dict[str, Order] = {}


def order(name: str) -> Callable[[Order], Order]:
    """Register a decoding order: `DecodingConfig(algorithm=name)` then decodes by it.

    The decorated function gives the confidence of each masked position, higher = decided earlier, [M]: from its
    filtered and penalised distribution [M,V], its candidate [M] and its place in the answer [M].
    """
    def register(function: Order) -> Order:
        ORDERS[name] = function
        return function
    return register


@order("confidence")
@order("random")  # the decoder itself draws which positions come next
def likeliest(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """The candidate's probability."""
    return probabilities.gather(-1, tokens[:, None]).squeeze(-1)


@order("margin")
def margin(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """The largest probability minus the second largest."""
    best = probabilities.topk(min(2, probabilities.shape[-1]), dim=-1).values
    return best[:, 0] - best[:, 1:].sum(-1)


@order("entropy")
def negative_entropy(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """Minus the entropy, sum p log p (equation 2)."""
    return (probabilities * (probabilities + 1e-10).log()).sum(-1)


def confidence(probabilities: Tensor, tokens: Tensor, algorithm: str, position: Tensor | None = None) -> Tensor:
    """The confidence of each row by the order `algorithm`, [M]; `position` [M]: its answer place (default: 0..M-1)."""
    position = torch.arange(len(tokens)) if position is None else position
    return ORDERS[algorithm](probabilities, tokens, position.to(tokens.device))
