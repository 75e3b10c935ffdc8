"""Keys and values cached across steps: nearly the same answer with fewer positions per pass.

As in Fast-dLLM (arXiv 2505.22618). Attention is bidirectional, so every key above the first layer changes with every
token fixed, but only a little: most are reused from the last full pass. "prefix": the prompt's are reused, and all
answer positions are run again. "dual": so are decided tokens', and a pass runs only positions still to be predicted,
those where they are read (one earlier, as logits are shifted), and tokens fixed since. Every `cache_refresh` steps a
full pass recomputes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from omnidiff_lite.diffusion.layout import Layout


class PlaceCache(Cache):
    """Each layer's keys and values [R,heads,L,D], overwritten at the columns that a pass runs."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.columns: Tensor | None = None  # [R,Q] of the current pass; None: all of them

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
               ) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, including those of this pass, [R,heads,Q,D]."""
        if self.columns is None:
            self.kept[layer_idx] = key_states, value_states
        else:
            where = self.columns[:, None, :, None].expand_as(key_states)
            self.kept[layer_idx] = tuple(old.scatter(2, where, new) for old, new in
                                         zip(self.kept[layer_idx], (key_states, value_states)))
        return self.kept[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of keys before this pass's own: none, as they replace entries of the cache."""
        return 0

    def keep(self, rows: Tensor) -> None:
        self.kept = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.kept.items()}


class CachedLayout(Layout):
    """A layout whose passes run only what the cache cannot answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cache, self.passes = PlaceCache(), 0
        self.probe: Callable[[Tensor, Tensor], None] | None = None  # gets hidden states [M,H]: cached, and full
        self.changed = torch.zeros_like(self.inside)
        column = torch.arange(self.inside.shape[1])
        answers = (column >= self.starts[:, None]) & self.inside
        self.always = answers if self.config.cache == "prefix" else torch.zeros_like(answers)

    def _put(self, row: Tensor, column: Tensor, embedded: Tensor) -> None:
        super()._put(row, column, embedded)
        self.changed[row, column] = True

    def _narrow(self, rows: Tensor) -> None:
        kept = self.compact[rows]
        self.inside, self.always, self.changed = self.inside[kept], self.always[kept], self.changed[kept]
        self.cache.keep(kept.to(self.embeds.device))
        super()._narrow(rows)

    def _run(self, row: Tensor, column: Tensor, own: Tensor) -> Tensor:
        full = self.passes % self.config.cache_refresh == 0
        self.passes += 1
        hidden = self._full() if full else self._part(row, column, own)
        self.changed.zero_()
        found = hidden[row, column if full else self.slot[row, column]]
        if self.probe is not None:
            self.probe(found, super()._run(row, column, own))
        return found

    def _full(self) -> Tensor:
        self.cache.columns = None
        return self.model(inputs_embeds=self.embeds, hidden_only=True, segment_ids=self.segments,
                          position_ids=self.positions, past_key_values=self.cache,
                          masked_share=self.masked_share()).hidden

    def _part(self, row: Tensor, column: Tensor, own: Tensor) -> Tensor:
        """Hidden states [R,Q,H] at the columns that must be run; `slot` [R,L] says where each column is."""
        wanted = self.always | self.changed
        wanted[row, column] = wanted[row, own] = True
        columns = padded(wanted)
        self.slot = torch.zeros_like(wanted, dtype=torch.long).scatter(
            1, columns, torch.arange(columns.shape[1]).expand_as(columns))
        columns = columns.to(self.embeds.device)
        self.cache.columns = columns
        visible = None
        if self.segments is not None:
            visible = self.inside.to(columns.device)[:, None, None].expand(-1, 1, columns.shape[1], -1)
        return self.model(inputs_embeds=self.embeds.gather(1, columns[..., None].expand(-1, -1, self.embeds.shape[2])),
                          position_ids=columns if self.positions is None else self.positions.gather(1, columns),
                          attention_mask=visible, past_key_values=self.cache, hidden_only=True,
                          masked_share=self.masked_share().gather(1, columns)).hidden


def padded(wanted: Tensor) -> Tensor:
    """The True columns of each row of `wanted` [R,L], as [R,Q]; short rows repeat their first one."""
    counts = wanted.sum(1)
    order = (~wanted).byte().argsort(dim=1, stable=True)[:, :int(counts.max())]
    return torch.where(torch.arange(order.shape[1]) < counts[:, None], order, order[:, :1])
