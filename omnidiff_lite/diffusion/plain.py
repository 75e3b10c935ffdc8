"""The released sampler step by step, without any optimisation: a reference for reading and for measurements.

One answer after another; each step embeds everything, runs the output head over all ids at all positions, and sorts
whole rows (generation_utils.py:418-620 of the released code). The kit's additions to the release (unequal batches,
aligned guidance, the fixed penalty, allowed ids and seeded draws) are here in their plainest form too.
`decoding.decode` gives the same canvases faster.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.adapters import NO_ANSWER
from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.allowed import allowed_table
from omnidiff_lite.diffusion.canvas import Canvas
from omnidiff_lite.diffusion.decoding import plan_answer, prefill, starting_canvases
from omnidiff_lite.diffusion.filters import DROPPED
from omnidiff_lite.diffusion.layout import embed_prompts, guidance_prompts
from omnidiff_lite.diffusion.result import DecodeResult
from omnidiff_lite.diffusion.schedule import Step
from omnidiff_lite.diffusion.settings import DecodingConfig


@torch.no_grad()
def decode_plain(model: Denoiser, prompt_ids: Tensor | Sequence[Any] | None, config: DecodingConfig,
                 prompt_embeds: Tensor | Sequence[Tensor] | None = None,
                 canvas: Canvas | Sequence[Canvas] | None = None, lengths: int | Sequence[int] | None = None,
                 seeds: Sequence[int] | None = None, ends: Collection[int] = ()) -> DecodeResult:
    """What `decoding.decode` returns for the same arguments. `config.head` and `ends` have no effect here.

    Raises `ConfigError` for what the released sampler does not have: caches, thresholds, entropy bounds, early stops.
    """
    if config.cache != "none" or config.threshold is not None or config.entropy_bound is not None or config.early_stop:
        raise ConfigError("the plain decoder has no cache, threshold, entropy_bound or early_stop: use decode")
    prompts = embed_prompts(model, prompt_ids, prompt_embeds)
    canvases = starting_canvases(config, model.config.mask_token_id, len(prompts), canvas, lengths)
    blanks = [None] * len(prompts)
    if config.guided():
        blanks = embed_prompts(model, guidance_prompts(config, len(prompts)), None)
    allowed = allowed_table(config.allowed_ids, canvases, model.config.vocab_size)
    answers = []
    for b, (prompt, blank, start) in enumerate(zip(prompts, blanks, canvases)):
        own = None if allowed is None else allowed[0][allowed[1][b, :len(start)]]
        generator = torch.Generator().manual_seed(config.seed + b if seeds is None else seeds[b])
        answers.append(_decode_one(model, config, prompt, blank, start, own, generator, canvas is not None))
    return _joined(answers, model.config.pad_token_id)


def _decode_one(model: Denoiser, config: DecodingConfig, prompt: Tensor, blank: Tensor | None, start: Canvas,
                allowed: Tensor | None, generator: torch.Generator, laid_out: bool) -> DecodeResult:
    """One answer. `prompt` [P,H], `blank` [U,H] or None, `allowed` bool [N,V] or None."""
    x, mask = start.ids.cpu().long().clone(), model.config.mask_token_id
    given = x != mask
    if not laid_out:
        prefill(x[None], [len(x)], config)
    decided, confidence, history, passes = torch.full_like(x, -1), torch.full(x.shape, torch.nan), [], 0
    for number, step in enumerate(plan_answer(x == mask, len(x), config, laid_out)):
        if not (x == mask).any():
            break
        rows = x == mask
        if config.algorithm == "random":  # the release draws the positions first, and scores only those
            rows &= _lottery(step, len(x), generator)
        rows = rows.nonzero().flatten()
        if len(rows):
            logits = _logits(model, config, prompt, blank, x)[rows].float()
            passes += 1
            said = x[~given & (x != mask)] if number else x[:0]
            own = None if allowed is None else allowed[rows]
            probabilities = _filtered(logits, config, rows, own, said).softmax(-1)
            tokens, sure = _candidates(probabilities, config, generator)
            chosen = _choose(sure, rows, step, config, generator)
            where, fixed = rows[chosen], tokens[chosen]
            x[where] = fixed
            confidence[where] = sure[chosen].masked_fill(fixed == mask, torch.nan)
            decided[where] = torch.where(fixed == mask, -1, number)
        history.append(x.clone())
    return DecodeResult(x, history, decided, confidence, [len(x)], passes)


def _logits(model: Denoiser, config: DecodingConfig, prompt: Tensor, blank: Tensor | None, x: Tensor) -> Tensor:
    """Logits [N,V] of the answer `x` [N], for all positions and ids, guided and shifted; on the CPU or the GPU."""
    answer = model.embed(x.to(model.device)).to(prompt.dtype)
    whole = torch.cat([prompt, answer])
    logits = _scored(model, whole, len(prompt), x)
    if blank is None:
        return _shifted(logits, len(prompt), len(x))
    other = torch.cat([blank, answer])
    if config.guidance_alignment == "aligned":
        sides = [_shifted(logits, len(prompt), len(x)),
                 _shifted(_scored(model, other, len(blank), x), len(blank), len(x))]
        return sides[1] + config.guidance_scale * (sides[0] - sides[1])
    if len(blank) > len(prompt):
        raise ConfigError(f"released guidance needs a prompt at least as long as the unconditional one "
                          f"({len(prompt)} < {len(blank)} tokens); use guidance_alignment='aligned'")
    zeros = other.new_zeros(len(whole) - len(other), other.shape[1])  # at the end, seen by every position
    filled = torch.cat([other, zeros])
    unconditional = _scored(model, filled, len(blank), x)
    return _shifted(unconditional + (config.guidance_scale + 1) * (logits - unconditional), len(prompt), len(x))


def _scored(model: Denoiser, embeds: Tensor, prompt: int, x: Tensor) -> Tensor:
    """Logits [L,V] of `embeds` [L,H], where the partly masked answer `x` follows `prompt` tokens."""
    share = torch.full((1, len(embeds)), NO_ANSWER, device=model.device)
    share[0, prompt:prompt + len(x)] = (x == model.config.mask_token_id).sum() / len(x)
    return model(inputs_embeds=embeds[None], masked_share=share).logits[0]


def _shifted(logits: Tensor, prompt: int, length: int) -> Tensor:
    """For each position, the logits of the one before it; the very first keeps its own."""
    return torch.cat([logits[:1], logits[:-1]])[prompt:prompt + length]


def _filtered(logits: Tensor, config: DecodingConfig, rows: Tensor, allowed: Tensor | None, said: Tensor) -> Tensor:
    """Temperature, top-p, top-k and penalties on the logits [M,V] of the masked positions `rows` [M]."""
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=1)
        logits = logits.masked_fill(torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before > config.top_p),
                                    DROPPED)
    if config.top_k is not None:
        smallest = logits.topk(min(config.top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, DROPPED)
    if config.repetition_penalty != 1:
        for token in set(said.tolist()) - {0}:  # each id once, never id 0
            logits[:, token] = _penalised(logits[:, token], config.repetition_penalty)
    for rank, row in enumerate(rows.tolist()):
        factor = _position_factor(rank, row, len(rows), config)
        if factor != 1:
            logits[rank] = _penalised(logits[rank], factor) if config.position_penalty_mode == "ramp" \
                else logits[rank] * factor
    return logits


def _penalised(values: Tensor, factor: float) -> Tensor:
    return torch.where(values < 0, values * factor, values / factor)


def _position_factor(rank: int, row: int, masked: int, config: DecodingConfig) -> float:
    """The factor for the `rank`-th of `masked` masks, at position `row`: a ramp over ranks, or one factor from a
    position onward."""
    if config.position_penalty == 1 or masked <= config.position_free:
        return 1.0
    if config.position_penalty_mode == "fixed":
        return config.position_penalty if row >= config.position_free else 1.0
    beyond = max(rank - config.position_free, 0)
    return 1 + (config.position_penalty - 1) * beyond / (masked - config.position_free)


def _candidates(probabilities: Tensor, config: DecodingConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token and confidence [M] of each row."""
    if config.temperature > 0:
        mass = probabilities.cumsum(-1)
        at = torch.rand(len(mass), generator=generator).to(mass.device)[:, None] * mass[:, -1:]
        tokens = torch.searchsorted(mass, at, right=True).squeeze(1).clamp_max(mass.shape[1] - 1)
        empty = probabilities.gather(1, tokens[:, None]).squeeze(1) == 0  # a rounding edge
        tokens = torch.where(empty, probabilities.argmax(-1), tokens)
    else:
        tokens = probabilities.argmax(-1)
    if config.algorithm == "margin":
        ordered = probabilities.sort(dim=-1, descending=True).values
        sure = ordered[:, 0] - ordered[:, 1]
    elif config.algorithm == "entropy":
        sure = (probabilities * (probabilities + 1e-10).log()).sum(-1)
    elif config.algorithm in ("confidence", "random"):
        sure = probabilities.gather(1, tokens[:, None]).squeeze(1)
    else:
        raise ConfigError(f"the plain decoder knows the released orders, not {config.algorithm!r}")
    return tokens.cpu(), sure.cpu()


