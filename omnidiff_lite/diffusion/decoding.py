"""Iterative decoding: from an answer of masks to text, speech and image tokens (section 3.4).

Each step scores every masked position over the ids it may become, and fixes those the model is most confident of. Ids,
decisions and random draws live on the CPU, where they are cheap and the same on any machine; only embeddings and
logits live on the model's device. A step recomputes only what has changed: see `layout`, `head` and, where nearly the
same answer will do, `cache`. `plain` is the same sampler without these savings, for reading.

A batch of unequal prompts and answers decodes as each would alone: padding is never attended to, and each sequence has
its own schedule and random numbers. The released settings reproduce every canvas of the released sampler.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion import filters
from omnidiff_lite.diffusion.allowed import allowed_table
from omnidiff_lite.diffusion.cache import CachedLayout
from omnidiff_lite.diffusion.canvas import Canvas
from omnidiff_lite.diffusion.choosing import choose
from omnidiff_lite.diffusion.filters import Scores
from omnidiff_lite.diffusion.guidance import combine
from omnidiff_lite.diffusion.head import Head
from omnidiff_lite.diffusion.layout import Layout, embed_prompts
from omnidiff_lite.diffusion.result import DecodeResult, History
from omnidiff_lite.diffusion.schedule import Step, plan
from omnidiff_lite.diffusion.settings import DecodingConfig
from omnidiff_lite.diffusion.stopping import finished

__all__ = ["DecodeResult", "DecodingConfig", "decode"]


@torch.no_grad()
def decode(model: Denoiser, prompt_ids: Tensor | Sequence[Any] | None, config: DecodingConfig,
           prompt_embeds: Tensor | Sequence[Tensor] | None = None, canvas: Canvas | Sequence[Canvas] | None = None,
           lengths: int | Sequence[int] | None = None, seeds: Sequence[int] | None = None, ends: Collection[int] = ()
           ) -> DecodeResult:
    """Decode one answer per prompt.

    `prompt_ids`: ids [P] or [B,P], or a list of B of different lengths. `prompt_embeds`: the same prompts as
    embeddings [.., H], which is how speech gets in; the ids are then ignored. The answer starts as `canvas` (one, or
    one per prompt; `config.prefill` is then not applied), else as `lengths` masks (likewise), else as `config.length`
    masks. `seeds`: one per sequence for its own random numbers (default: `config.seed` + its index), so that an answer
    does not depend on its neighbours. `ends`: ids that end an answer, besides the pad id, for `config.early_stop`.
    Raises `ConfigError` for settings that conflict with each other or the inputs.
    """
    return start(model, prompt_ids, config, prompt_embeds, canvas, lengths, seeds, ends).run()


def start(model: Denoiser, prompt_ids: Any, config: DecodingConfig, prompt_embeds: Any = None, canvas: Any = None,
          lengths: Any = None, seeds: Sequence[int] | None = None, ends: Collection[int] = ()) -> Decoder:
    """A call to `decode`, set up but not yet run."""
    given = canvas is not None
    prompts = embed_prompts(model, prompt_ids, prompt_embeds)
    canvases = starting_canvases(config, model.config.mask_token_id, len(prompts), canvas, lengths)
    seeds = [config.seed + b for b in range(len(prompts))] if seeds is None else list(seeds)
    return Decoder(model, config, prompts, canvases, seeds, laid_out=given, ends=ends)


class Decoder:
    """One call to `decode`: the canvas and its bookkeeping."""

    def __init__(self, model: Denoiser, config: DecodingConfig, prompts: list[Tensor], canvases: list[Canvas],
                 seeds: list[int], laid_out: bool, ends: Collection[int] = ()) -> None:
        """`laid_out`: the canvases were given by the caller, not built from masks."""
        self.model, self.config = model, config
        self.mask, self.pad = model.config.mask_token_id, model.config.pad_token_id
        self.ends = torch.tensor([self.pad, *ends])
        self.lengths = [len(c) for c in canvases]
        self.valid = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        self.canvas = torch.nn.utils.rnn.pad_sequence([c.ids.cpu().long() for c in canvases], batch_first=True,
                                                      padding_value=self.pad)
        self.given = self.canvas != self.mask
        if not laid_out:
            prefill(self.canvas, self.lengths, config)
        self.start = self.canvas.clone()
        self.plans = [plan_answer(self._undecided()[b], self.lengths[b], config, laid_out)
                      for b in range(len(prompts))]
        self.at = [0] * len(prompts)  # each sequence's current step in its plan
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.decided = torch.full_like(self.canvas, -1)
        self.confidence = torch.full(self.canvas.shape, torch.nan)
        self.head = Head(model, allowed_table(config.allowed_ids, canvases, model.config.vocab_size), config.head)
        self.layout = (Layout if config.cache == "none" else CachedLayout)(model, config, prompts, self.valid)
        self.layout.write(*self.valid.nonzero(as_tuple=True), self.canvas[self.valid])
        self.passes = 0

    def run(self) -> DecodeResult:
        step = 0
        while active := self._active():
            self._step(step, active)
            step += 1
        history = History(self.start, self.canvas, self.decided, step)
        return DecodeResult(self.canvas, history, self.decided, self.confidence, self.lengths, self.passes)

    def _active(self) -> dict[int, Step]:
        """The unfinished sequences, and the current step of each."""
        undecided = self._undecided()
        unfinished = undecided.any(1).nonzero().flatten().tolist()
        if self.config.threshold is not None or self.config.entropy_bound is not None:
            for b in unfinished:  # skip the steps left over from a block done early
                while self.at[b] < len(self.plans[b]) and not undecided[b, self.plans[b][self.at[b]].places].any():
                    self.at[b] += 1
        return {b: self.plans[b][self.at[b]] for b in unfinished if self.at[b] < len(self.plans[b])}

    def _undecided(self) -> Tensor:
        return (self.canvas == self.mask) & self.valid

    def _step(self, step: int, active: dict[int, Step]) -> None:
        rows = self._scored(active)
        if self.config.algorithm == "random":
            rows &= self._lottery(rows, active)
        sequence, position = rows.nonzero(as_tuple=True)
        if len(sequence):
            self._decide(step, sequence, position, active)
        for b in active:
            self.at[b] += 1
            if self.config.early_stop:
                self._stop_early(b, step)

    def _scored(self, active: dict[int, Step]) -> Tensor:
        """The masked positions [B,N] to score: all, or only the block's where no others can matter."""
        rows, undecided = torch.zeros_like(self.valid), self._undecided()
        for b, step in active.items():
            block = torch.zeros_like(rows[b])
            block[step.places] = True
            inside = undecided[b] & block
            rows[b] = inside if self.config.by_block and inside.any() else undecided[b]
        return rows

    def _lottery(self, rows: Tensor, steps: dict[int, Step]) -> Tensor:
        """Random order: draw each masked position of the block with probability `share`; all in the last step."""
        drawn = torch.zeros_like(rows)
        for b, step in steps.items():
            chance = 1.0 if step.last else step.share
            luck = torch.rand(self.lengths[b], generator=self.generators[b]) < chance
            drawn[b, step.places] = luck[step.places]
        return drawn

    def _decide(self, step: int, sequence: Tensor, position: Tensor, active: dict[int, Step]) -> None:
        """Score the masked positions, and fix the chosen ones."""
        scores = self._score(sequence, position, list(active), first=step == 0)
        self.passes += 1
        counts, where = sequence.bincount(minlength=len(self.lengths)).tolist(), []
        for b, own in zip(range(len(counts)), torch.arange(len(sequence)).split(counts)):
            if len(own):
                where.append(own[self._choose(b, active[b], position[own], scores, own)])
        chosen = torch.cat(where)
        sequence, position, fixed = sequence[chosen], position[chosen], scores.tokens[chosen]
        self.canvas[sequence, position] = fixed
        self.confidence[sequence, position] = scores.sure[chosen].masked_fill(fixed == self.mask, torch.nan)
        self.decided[sequence, position] = torch.where(fixed == self.mask, -1, step)
        self.layout.write(sequence, position, fixed)

    def _choose(self, b: int, step: Step, position: Tensor, scores: Scores, own: Tensor) -> Tensor:
        """Which rows of sequence `b`, at indices `own` in the scores, are fixed in this step."""
        if self.config.algorithm == "random" or (
                self.config.early_stop and bool((scores.tokens[own] == self.pad).all())):
            return torch.arange(len(own))
        inside = (position >= step.start) & (position < step.stop)
        # Masks that were not scored keep their places, so that ties are ordered as if they had been.
        masks = self._undecided()[b].nonzero().flatten()
        before, after = int((masks < position[0]).sum()), int((masks > position[-1]).sum())
        sure, entropy = scores.sure[own], None if scores.entropy is None else scores.entropy[own]
        if before or after:
            inside, sure = (pad(values, (before, after)) for values in (inside, sure))
            entropy = None if entropy is None else pad(entropy, (before, after))
        return choose(sure, inside, step, self.config, self.generators[b], entropy) - before

    def _score(self, sequence: Tensor, position: Tensor, active: list[int], first: bool) -> Scores:
        """Candidate, confidence and entropy of each masked position."""
        config, (head, allowed) = self.config, self.head.at(sequence, position)
        sides = [self.head.logits(h, head) for h in self.layout.hidden(sequence, position, active)]
        logits = sides[0] if len(sides) == 1 else combine(*sides, config.guidance_scale, config.guidance_alignment)
        said = None
        if config.repetition_penalty != 1 and not first:
            said = head.local(filters.said(self.canvas, ~self.given & (self.canvas != self.mask)))[sequence]
        logits = filters.filtered(logits, config, allowed, said)
        if config.position_penalty != 1:
            logits = filters.position_penalty(logits, sequence, position, config)
        uniform = self._uniform(sequence, position) if config.temperature > 0 else None
        return filters.score(logits, uniform, config, head.full, position)

    def _uniform(self, sequence: Tensor, position: Tensor) -> Tensor:
        """Random numbers in 0..1 for the positions. A sequence draws for all its masks even if only a block is scored,
        so that scoring less does not change the draws."""
        noise, drawn = torch.zeros(self.canvas.shape), torch.zeros_like(self.valid)
        drawn[sequence, position] = True
        for b in sequence.unique().tolist():
            own = self._undecided()[b] if self.config.by_block else drawn[b]
            noise[b, own] = torch.rand(int(own.sum()), generator=self.generators[b])
        return noise[sequence, position]

    def _stop_early(self, b: int, step: int) -> None:
        """Fill the positions of sequence `b` that nobody will read with pads."""
        masked = self._undecided()[b]
        if masked.any() and finished(self.canvas[b], masked, self.given[b], self.ends):
            self.canvas[b, masked], self.decided[b, masked] = self.pad, step


