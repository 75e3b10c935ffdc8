"""Encode files of samples once, in parallel processes, so that training reads ids (`omnidiff tokenize`).

The rows are cut into shards of a fixed number of rows, each made by one process and written atomically. A killed run
can be resumed: existing shards are kept. Broken samples are left out, named in `broken.jsonl`, and stop the run past
the limit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from omnidiff_lite.data.broken import MOST, SHARE, BrokenLog
from omnidiff_lite.data.encode import SOURCES, EncodedSample
from omnidiff_lite.data.errors import DataError, GoneError
from omnidiff_lite.data.raw import Encoder
from omnidiff_lite.data.rows import Rows, open_rows
from omnidiff_lite.data.shards import shard_notes, write_index, write_shard
from omnidiff_lite.orphans import end_with
from omnidiff_lite.provenance import source_hash
from omnidiff_lite.weights import write_json

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers.bundle import Tokenizers

SHARD_ROWS = 2048
AT_ONCE = 256  # samples whose media one process holds in memory
RUN = "run.json"  # what the shards of a folder were made from
Load = Callable[[], "Tokenizers"]
How = tuple[tuple[int, int], str]  # picture sizes, and the form of a user's speech


@dataclass(frozen=True)
class Job:
    """One shard: rows `start..stop-1` of one file."""

    shard: Path
    source: Path
    start: int
    stop: int


def tokenize_files(paths: Sequence[str | Path], out: str | Path, load: Load, image_sizes: tuple[int, int],
                   processes: int = 0, shard_rows: int = SHARD_ROWS, most: int = MOST, share: float = SHARE,
                   progress: bool = False, speech_input: str = "continuous") -> dict[str, Any]:
    """Encode jsonl, json and tar files into the folder `out`; returns its index.

    `load`: gives the tokenizers, in this process and in each of `processes` (0: all in this one). `image_sizes` and
    `speech_input` as in `encode_samples`. `most`, `share`: broken samples allowed, as in `BrokenLog`. Raises
    `DataError` for a folder that holds another run's shards, for a source that cannot be read, past the limit of broken
    samples, and if the disk is full or a worker was killed.
    """
    out, sources = Path(out), [open_rows(path) for path in paths]
    tokenizers = load()
    out.mkdir(parents=True, exist_ok=True)
    how = image_sizes, speech_input
    about = _about(sources, tokenizers, how, shard_rows)
    _same_run(out, about)
    jobs = list(_jobs(sources, out, shard_rows))
    log = BrokenLog(out / "broken.jsonl", most, share)
    with tqdm(total=sum(map(len, sources)), desc="samples", unit="", mininterval=5.0, disable=not progress) as bar:
        for job in _done(jobs, sources, load, tokenizers, how, processes):
            _tell(log, job)
            bar.update(job.stop - job.start)
    log.close()
    return write_index(out, [job.shard for job in jobs], {**about, "broken": len(log.known)})


def _about(sources: Sequence[Rows], tokenizers: Tokenizers, how: How, shard_rows: int) -> dict[str, Any]:
    return {"sources": {f"{number} {rows.path.name}": f"{len(rows)} rows, {rows.fingerprint()}"
                        for number, rows in enumerate(sources)},
            "tokenizers": tokenizers.fingerprint(), "image_sizes": list(how[0]), "speech_input": how[1],
            "shard_rows": shard_rows,
            "source_code": source_hash(*SOURCES)}


def _same_run(out: Path, about: dict[str, Any]) -> None:
    """Checks that the folder is new or was begun from the same inputs. Raises `DataError` naming what differs."""
    path = out / RUN
    if path.exists():
        before = json.loads(path.read_text())
        differ = [key for key in about if before.get(key) != about[key]]
        if differ:
            raise DataError(f"{out} holds shards that were made from another {', '.join(differ)}: give another folder, "
                            "or delete it")
        return
    write_json(path, about)


def _jobs(sources: Sequence[Rows], out: Path, shard_rows: int) -> Iterator[Job]:
    spans = [(rows.path, start, min(start + shard_rows, len(rows))) for rows in sources
             for start in range(0, len(rows), shard_rows)]
    return (Job(out / f"shard-{number:05d}.safetensors", *span) for number, span in enumerate(spans))


def _tell(log: BrokenLog, job: Job) -> None:
    """Log what a shard left out."""
    log.saw(job.stop - job.start)
    for where, reason in shard_notes(job.shard)["broken"]:
        log.skip(where, reason)


# --- the work ---------------------------------------------------------------------------------------------------------

def _done(jobs: Sequence[Job], sources: Sequence[Rows], load: Load, tokenizers: Tokenizers, how: How,
          processes: int) -> Iterator[Job]:
    """Each job once its shard exists; those of an earlier run first."""
    left = [job for job in jobs if not job.shard.exists()]
    yield from (job for job in jobs if job.shard.exists())
    if processes < 2 or len(left) < 2:
        opened = {rows.path: rows for rows in sources}
        for job in left:
            _make(job, opened[job.source], _encoder_of(tokenizers, how))
            yield job
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    with ProcessPoolExecutor(min(processes, len(left)), multiprocessing.get_context("spawn"), initializer=_begin,
                             initargs=(os.getpid(), load, how, threads)) as pool:
        yield from _pooled(pool, left, 2 * processes)


def _pooled(pool: ProcessPoolExecutor, jobs: Sequence[Job], ahead: int) -> Iterator[Job]:
    """Jobs as they end, at most `ahead` of them handed out; the first error ends the rest. Raises `DataError` if a
    worker was killed."""
    waiting: dict[Future, Job] = {}
    todo = iter(jobs)
    try:
        while True:
            for job in todo:
                waiting[pool.submit(_work, job)] = job
                if len(waiting) >= ahead:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                future.result()
                yield waiting.pop(future)
    except BrokenProcessPool:
        raise DataError("a worker was killed (often because memory ran out); finished shards are kept: run the same "
                        "command again, with fewer --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encoder: Encoder | None = None  # of a worker process
_rows: dict[Path, Rows] = {}  # files whose lines a worker process has located


def _encoder_of(tokenizers: Tokenizers, how: How) -> Encoder:
    return Encoder(tokenizers, how[0], speech_input=how[1])


def _begin(owner: int, load: Load, how: How, threads: int) -> None:
    import torch

    global _encoder
    end_with(owner)
    torch.set_num_threads(threads)
    if torch.cuda.is_available():  # spread in turn
        torch.cuda.set_device((multiprocessing.current_process()._identity[0] - 1) % torch.cuda.device_count())
    _encoder = _encoder_of(load(), how)


def _work(job: Job) -> None:
    if job.source not in _rows:
        _rows.clear()  # jobs come file by file
        _rows[job.source] = open_rows(job.source)
    _make(job, _rows[job.source], _encoder)


def _make(job: Job, rows: Rows, encoder: Encoder) -> None:
    encoded: list[EncodedSample] = []
    broken: list[tuple[str, str]] = []
    for start in range(job.start, job.stop, AT_ONCE):
        good = list(_read(rows, range(start, min(start + AT_ONCE, job.stop)), broken))
        for (number, _), result in zip(good, encoder.encode([sample for _, sample in good]), strict=True):
            if isinstance(result, str):
                broken.append((rows.where(number), result))
            else:
                encoded.append(result)
    try:
        write_shard(job.shard, encoded, encoder.tokenizers.vocabulary.pad, {"broken": broken})
    except OSError as error:
        raise DataError(f"{job.shard}: cannot be written ({error}); make room and run again: finished shards are kept"
                        ) from None


def _read(rows: Rows, numbers: range, broken: list[tuple[str, str]]) -> Iterator[tuple[int, Any]]:
    """(number, sample) of those that are intact so far."""
    for number in numbers:
        try:
            yield number, rows.sample(number)
        except GoneError:
            raise
        except DataError as error:
            broken.append((rows.where(number), str(error)))
