"""Where a decoder's time goes: percent by part, for the plain decoder and the exact one.

    with stopwatches(denoiser) as seconds:
        decode(denoiser, prompt, config)
    seconds                                 # {"embedding": ..., "transformer": ..., "head": ...}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.diffusion.decoding import decode
from omnidiff_lite.diffusion.head import Head
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.evaluation.records import Record, measured
from omnidiff_lite.evaluation.statistics import Estimate
from omnidiff_lite.measure import seconds_of
from omnidiff_lite.plan.exact_speed import picture_request, random_denoiser

PARTS = ("embedding", "transformer", "head")
REST = "rest"  # penalties, filters, draws, the choice of what is fixed, bookkeeping
DECODERS = {"plain": decode_plain, "exact": decode}


@contextmanager
def stopwatches(denoiser: Denoiser) -> Iterator[dict[str, float]]:
    """Seconds spent in the denoiser's parts while the block runs; on a GPU each part ends with a wait, at some cost.

    Head: the output matrix, or those of its rows that the exact decoder takes (`diffusion.head`).
    """
    seconds, running = dict.fromkeys(PARTS, 0.0), []

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            if running:  # a part inside a part is counted once
                return call(*args, **named)
            running.append(part)
            found: list[Any] = []
            seconds[part] += seconds_of(lambda: found.append(call(*args, **named)), denoiser.device)[0]
            running.pop()
            return found[0]
        return run

    with ExitStack() as stack:
        for part, owner, name in (("embedding", denoiser.model.embed_tokens, "forward"),
                                  ("transformer", denoiser.model, "forward"), ("head", denoiser.lm_head, "forward"),
                                  ("head", Head, "logits")):
            own = owner.__dict__.get(name)
            stack.callback(setattr, owner, name, own) if own else stack.callback(delattr, owner, name)
            setattr(owner, name, timed(part, getattr(owner, name)))
        yield seconds


def shares(denoiser: Denoiser, work: Callable[[], object], repeats: int = 1) -> dict[str, float]:
    """Percent of the time of `work` in each of `PARTS` and in the `REST`, and its `seconds`; after an uncounted first
    run."""
    work()
    with stopwatches(denoiser) as seconds:
        whole = sum(seconds_of(work, denoiser.device, repeats))
    parts = {**seconds, REST: max(0.0, whole - sum(seconds.values()))}
    return {name: 100 * value / whole for name, value in parts.items()} | {"seconds": whole / repeats}


def profile_records(table: str, ids: int, masks: int, device: torch.device, steps: int, repeats: int, seed: int = 0
                    ) -> list[Record]:
    """A row for each decoder: a picture of `masks` tokens over `ids` ids, from random weights, in `steps` steps."""
    denoiser = random_denoiser(ids, seed=seed).to(device)
    prompt, canvas, config = picture_request(ids, masks, steps, seed)
    return [record for name, decoder in DECODERS.items() for record in _row(
        table, f"profile/{ids}/{masks}/{device.type}/{name}",
        shares(denoiser, lambda: decoder(denoiser, prompt, config, canvas=canvas), repeats), repeats, seed)]


def _row(table: str, row: str, found: Mapping[str, float], repeats: int, seed: int) -> list[Record]:
    reason = "no interval: shares of all repeats together"
    shown = {name: Estimate(value, None, None, repeats, reason) for name, value in found.items()}
    return measured(table, row, seed, shown)
