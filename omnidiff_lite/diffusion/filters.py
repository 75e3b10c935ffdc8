"""What happens to the logits of masked positions: filters, penalties, the candidate and its confidence.

All work on rows [M,V], one for each masked position of a batch, and are applied in the order of this file
(generation_utils.py:59-117 of the released code).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omnidiff_lite.diffusion.settings import DecodingConfig

LIKELY = 128  # ids that `keep_top_p` looks at first
DROPPED = torch.finfo(torch.float32).min  # as released: the lowest finite number, so that a row never becomes NaN


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens until their mass exceeds `p`; the one that crosses stays.

    The likeliest `LIKELY` are looked at first: mostly they hold that mass, and sorting a whole vocabulary, which takes
    longer than a small denoiser, can be left out.
    """
    total = logits.logsumexp(-1, keepdim=True)
    ordered, order = logits.topk(min(LIKELY, logits.shape[-1]), dim=-1)
    mass = (ordered - total).exp().cumsum(-1)
    if not bool((mass[..., -1] > p).all()):
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
    before = mass.roll(1, dims=-1)
    before[..., 0] = 0
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before <= p)
    return logits.masked_fill(~kept, DROPPED)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Drop what is strictly below the k-th largest logit of the row."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, DROPPED)


def penalise(logits: Tensor, factor: Tensor | float) -> Tensor:
    """Push logits down by a factor > 1 whatever their sign: negative ones times it, others divided by it."""
    return torch.where(logits < 0, logits * factor, logits / factor)


def repetition_penalty(logits: Tensor, generated: Tensor, factor: float) -> Tensor:
    """Penalise once each id in `generated` [M,K]. Entries 0 say nothing: id 0 is never penalised, as released."""
    values = logits.gather(-1, generated)
    return logits.scatter(-1, generated, torch.where(generated != 0, penalise(values, factor), values))


def filtered(logits: Tensor, config: DecodingConfig, allowed: Tensor | None, said: Tensor | None) -> Tensor:
    """What `config` asks for of the above: allowed ids, temperature, top-p, top-k, repetition penalty, in this order.

    `allowed` bool [M,V]: which ids a row may become, None: any. `said` [M,K]: the ids that it decoded already, 0 where
    there is none. Both may lie on another device.
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

    `rank` [M]: number of the row among its sequence's masked ones; `rows` [M]: their number n. None while n <= free.
    """
    slope = (rank - free).clamp_min(0) / (rows - free).clamp_min(1)
    return penalise(logits, torch.where(rows > free, 1 + (largest - 1) * slope, 1.0)[:, None])


def fixed_penalty(logits: Tensor, position: Tensor, rows: Tensor, gamma: float, free: int) -> Tensor:
    """Position penalty of section 3.4: the logits of all but the first `free` positions times gamma (0.5, < 1).

    "In the early stages" is read as: while more than `free` tokens are masked (the paper does not say how long).
    """
    return torch.where(((position >= free) & (rows > free))[:, None], logits * gamma, logits)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by inverting the distribution function at `uniform` [M] in 0..1."""
    mass = probabilities.cumsum(-1)
    token = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).squeeze(-1)
    # At a rounding edge the search may end beyond, or on a token of no mass: then the likeliest.
    token = token.clamp_max(probabilities.shape[-1] - 1)
    empty = probabilities.gather(-1, token[:, None]).squeeze(-1) == 0
    return torch.where(empty, probabilities.argmax(-1), token)


# --- the order of decoding --------------------------------------------------------------------------------------------

Order = Callable[[Tensor, Tensor, Tensor], Tensor]
ORDERS: dict[str, Order] = {}


def order(name: str) -> Callable[[Order], Order]:
    """Register an order of decoding: `DecodingConfig(algorithm=name)` then decodes by it.

    The decorated function says how sure each masked position is, higher = decided earlier, [M]: from its filtered and
    penalised distribution [M,V], its candidate [M] and its place in the answer [M].
    """
    def register(function: Order) -> Order:
        ORDERS[name] = function
        return function
    return register


@order("confidence")
@order("random")  # the decoder itself draws who comes next
def likeliest(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """The candidate's probability."""
    return probabilities.gather(-1, tokens[:, None]).squeeze(-1)


@order("margin")
def margin(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """The first probability minus the second."""
    first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
    return first - second


@order("entropy")
def negative_entropy(probabilities: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """Minus the entropy, sum p log p (equation 2)."""
    return (probabilities * (probabilities + 1e-10).log()).sum(-1)


def confidence(probabilities: Tensor, tokens: Tensor, algorithm: str, position: Tensor | None = None) -> Tensor:
    """How sure each row is by the order `algorithm`, [M]; `position` [M]: its place in the answer (default: in turn)."""
    position = torch.arange(len(tokens)) if position is None else position
    return ORDERS[algorithm](probabilities, tokens, position.to(tokens.device))
