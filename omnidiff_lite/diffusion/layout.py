"""How prompts and canvases of a batch, guided or not, become the denoiser's input; and where their logits are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.adapters import NO_ANSWER
from omnidiff_lite.backbone import PADDING, Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion import guidance
from omnidiff_lite.diffusion.settings import DecodingConfig


class Layout:
    """Where prompts and answers lie in the model's input, and where their logits are read.

    Prompts end and answers begin at column `left` in every row, so rows are padded on both sides. With guidance the
    unconditional rows follow the conditional ones.
    """

    def __init__(self, model: Denoiser, config: DecodingConfig, prompts: list[Tensor], valid: Tensor) -> None:
        self.model, self.config, self.valid = model, config, valid
        self.batch, self.guided = len(prompts), config.guided()
        sizes = [len(p) for p in prompts]
        rows = prompts
        if self.guided:
            blank = embed_prompts(model, _guidance_prompts(config, self.batch), None)
            rows = prompts + blank
            sizes = sizes + (self._released_sizes(sizes, blank) if config.guidance_alignment == "released"
                             else [len(p) for p in blank])
        self.left, answer = max(sizes), valid.shape[1]
        first = self.left - torch.tensor(sizes)  # column where each row's content begins
        starts = first + torch.tensor([len(p) for p in rows])  # column where its answer begins
        column = torch.arange(self.left + answer)
        inside = (column >= first[:, None]) & (column < self.left + valid.sum(1).repeat(1 + self.guided)[:, None])
        device = model.device
        self.embeds = torch.zeros(len(rows), len(column), model.config.hidden_size, dtype=rows[0].dtype, device=device)
        for row, prompt in enumerate(rows):
            self.embeds[row, first[row]:starts[row]] = prompt
        self.first, self.starts = first, starts
        self.segments = None if inside.all() else torch.where(inside, 0, PADDING).to(device)
        self.positions = None if inside.all() else (column - first[:, None]).clamp_min(0).to(device)

    @staticmethod
    def _released_sizes(sizes: list[int], blank: list[Tensor]) -> list[int]:
        for size, prompt in zip(sizes, blank):
            if size < len(prompt):
                raise ConfigError(f"released guidance needs a prompt at least as long as the unconditional one "
                                  f"({size} < {len(prompt)} tokens); use guidance_alignment='aligned'")
        return sizes

    def logits(self, canvas: Tensor, sequence: Tensor, position: Tensor, active: list[int]) -> Tensor:
        """Float32 logits [M,V] for answer `position` [M] of `sequence` [M]; only `active` sequences are run."""
        rows = torch.tensor(active + [self.batch + b for b in active] * self.guided)
        embeds = self.embeds[rows.to(self.embeds.device)]
        row, place = self.valid[rows % self.batch].nonzero(as_tuple=True)
        ids = canvas[rows % self.batch][row, place].to(embeds.device)
        embeds[row, self.starts[rows[row]] + place] = self.model.embed(ids).to(embeds.dtype)
        hidden = self.model(inputs_embeds=embeds, hidden_only=True, masked_share=self._masked_share(canvas, rows),
                            segment_ids=None if self.segments is None else self.segments[rows],
                            position_ids=None if self.positions is None else self.positions[rows]).hidden
        index = torch.zeros(self.batch, dtype=torch.long)
        index[active] = torch.arange(len(active))
        conditional = self._read(hidden, index[sequence], self.first[sequence], position)
        if not self.guided:
            return conditional
        blank = self._read(hidden, index[sequence] + len(active), self.first[sequence + self.batch], position)
        return guidance.combine(conditional, blank, self.config.guidance_scale, self.config.guidance_alignment)

    def _masked_share(self, canvas: Tensor, rows: Tensor) -> Tensor:
        """Of the answer of each of `rows` [R] the share that is masked, at its columns, and -1 elsewhere: [R,L]."""
        lengths, answer, starts = self.valid.sum(1), rows % self.batch, self.starts[rows, None]
        shares = ((canvas == self.model.config.mask_token_id) & self.valid).sum(1) / lengths
        column = torch.arange(self.embeds.shape[1])
        own = (column >= starts) & (column < starts + lengths[answer, None])
        return torch.where(own, shares[answer, None], NO_ANSWER).to(self.embeds.device)

    def _read(self, hidden: Tensor, row: Tensor, first: Tensor, position: Tensor) -> Tensor:
        """Shifted: a token is predicted at the position before it; the very first of all, at its own."""
        return self.model.lm_head(hidden[row, torch.maximum(self.left + position - 1, first)]).float()


def embed_prompts(model: Denoiser, ids: Any, embeds: Any) -> list[Tensor]:
    """Prompts as a list of embeddings [P_i,H]."""
    if embeds is not None:
        prompts = [embeds] if isinstance(embeds, Tensor) and embeds.dim() == 2 else list(embeds)
        return [p.to(model.device) for p in prompts]
    if ids is None:
        raise ConfigError("decode needs prompt_ids or prompt_embeds")
    return [model.embed(row.to(model.device)) for row in _rows(ids)]


def _rows(ids: Any) -> list[Tensor]:
    """Ids [P], [B,P] or B lists of ids -> B tensors [P_i]."""
    single = ids.dim() == 1 if isinstance(ids, Tensor) else not len(ids) or not hasattr(ids[0], "__len__")
    return [torch.as_tensor(row, dtype=torch.long) for row in ([ids] if single else ids)]


def _guidance_prompts(config: DecodingConfig, batch: int) -> list[Tensor]:
    rows = _rows(config.guidance_prompt_ids)
    if len(rows) not in (1, batch):
        raise ConfigError(f"guidance_prompt_ids: {len(rows)} prompts for {batch} sequences; give one, or one for each")
    return rows * (batch // len(rows))
