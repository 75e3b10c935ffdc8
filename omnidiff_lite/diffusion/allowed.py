"""Which ids each position of a batch of canvases may become."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.canvas import Canvas, Span


def allowed_table(chosen: Any, canvases: Sequence[Canvas], vocabulary: int) -> tuple[Tensor, Tensor] | None:
    """A table bool [G,V], and which of its rows applies to each position, [B,N]; None if nothing is restricted.

    `chosen`: ids for every position; or {modality: ids}, which overrides what the canvases allow for their spans;
    or None. Raises `ConfigError` for ids outside the vocabulary, none at all, or a modality that no canvas has.
    """
    everywhere = chosen is not None and not isinstance(chosen, dict)
    by_modality = chosen if isinstance(chosen, dict) else {}
    absent = set(by_modality).difference(span.modality for canvas in canvases for span in canvas.spans)
    if absent:
        raise ConfigError(f"allowed_ids names {', '.join(sorted(absent))}, but no canvas has such a span; "
                          "give decode a canvas, or plain ids")
    table = [torch.ones(vocabulary, dtype=torch.bool)]
    group = torch.zeros(len(canvases), max(map(len, canvases)), dtype=torch.long)
    rows: dict[Any, int] = {}
    for b, canvas in enumerate(canvases):
        for modality, start, stop in [Span("", 0, len(canvas))] if everywhere else canvas.spans:
            own = None if everywhere or modality in by_modality else canvas.allowed.get(modality, ())
            if own == ():
                continue
            if (modality, own) not in rows:
                parts = own or (chosen if everywhere else by_modality[modality],)
                rows[modality, own] = len(table)
                table.append(_row(parts, vocabulary))
            group[b, start:stop] = rows[modality, own]
    return (torch.stack(table), group) if len(table) > 1 else None


def _row(parts: Iterable[Any], vocabulary: int) -> Tensor:
    row = torch.zeros(vocabulary, dtype=torch.bool)
    for ids in parts:
        ids = ids if isinstance(ids, Tensor) else torch.tensor(list(ids), dtype=torch.long)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ConfigError(f"allowed_ids must lie in 0..{vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}")
        row[ids] = True
    if not row.any():
        raise ConfigError("allowed_ids is empty: nothing could be decoded")
    return row