def _lottery(step: Step, length: int, generator: torch.Generator) -> Tensor:
    """Random order: draw each position of the block with probability `share`; all in its last step."""
    luck = torch.rand(length, generator=generator) < (1.0 if step.last else step.share)
    place = torch.arange(length)
    return luck & (place >= step.start) & (place < step.stop)


def _choose(sure: Tensor, rows: Tensor, step: Step, config: DecodingConfig, generator: torch.Generator) -> Tensor:
    """The most confident rows of the block, as many as the step fixes."""
    if config.algorithm == "random":
        return torch.arange(len(rows))
    inside = (rows >= step.start) & (rows < step.stop)
    sure = sure.masked_fill(~inside, -torch.inf)
    if config.confidence_temperature > 0:
        noise = -torch.empty_like(sure).exponential_(generator=generator).log()
        sure = sure / config.confidence_temperature + noise
    return sure.topk(min(step.count(int(inside.sum())), len(rows))).indices


def _joined(answers: list[DecodeResult], pad: int) -> DecodeResult:
    """Single answers -> a batch; in the history, a finished answer stays as it is."""
    def together(parts: list[Tensor], filler: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=filler)

    steps = max(len(a.history) for a in answers)
    history = [together([a.history[min(step, len(a.history) - 1)] if a.history else a.ids for a in answers], pad)
               for step in range(steps)]
    return DecodeResult(together([a.ids for a in answers], pad), history, together([a.decided for a in answers], -1),
                        together([a.confidence for a in answers], torch.nan), [n for a in answers for n in a.lengths],
                        sum(a.passes for a in answers))
