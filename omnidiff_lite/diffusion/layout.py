"""How a batch's prompts and canvases, guided or not, become the denoiser's input; and where their answers are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.adapters import NO_ANSWER
from omnidiff_lite.backbone import PADDING, Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.settings import DecodingConfig


class Layout:
    """Where prompts and answers lie in the model's input, and at which column each token is predicted.

    In every row the prompt ends and the answer begins at column `left`, so rows are padded on both sides. With
    guidance, the unconditional rows follow the conditional ones.
    """

    def __init__(self, model: Denoiser, config: DecodingConfig, prompts: list[Tensor], valid: Tensor) -> None:
        self.model, self.config, self.valid = model, config, valid
        self.batch, self.guided = len(prompts), config.guided()
        sizes = [len(p) for p in prompts]
        rows = prompts
        if self.guided:
            blank = embed_prompts(model, guidance_prompts(config, self.batch), None)
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
        self.first, self.starts, self.inside = first, starts, inside
        self.masked = torch.zeros_like(inside)  # undecided answer positions
        self.rows = self.compact = torch.arange(len(rows))  # rows still run; and each row's index among them
        self.segments = None if inside.all() else torch.where(inside, 0, PADDING).to(device)
        self.positions = None if inside.all() else (column - first[:, None]).clamp_min(0).to(device)

    @staticmethod
    def _released_sizes(sizes: list[int], blank: list[Tensor]) -> list[int]:
        for size, prompt in zip(sizes, blank):
            if size < len(prompt):
                raise ConfigError(f"released guidance needs a prompt at least as long as the unconditional one "
                                  f"({size} < {len(prompt)} tokens); use guidance_alignment='aligned'")
        return sizes

    def write(self, sequence: Tensor, place: Tensor, ids: Tensor) -> None:
        """Put `ids` [M] at answer `place` [M] of `sequence` [M]: only what changes is embedded again."""
        embedded = self.model.embed(ids.to(self.embeds.device)).to(self.embeds.dtype)
        for side in range(1 + self.guided):
            row = sequence + side * self.batch
            self.masked[row, self.starts[row] + place] = ids == self.model.config.mask_token_id
            self._put(self.compact[row], self.starts[row] + place, embedded)

    def _put(self, row: Tensor, column: Tensor, embedded: Tensor) -> None:
        self.embeds[row, column] = embedded

    def hidden(self, sequence: Tensor, position: Tensor, active: list[int]) -> list[Tensor]:
        """Final hidden states [M,H] that predict answer `position` [M] of `sequence` [M]; guided: for both sides.

        Only `active` sequences are run; one that is left out never comes back.
        """
        if len(active) < len(self.rows) // (1 + self.guided):
            self._narrow(torch.tensor(active + [self.batch + b for b in active] * self.guided))
        row = torch.cat([sequence + side * self.batch for side in range(1 + self.guided)])
        place = position.repeat(1 + self.guided)
        # Shifted: a token is predicted at the position before it; the very first one, at its own.
        column = torch.maximum(self.left + place - 1, self.first[row])
        return list(self._run(self.compact[row], column, self.starts[row] + place).split(len(sequence)))

    def _narrow(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        kept = self.compact[rows].to(self.embeds.device)
        self.embeds = self.embeds[kept]
        self.segments = None if self.segments is None else self.segments[kept]
        self.positions = None if self.positions is None else self.positions[kept]
        self.rows, self.compact = rows, torch.full_like(self.compact, -1)
        self.compact[rows] = torch.arange(len(rows))

    def _run(self, row: Tensor, column: Tensor, own: Tensor) -> Tensor:
        """Hidden states [M,H] at `row`, `column` [M] of the layout; `own` [M]: the predicted tokens' own columns."""
        return self.model(inputs_embeds=self.embeds, hidden_only=True, segment_ids=self.segments,
                          position_ids=self.positions, masked_share=self.masked_share()).hidden[row, column]

    def masked_share(self) -> Tensor:
        """The masked share of the answer of each row still run, at the answer's columns; -1 elsewhere: [R,L]."""
        lengths, column = self.valid.sum(1).repeat(1 + self.guided)[:, None], torch.arange(self.masked.shape[1])
        own = (column >= self.starts[:, None]) & (column < self.starts[:, None] + lengths)
        shares = self.masked.sum(1, keepdim=True) / lengths
        return torch.where(own, shares, NO_ANSWER)[self.rows].to(self.embeds.device)


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


def guidance_prompts(config: DecodingConfig, batch: int) -> list[Tensor]:
    """The unconditional prompt [n] of each of `batch` sequences. Raises `ConfigError` unless 1 or `batch` are given."""
    rows = _rows(config.guidance_prompt_ids)
    if len(rows) not in (1, batch):
        raise ConfigError(f"guidance_prompt_ids: {len(rows)} prompts for {batch} sequences; give one, or one for each")
    return rows * (batch // len(rows))
