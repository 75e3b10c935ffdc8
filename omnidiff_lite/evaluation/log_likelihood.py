"""How likely an answer is: LLaDA's Monte Carlo bound (Nie et al. 2025, "Large Language Diffusion Models", equation 6).

Draw l uniformly from 1..L, hide l of the answer's L tokens without replacement, and add up the log-probabilities
of the hidden ones, times L / l. In expectation that is a lower bound on log p(answer | prompt): the mean over all
orders of decoding one token at a time. It is the number that training with `loss_weight` "bound" estimates
(`corruption.bound_weight`), with less noise: a mask count is drawn instead of a time. It serves to rank given
answers; the paper does not say how it scored its multiple-choice benchmark.

An autoregressive denoiser (`is_causal`) hides nothing, and its sum over all L tokens is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import PackedRow, pack_row
from omnidiff_lite.training.batches import collate, derive_seed
from omnidiff_lite.training.step import AnswerLoss

DRAWS = 32  # all masks of an answer of up to 5 tokens


@dataclass(frozen=True)
class Likelihood:
    """An answer's log-likelihood (bound) in nats, at most 0, over its L = `tokens` tokens.

    `error`: the standard error over draws, in nats; 0 where nothing was left to chance.
    """

    value: float
    error: float
    tokens: int

    def per_token(self) -> Likelihood:
        """Value and error divided by the number of tokens, to compare answers of different lengths."""
        return Likelihood(self.value / self.tokens, self.error / self.tokens, self.tokens)


class Masks(NamedTuple):
    """What to hide, bool `hidden` [D,L]; `shares` float64 [D], their probabilities if these are all possible masks."""

    hidden: Tensor
    shares: Tensor | None


class _Job(NamedTuple):
    """One canvas: the positions `scored`, bool [n], of sample `number`."""

    number: int
    sample: EncodedSample
    scored: np.ndarray


def answer_masks(length: int, draws: int = DRAWS, seed: int = 0) -> Masks:
    """Which of an answer's `length` tokens each draw hides; the same ones for every answer of this length.

    Common random numbers: candidates of equal length differ by what they say, not by luck. If there are at most
    `draws` masks in all (2^L - 1), each is taken with its probability 1 / (L * C(L, l)), and the estimate is the
    expectation itself. An answer of one token has one mask.
    """
    if 2 ** length - 1 <= draws:
        hidden = torch.tensor(list(product((False, True), repeat=length))[1:])
        counts = hidden.sum(1).tolist()
        shares = [1 / (length * math.comb(length, count)) for count in counts]
        return Masks(hidden, torch.tensor(shares, dtype=torch.float64))
    generator = torch.Generator().manual_seed(derive_seed(seed, length))
    counts = torch.randint(1, length + 1, (draws, 1), generator=generator)
    ranks = torch.rand(draws, length, generator=generator).argsort(1).argsort(1)
    return Masks(ranks < counts, None)


@torch.no_grad()
def log_likelihoods(denoiser: Denoiser, samples: Sequence[EncodedSample], draws: int = DRAWS, seed: int = 0,
                    batch: int = 16) -> list[Likelihood]:
    """The log-likelihood of each sample's answer given its prompt, in order.

    The answer is what training predicts: everything with a label, including the `<|im_end|>` and the newline that end
    a turn; no tail pads follow, as in a picture's canvas. So a masked denoiser is told how long an answer is.
    `draws` >= 2, `seed` >= 0: see `answer_masks`. `batch`: canvases per pass; it affects only speed and memory, as the
    padding of shorter canvases is never seen. Logits are computed only where tokens are hidden. The denoiser is left
    in eval mode. Raises `TypeError` for anything but an `EncodedSample`, `ValueError` for a sample without prompt or
    answer and for numbers out of range.
    """
    _check(samples, draws, seed, batch)
    lengths = [int((sample.labels != IGNORE).sum()) for sample in samples]
    masks = {length: _masks(denoiser.config, length, draws, seed) for length in set(lengths)}
    plans = [masks[length] for length in lengths]
    # Canvases of one size next to each other need little padding; those of one sample stay in the order of its masks.
    jobs = sorted((job for i, plan in enumerate(plans) for job in _jobs(i, samples[i], plan)),
                  key=lambda job: len(job.scored))
    sums: list[list[float]] = [[] for _ in samples]
    for start in range(0, len(jobs), batch):
        part = jobs[start:start + batch]
        for job, value in zip(part, _sums(denoiser, part), strict=True):
            sums[job.number].append(value)
    return [_estimate(values, plan) for values, plan in zip(sums, plans)]


def _masks(config: DenoiserConfig, length: int, draws: int, seed: int) -> Masks:
    """For a causal denoiser, one certain mask over everything: it scores all tokens in one pass and hides none."""
    if config.is_causal:
        return Masks(torch.ones(1, length, dtype=torch.bool), torch.ones(1, dtype=torch.float64))
    return answer_masks(length, draws, seed)


def _jobs(number: int, sample: EncodedSample, plan: Masks) -> Iterator[_Job]:
    places = np.flatnonzero(sample.labels != IGNORE)
    for hidden in plan.hidden.numpy():
        scored = np.zeros(len(sample.ids), bool)
        scored[places[hidden]] = True
        yield _Job(number, sample, scored)


def _sums(denoiser: Denoiser, jobs: Sequence[_Job]) -> list[float]:
    """The summed log-probability of each job's scored tokens: one pass, laid out and scored as training does."""
    config, length = denoiser.config, max(len(job.scored) for job in jobs)
    rows = [_row(job.sample, length, config) for job in jobs]
    scored = [torch.from_numpy(np.pad(job.scored, (0, length - len(job.scored)))) for job in jobs]
    batch = collate(rows, scored, sorted({job.sample.task for job in jobs}), config)
    losses = AnswerLoss(denoiser.eval(), "fp32")(batch.to(denoiser.device))
    return [-part.sum().item() for part in losses.double().cpu().split([int(job.scored.sum()) for job in jobs])]


def _row(sample: EncodedSample, length: int, config: DenoiserConfig) -> PackedRow:
    return pack_row([sample], [0], length, pad=config.pad_token_id, context_of_audio=config.context_of_audio_token_id)


def _estimate(sums: Sequence[float], plan: Masks) -> Likelihood:
    hidden, shares = plan
    length = hidden.shape[1]
    values = length / hidden.sum(1) * torch.tensor(sums, dtype=torch.float64)
    if shares is None:
        return Likelihood(values.mean().item(), values.std().item() / math.sqrt(len(values)), length)
    return Likelihood((shares * values).sum().item(), 0.0, length)


def _check(samples: Sequence[EncodedSample], draws: int, seed: int, batch: int) -> None:
    for name, value, least in (("draws", draws, 2), ("seed", seed, 0), ("batch", batch, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}")
    for number, sample in enumerate(samples):
        if not isinstance(sample, EncodedSample):
            raise TypeError(f"sample {number} is a {type(sample).__name__}: give EncodedSample, as "
                            "data.encode.encode_samples makes them")
        if not (sample.labels != IGNORE).any():
            raise ValueError(f"sample {number} has no answer to score, as all its labels are {IGNORE}: encode it with "
                             "the assistant's turn")
        if sample.labels[0] != IGNORE:
            raise ValueError(f"sample {number} has no prompt, and nothing predicts its first token: put at least one "
                             f"token labelled {IGNORE} before the answer")
