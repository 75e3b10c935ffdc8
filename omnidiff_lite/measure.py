"""How many seconds and how much memory work takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seconds_of(work: Callable[[], object], device: torch.device | None = None, repeats: int = 1) -> list[float]:
    """Wall-clock seconds of each repeat. On a GPU, from idle to idle: its queue is drained before and after.

    `device`: where the work runs; None: on the current GPU, if there is one.
    """
    found = []
    for _ in range(repeats):
        _drain(device)
        start = time.perf_counter()
        work()
        _drain(device)
        found.append(time.perf_counter() - start)
    return found


def _drain(device: torch.device | None) -> None:
    import torch

    if torch.cuda.is_available() if device is None else device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """`peak`: the most bytes held while the block runs. On a GPU, what torch's allocator handed out; else the process's
    resident memory, sampled every few milliseconds, which includes the interpreter and its libraries."""

    def __init__(self, device: torch.device | None = None, children: bool = False, every: float = 0.01) -> None:
        """`children`: also count the processes that this one started. `every`: seconds between samples."""
        self.gpu = device if device is not None and device.type == "cuda" else None
        self.children, self.every, self.peak = children, every, 0

    def __enter__(self) -> PeakMemory:
        if self.gpu is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self.gpu)
        else:
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.gpu is not None:
            import torch

            self.peak = torch.cuda.max_memory_allocated(self.gpu)
        else:
            self._done.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _resident(self.children))
            if self._done.wait(self.every):
                return


def _resident(children: bool) -> int:
    import psutil

    own, total = psutil.Process(), 0
    for process in [own, *(own.children(recursive=True) if children else ())]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has ended in the meantime
            pass
    return total
