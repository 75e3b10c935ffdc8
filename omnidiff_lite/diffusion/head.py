"""The output head over only the ids that may occur: a picture's positions cannot hold words, so none are scored.

At 176k ids, the head and the sorting of its logits take longer than a small denoiser. At image positions 8k ids remain.
Ids keep their relative order, so that a draw by inverting the distribution function gives the same token as over the
whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from omnidiff_lite.backbone import Denoiser

MOST = 0.5  # copying more than this share of the head's rows saves too little to be worth the memory


@dataclass
class LocalHead:
    """The head's rows for some ids.

    `ids` [U] ascending, None: all V. `weight` [U,H], None: the model's own head. `table` bool [G,U]: what each group of
    positions may become, None: any of the ids. `inverse` [V]: an id's place in `ids`, else -1.
    """

    ids: Tensor | None = None
    weight: Tensor | None = None
    table: Tensor | None = None
    inverse: Tensor | None = None

    def local(self, ids: Tensor) -> Tensor:
        """Ids -> their places; -1 for an id without one, and for -1."""
        return ids if self.inverse is None else self.inverse[ids.clamp_min(0)].masked_fill(ids < 0, -1)

    def full(self, places: Tensor) -> Tensor:
        """Places -> ids, on the CPU."""
        places = places.cpu()
        return places if self.ids is None else self.ids[places]


class Head:
    """Selects the part of the head that the current rows need. Slices are made once per combination of groups."""

    def __init__(self, model: Denoiser, allowed: tuple[Tensor, Tensor] | None, kind: str) -> None:
        """`allowed`: table [G,V] and group [B,N] of `allowed_table`. `kind`: "allowed", or "full" for all ids."""
        self.model, self.full = model, kind == "full"
        self.table, self.group = (None, None) if allowed is None else allowed
        self.made: dict[tuple[int, ...], LocalHead] = {}

    def at(self, sequence: Tensor, position: Tensor) -> tuple[LocalHead, Tensor | None]:
        """The head for the rows `sequence`, `position` [M]; and bool [M,U], what each may become, None: any id."""
        if self.table is None:
            return self.made.setdefault((), LocalHead()), None
        group = self.group[sequence, position]
        present = tuple(group.unique().tolist())
        if present not in self.made:
            self.made[present] = self._make(list(present))
        head = self.made[present]
        return head, None if head.table is None else head.table[group]

    def _make(self, groups: list[int]) -> LocalHead:
        rows, head = self.table[groups], self.model.lm_head
        one = isinstance(head, nn.Linear)  # per-modality heads are not a single matrix
        ids = rows.any(0).nonzero().flatten()
        first, last, count = int(ids[0]), int(ids[-1]), len(ids)
        run = last - first + 1 == count  # contiguous: a view, no copy
        if self.full or not one or head.weight.is_meta or not (run or count <= MOST * self.table.shape[1]):
            return LocalHead(table=None if rows.all() else self.table)
        inverse = torch.full((self.table.shape[1],), -1)
        inverse[ids] = torch.arange(count)
        return LocalHead(ids, head.weight[first:last + 1] if run else head.weight[ids.to(head.weight.device)],
                         None if rows[:, ids].all() else self.table[:, ids], inverse)

    def logits(self, hidden: Tensor, head: LocalHead) -> Tensor:
        """Hidden states [M,H] -> float32 logits [M,U]."""
        if head.weight is None:
            return self.model.lm_head(hidden).float()
        return linear(hidden.to(head.weight.device), head.weight).float()
