"""Iterative decoding: from an answer of masks to text, speech and image tokens (section 3.4).

Each step scores every masked position, and fixes those the model is surest of. Ids, decisions and random draws live
on the CPU, where they are cheap and the same on any machine; only embeddings and logits live on the model's device.
A batch of unequal prompts and answers decodes as each would alone: padding is seen by nobody, schedules and random
numbers belong to each sequence. With the released settings every canvas of the released sampler is reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion import filters
from omnidiff_lite.diffusion.allowed import allowed_table
from omnidiff_lite.diffusion.canvas import Canvas
from omnidiff_lite.diffusion.layout import Layout, embed_prompts
from omnidiff_lite.diffusion.schedule import Step, plan
from omnidiff_lite.diffusion.settings import DecodingConfig

__all__ = ["DecodeResult", "DecodingConfig", "decode"]


@dataclass
class DecodeResult:
    """Decoded answers, and how they came about; all on the CPU.

    `ids` [B,N]: the answers alone, the pad id beyond each one's own `lengths`. A position whose candidate was the
    mask id itself stays masked, as released. `history`: the canvas [B,N] after each step. `decided` [B,N]: the step
    that fixed a position, -1 = there from the start, or never. `confidence` [B,N]: how sure it was then, else NaN.
    """

    ids: Tensor
    history: list[Tensor]
    decided: Tensor
    confidence: Tensor
    lengths: list[int]


@torch.no_grad()
def decode(model: Denoiser, prompt_ids: Tensor | Sequence[Any] | None, config: DecodingConfig,
           prompt_embeds: Tensor | Sequence[Tensor] | None = None, canvas: Canvas | Sequence[Canvas] | None = None,
           lengths: int | Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> DecodeResult:
    """Decode one answer for each prompt.

    `prompt_ids`: ids [P] or [B,P], or a list of B of different lengths. `prompt_embeds`: the same prompts as
    embeddings [.., H], which is how speech gets in; the ids are then not read. The answer starts as `canvas` (one, or
    one each; `config.prefill` is then not applied), else as `lengths` masks (one, or one each), else as
    `config.length` masks. `seeds`: of each sequence's own random numbers (default: `config.seed` + its index), so that
    an answer does not depend on its neighbours. Raises `ConfigError` for settings that do not fit each other or the
    inputs.
    """
    prompts = embed_prompts(model, prompt_ids, prompt_embeds)
    canvases = starting_canvases(config, model.config.mask_token_id, len(prompts), canvas, lengths)
    seeds = [config.seed + b for b in range(len(prompts))] if seeds is None else list(seeds)
    return _Decoder(model, config, prompts, canvases, seeds, laid_out=canvas is not None).run()


class _Decoder:
    """One call of `decode`: the canvas and its bookkeeping."""

    def __init__(self, model: Denoiser, config: DecodingConfig, prompts: list[Tensor], canvases: list[Canvas],
                 seeds: list[int], laid_out: bool) -> None:
        """`laid_out`: the canvases were given, not made of masks here."""
        self.model, self.config, self.mask = model, config, model.config.mask_token_id
        self.lengths = [len(c) for c in canvases]
        self.valid = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        self.canvas = torch.nn.utils.rnn.pad_sequence([c.ids.cpu().long() for c in canvases], batch_first=True,
                                                      padding_value=model.config.pad_token_id)
        self.given = self.canvas != self.mask
        if not laid_out:
            self._prefill()
        self.plans = [self._plan(b, laid_out) for b in range(len(prompts))]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.decided = torch.full_like(self.canvas, -1)
        self.confidence = torch.full(self.canvas.shape, torch.nan)
        self.allowed = allowed_table(config.allowed_ids, canvases, model.config.vocab_size)
        self.layout = Layout(model, config, prompts, self.valid)

    def run(self) -> DecodeResult:
        history: list[Tensor] = []
        for step in range(max(map(len, self.plans), default=0)):
            undecided = self._undecided()
            active = [b for b, steps in enumerate(self.plans) if step < len(steps) and undecided[b].any()]
            if not active:
                break
            self._step(step, active, undecided)
            history.append(self.canvas.clone())
        return DecodeResult(self.canvas, history, self.decided, self.confidence, self.lengths)

    def _plan(self, b: int, laid_out: bool) -> list[Step]:
        """The steps of one answer. Blocks of a laid-out canvas count its masks, wherever they lie; blocks of an
        all-masked one are places, also where a token was pre-filled, as released."""
        config, places = self.config, self._undecided()[b].nonzero().flatten().tolist()
        if not places:
            return []
        if not laid_out:
            length = self.lengths[b]
            return plan(length, len(places), config.step_count(length), config.eps, config.block_length)
        count = len(places)
        steps = plan(count, count, config.step_count(count), config.eps, config.block_length, fewest=1)
        return [replace(s, start=places[s.start], stop=places[s.stop - 1] + 1) for s in steps]

    def _prefill(self) -> None:
        """Special-token pre-infilling (section 3.4), at the place cut in float32 as released."""
        for b, length in enumerate(self.lengths):
            for fraction, token in self.config.prefill.items():
                self.canvas[b, int(torch.tensor(fraction) * length)] = token

    def _undecided(self) -> Tensor:
        return (self.canvas == self.mask) & self.valid

    def _step(self, step: int, active: list[int], undecided: Tensor) -> None:
        rows = torch.zeros_like(undecided)
        rows[active] = undecided[active]
        steps = {b: self.plans[b][step] for b in active}
        if self.config.algorithm == "random":
            rows &= self._lottery(rows, steps)
        if not rows.any():
            return
        sequence, position = rows.nonzero(as_tuple=True)
        tokens, sure = self._score(sequence, position, active, first=step == 0)
        for b in active:
            own = sequence == b
            chosen = self._choose(position[own], sure[own], steps[b], self.generators[b])
            where = position[own][chosen]
            fixed = tokens[own][chosen]
            self.canvas[b, where] = fixed
            self.confidence[b, where] = sure[own][chosen].masked_fill(fixed == self.mask, torch.nan)
            self.decided[b, where] = torch.where(fixed == self.mask, -1, step)

    def _lottery(self, rows: Tensor, steps: dict[int, Step]) -> Tensor:
        """The random order: each masked position of the block is drawn with the step's share, in the last one all."""
        drawn = torch.zeros_like(rows)
        for b, step in steps.items():
            chance = 1.0 if step.last else step.share
            luck = torch.rand(self.lengths[b], generator=self.generators[b]) < chance
            drawn[b, step.start:step.stop] = luck[step.start:step.stop]
        return drawn

    def _score(self, sequence: Tensor, position: Tensor, active: list[int], first: bool) -> tuple[Tensor, Tensor]:
        """Candidate and confidence of each masked position, [M] both, on the CPU."""
        config = self.config
        logits = self.layout.logits(self.canvas, sequence, position, active)
        allowed = said = None
        if self.allowed is not None:
            table, group = self.allowed
            allowed = table[group[sequence, position]]
        if config.repetition_penalty != 1 and not first:
            said = self.canvas.masked_fill(self.given | (self.canvas == self.mask), 0)[sequence]
        logits = filters.filtered(logits, config, allowed, said)
        if config.position_penalty != 1:
            logits = self._position_penalty(logits, sequence, position)
        probabilities = logits.softmax(-1)
        if config.temperature > 0:
            tokens = filters.draw(probabilities, self._uniform(sequence).to(logits.device))
        else:
            tokens = probabilities.argmax(-1)
        return tokens.cpu(), filters.confidence(probabilities, tokens, config.algorithm, position).cpu()

    def _position_penalty(self, logits: Tensor, sequence: Tensor, position: Tensor) -> Tensor:
        config, device = self.config, logits.device
        counts = sequence.bincount(minlength=len(self.lengths))
        rows = counts[sequence]
        if config.position_penalty_mode == "fixed":
            return filters.fixed_penalty(logits, position.to(device), rows.to(device), config.position_penalty,
                                         config.position_free)
        rank = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
        return filters.ramp_penalty(logits, rank.to(device), rows.to(device), config.position_penalty,
                                    config.position_free)

    def _uniform(self, sequence: Tensor) -> Tensor:
        counts = sequence.bincount(minlength=len(self.lengths)).tolist()
        return torch.cat([torch.rand(n, generator=g) for n, g in zip(counts, self.generators)])

    def _choose(self, position: Tensor, sure: Tensor, step: Step, generator: torch.Generator) -> Tensor:
        """Which of one sequence's rows are fixed in this step."""
        config = self.config
        if config.algorithm == "random":
            return torch.arange(len(position))
        inside = (position >= step.start) & (position < step.stop)
        sure = sure.masked_fill(~inside, -torch.inf)
        count = step.count(int(inside.sum()))
        if config.threshold is not None:
            count = max(count, int((sure >= config.threshold).sum()))
        if config.confidence_temperature > 0:  # the surest k of Gumbel-perturbed = k draws without replacement
            noise = -torch.empty_like(sure).exponential_(generator=generator).log()
            sure = sure / config.confidence_temperature + noise
        # A block that a pre-filled token has shortened may be done before its last step; the step then fixes a token
        # of a later block, as released.
        return sure.topk(min(count, len(sure))).indices


def starting_canvases(config: DecodingConfig, mask: int, batch: int, canvas: Canvas | Sequence[Canvas] | None,
                      lengths: int | Sequence[int] | None) -> list[Canvas]:
    """One canvas for each of `batch` prompts, from what `decode` was given. Raises `ConfigError` where that fails."""
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