def starting_canvases(config: DecodingConfig, mask: int, batch: int, canvas: Canvas | Sequence[Canvas] | None,
                      lengths: int | Sequence[int] | None) -> list[Canvas]:
    """One canvas for each of `batch` prompts, from the arguments of `decode`. Raises `ConfigError` if that fails."""
    if canvas is not None:
        canvases = [canvas] * batch if isinstance(canvas, Canvas) else list(canvas)
    else:
        lengths = config.length if lengths is None else lengths
        if lengths is None:
            raise ConfigError("length is None: set it, or give decode lengths or a canvas")
        sizes = [lengths] * batch if isinstance(lengths, int) else [int(n) for n in lengths]
        if min(sizes) < 1:
            raise ConfigError(f"lengths: expected at least 1 token each, got {sizes}")
        canvases = [Canvas(torch.full((n,), mask)) for n in sizes]
    if len(canvases) != batch:
        raise ConfigError(f"{len(canvases)} answers (canvas or lengths) for {batch} prompts")
    return canvases


def prefill(canvas: Tensor, lengths: Sequence[int], config: DecodingConfig) -> None:
    """Special-token pre-infilling (section 3.4) of `canvas` [B,N], its place truncated in float32 as in the release."""
    for b, length in enumerate(lengths):
        for fraction, token in config.prefill.items():
            canvas[b, int(torch.tensor(fraction) * length)] = token


def plan_answer(undecided: Tensor, length: int, config: DecodingConfig, laid_out: bool) -> list[Step]:
    """The steps of one answer of `length` tokens, masked where `undecided` bool [N].

    Blocks of a laid-out canvas count its masks, wherever they lie; blocks of an all-masked one count positions,
    pre-filled ones included, as in the release.
    """
    places = undecided.nonzero().flatten().tolist()
    if not places:
        return []
    if not laid_out:
        return plan(length, len(places), config.step_count(length), config.eps, config.block_length,
                    schedule=config.schedule)
    count = len(places)
    steps = plan(count, count, config.step_count(count), config.eps, config.block_length, True, config.schedule)
    return [replace(s, start=places[s.start], stop=places[s.stop - 1] + 1) for s in steps]
