"""Processes side by side: what they return, how many start, and that none outlives its owner."""

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from omnidiff_lite.processes import _told, _why, side_by_side, threads, usable


def test_a_pool_gives_back_what_a_function_returns_and_raises_what_it_raises():
    with side_by_side(1) as pool:
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        assert pool.submit(os.getpid).result() != os.getpid()
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 7, 0).result()


def test_no_more_processes_than_cores_and_none_within_a_launcher(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [usable(n) for n in (1, 2, 8)] == [1, 2, 2]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert usable(2) == 1


def raised(rank: int) -> ProcessRaisedException:
    return ProcessRaisedException(f"\n\nTraceback ...\nValueError: of process {rank}", rank, 1)


@pytest.mark.parametrize("exits, told, said", [
    ([1, -signal.SIGKILL], {0: "RuntimeError: Connection closed by peer"},
     r"process 1 of 2 was killed \(SIGKILL; often"),
    ([1, -signal.SIGSEGV], {0: "RuntimeError: Connection closed by peer"}, r"process 1 of 2 was killed \(SIGSEGV\);"),
    ([1, 1], {0: "RuntimeError: Connection closed by peer", 1: "DataError: a"}, "process 1 of 2: DataError: a$"),
    ([1, -signal.SIGTERM], {0: "DataError: b"}, "process 0 of 2: DataError: b$"),
    ([1, -signal.SIGTERM], {}, "process 0 of 2: ValueError: of process 0$")])
def test_of_several_processes_the_one_that_failed_first_is_named(exits, told, said):
    assert re.match(said, _why(raised(0), exits, told))


def test_half_a_message_says_nothing(tmp_path):
    (tmp_path / "half").write_bytes(pickle.dumps("Traceback\nValueError: no")[:9])
    (tmp_path / "whole").write_bytes(pickle.dumps("Traceback\nValueError: no\n"))
    assert _told([tmp_path / name for name in ("half", "gone", "whole")]) == {2: "ValueError: no"}


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(1):
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_worker_ends_with_its_owner(tmp_path):
    """Even one that was killed, as a notebook's kernel may be, in the midst of the work."""
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent("""
        import os, time
        from omnidiff_lite.processes import side_by_side

        if __name__ == "__main__":
            pool = side_by_side(1)
            print(pool.submit(os.getpid).result(), flush=True)
            pool.submit(time.sleep, 60)
            time.sleep(60)
    """))
    owner = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.time() + 20
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.time() < deadline, "the worker trains on for nobody"
        time.sleep(0.2)
