"""One process's rows of a training run, made in a thread ahead of the step that needs them.

The stream's position at each checkpoint is kept beside them, in `stream.json`: two numbers, from which a resumed run
finds its next row without packing everything before it.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from omnidiff_lite.data.packing import PackedRow, PackedStream
from omnidiff_lite.weights import write_json

AHEAD = 2  # steps whose rows are made before they are requested
KEPT = 4  # positions kept: more than there are checkpoints


class Feed:
    """Rows by step. Steps requested in order are ready; for any other step, it restarts there."""

    def __init__(self, stream: PackedStream, own: Sequence[int], last: int, ahead: int = AHEAD) -> None:
        """`own`: the indices of this process's rows within a step. `last`: the run ends before this step."""
        self.stream, self.own, self.last, self.ahead = stream, own, last, ahead
        self.tasks, self.rows_a_step = stream.tasks, stream.rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")  # only this thread touches the stream
        self._waiting: deque[tuple[int, Future]] = deque()

    def rows(self, step: int) -> list[PackedRow]:
        """This process's rows for a step. Raises whatever reading them raised."""
        if not self._waiting or self._waiting[0][0] != step:
            self._drop()
            self._ask(step)
        _, made = self._waiting.popleft()
        next_step = step + 1 + len(self._waiting)
        for later in range(next_step, min(step + 1 + self.ahead, self.last)):
            self._ask(later)
        return made.result()

    def position(self, step: int) -> dict[str, int]:
        """The stream's position at the beginning of a step."""
        return self._thread.submit(self.stream.position, step).result()

    def close(self) -> None:
        self._drop()
        self._thread.shutdown()

    def _ask(self, step: int) -> None:
        self._waiting.append((step, self._thread.submit(self.stream.batch, step, self.own)))

    def _drop(self) -> None:
        while self._waiting:
            self._waiting.popleft()[1].cancel()


@contextlib.contextmanager
def feeding(stream: PackedStream, own: Sequence[int], start: int, last: int, out_dir: str | Path) -> Iterator[Feed]:
    """A `Feed` from step `start` on, at the position that an earlier process saved for it."""
    if not start:
        (Path(out_dir) / "stream.json").unlink(missing_ok=True)  # from another run
    if place := _positions(out_dir).get(str(start)):
        stream.resume(**place)
    feed = Feed(stream, own, last)
    try:
        yield feed
    finally:
        feed.close()


def save_position(out_dir: str | Path, step: int, position: dict[str, int]) -> None:
    """Save the stream's position before `step`."""
    kept = {key: place for key, place in _positions(out_dir).items() if int(key) < step}
    kept = dict(sorted(kept.items(), key=lambda item: int(item[0]))[-KEPT + 1:]) | {str(step): position}
    write_json(Path(out_dir) / "stream.json", kept)


def _positions(out_dir: str | Path) -> dict[str, dict[str, int]]:
    try:
        return json.loads((Path(out_dir) / "stream.json").read_text())
    except (OSError, ValueError):
        return {}
