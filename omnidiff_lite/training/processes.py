"""Several processes on one machine's CPU: parts trained side by side, and one stage trained by all of them.

A matrix product of the size of `cpu` gains next to nothing from a second thread. With two processes of
one thread each, stage 1 trained at 8,300 tokens/s; with one of two threads (and longer rows) it had been 6,200.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.multiprocessing

from omnidiff_lite.orphans import end_with


def side_by_side(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool whose `submit(train_..., ...)` trains in a process of its own, on one core; `.result()` is what came out.

    `workers`: by default one a core, and at most two, as each holds a torch of its own. On a GPU parts share nothing
    well, so there is one worker. Spawned, since forking a threaded torch is unsafe.
    """
    workers = workers or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    cores = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker,
                               initargs=(os.getpid(), cores))


def _begin_worker(owner: int, cores: int) -> None:
    torch.set_num_threads(cores)
    end_with(owner)


def usable(processes: int) -> int:
    """How many processes a stage should start here: one where a GPU does the work, or where a launcher
    (`accelerate launch`, `torchrun`) has started some already; never more than there are cores."""
    if torch.cuda.is_available() or "WORLD_SIZE" in os.environ:
        return 1
    return max(1, min(processes, os.cpu_count() or 1))


def together(processes: int, function: Callable[[], Any]) -> None:
    """Call `function` in `processes` new processes that form one group over gloo, as `torchrun` would start them.

    Nothing is returned: what the function makes, it writes. One that fails ends the others, and its error is raised.
    """
    cores = max(1, (os.cpu_count() or 1) // processes)
    torch.multiprocessing.spawn(_member, (processes, _free_port(), cores, function), nprocs=processes)


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _member(rank: int, size: int, port: int, cores: int, function: Callable[[], Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                   "OMP_NUM_THREADS": str(cores)}  # or accelerate warns that it chooses
    torch.set_num_threads(cores)
    try:
        function()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
