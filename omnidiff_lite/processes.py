"""Several processes on one machine's CPU: parts trained side by side, and one stage trained by all of them.

Matrix products at the `cpu` preset's sizes gain next to nothing from a second thread. With two processes of one
thread each, stage 1 trained at 8,300 tokens/s; with one process of two threads (and longer rows), at 6,200.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
import torch.multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from omnidiff_lite.orphans import end_with

Item, Result = TypeVar("Item"), TypeVar("Result")


_LOST = re.compile(r"closed by peer|reset by peer|Broken pipe")  # gloo's errors when another process is gone


class TogetherError(RuntimeError):
    """One of several processes failed in joint work; the message says which, and why."""


def side_by_side(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool whose `submit(train_..., ...)` trains in a separate process, on one core; `.result()` is what came out.

    `workers`: by default one per core, and at most two, as each loads its own torch. Parts do not share a GPU well, so
    there it is one worker. Spawned, since forking a threaded torch is unsafe.
    """
    workers = workers or (1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1))
    cores = max(1, (os.cpu_count() or 1) // workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker,
                               initargs=(os.getpid(), cores))


def _begin_worker(owner: int, cores: int) -> None:
    torch.set_num_threads(cores)
    end_with(owner)


def usable(processes: int) -> int:
    """How many processes a stage should start here: one if a GPU does the work, or if a launcher
    (`accelerate launch`, `torchrun`) has already started some; never more than there are cores."""
    if torch.cuda.is_available() or "WORLD_SIZE" in os.environ:
        return 1
    return max(1, min(processes, os.cpu_count() or 1))


def together(processes: int, function: Callable[[], Any]) -> None:
    """Call `function` in `processes` new processes that form one group over gloo, as `torchrun` would start them.

    Nothing is returned: the function writes what it makes. If one process fails or is killed, the others end too.
    Raises `TogetherError` saying which, and how.
    """
    cores = max(1, (os.cpu_count() or 1) // processes)
    members = torch.multiprocessing.spawn(_member, (processes, _free_port(), cores, function), nprocs=processes,
                                          join=False)
    try:
        while not members.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        exits = [process.exitcode for process in members.processes]
        raise TogetherError(_why(error, exits, _told(members.error_files))) from error


def _told(files: Sequence[str]) -> dict[int, str]:
    """The last line of the error each process raised, by rank, if it left one."""
    told = {}
    for rank, path in enumerate(files):
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):  # or only half-written
            told[rank] = pickle.loads(Path(path).read_bytes()).strip().splitlines()[-1]
    return told


def _why(error: ProcessExitedException | ProcessRaisedException, exits: Sequence[int | None], told: dict[int, str]
         ) -> str:
    """Report first a process ended by a signal, then one with an error of its own: the others only lost their peer,
    and are terminated."""
    felled = [(rank, -code) for rank, code in enumerate(exits) if code and code < 0 and code != -signal.SIGTERM]
    if felled:
        rank, number = felled[0]
        often = "; often because memory ran out" if number == signal.SIGKILL else ""
        return (f"process {rank} of {len(exits)} was killed ({signal.Signals(number).name}{often}); the same call goes "
                "on from the last checkpoint")
    own = {rank: text for rank, text in told.items() if not _LOST.search(text)}
    rank, text = next(iter((own or told).items()), (error.error_index, str(error).strip().splitlines()[-1]))
    return f"process {rank} of {len(exits)}: {text}"


def is_first() -> bool:
    """Whether this is the first of its processes, or the only one."""
    return _rank() == 0


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every n-th of `items`, or all of them if it is alone."""
    return items[_rank()::_size()]


def gathered(value: Item) -> list[Item]:
    """The value of each process, in rank order; all must call it."""
    if _size() == 1:
        return [value]
    values: list[Item] = [value] * _size()
    torch.distributed.all_gather_object(values, value)
    return values


def over_processes(function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """`function(items)`, one result per item, in order: each process takes a contiguous run, and all get all results.

    Results travel between the processes; a result must not depend on neighbouring items. Raises what the function
    raises, or, with several processes, `TogetherError`.
    """
    if _size() == 1:
        return list(function(items))
    first, last = (len(items) * end // _size() for end in (_rank(), _rank() + 1))
    with agreed():
        own = list(function(items[first:last]) if last > first else [])
    return [result for part in gathered(own) for result in part]


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """All processes leave the block normally, or all with `TogetherError`: none waits for one that is gone."""
    cause: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it was, the others must be told
        cause = error
    told = gathered(cause and (str(cause) or type(cause).__name__))
    causes = [f"process {rank}: {text}" if len(told) > 1 else text for rank, text in enumerate(told) if text]
    if causes:
        raise TogetherError("; ".join(causes)) from cause


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _member(rank: int, size: int, port: int, cores: int, function: Callable[[], Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                   "OMP_NUM_THREADS": str(cores)}  # else accelerate warns that it picks one
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
