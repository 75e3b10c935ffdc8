"""The benchmarks of the paper's tables, read as published from a directory: one call, one list of rows.

    rows = read_benchmark("pope", "POPE/output/coco", part="adversarial", pictures="COCO/val2014")

The rows have the meta keys that the evaluators need, like those of `world.benchmarks`. Pictures and recordings are
named by their absolute paths, not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from omnidiff_lite.chat import Sample
from omnidiff_lite.data import benchmark_coco, benchmark_exams, benchmark_speech, benchmark_vision
from omnidiff_lite.data.benchmark_rows import BenchmarkError, Row, folder

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkError", "read_benchmark", "tasks_of"]


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read. `layout`: what its directory holds, for messages. `tasks`: the tasks of its rows.
    """

    read: Callable[..., Iterator[Row]]
    layout: str
    tasks: tuple[str, ...] = ("vqa",)
    parts: tuple[str, ...] = ()  # may be read alone; in their published order
    pictures: str | None = None  # the folder of its pictures within the directory, if another may be given
    together: int = 1  # rows that are scored as one


BENCHMARKS = {
    "librispeech": Benchmark(benchmark_speech.read_librispeech,
                             "<speaker>/<chapter>/ with .flac files and a .trans.txt", ("asr",)),
    "libritts": Benchmark(benchmark_speech.read_libritts,
                          "<speaker>/<chapter>/ with .wav and .normalized.txt files", ("tts",)),
    "pope": Benchmark(benchmark_vision.read_pope, "coco_pope_<strategy>.json with a question a line",
                      parts=benchmark_vision.STRATEGIES, pictures="val2014"),
    "mme": Benchmark(benchmark_vision.read_mme, "a folder a subtask", parts=benchmark_vision.SUBTASKS, together=2),
    "seed2plus": Benchmark(benchmark_vision.read_seed2plus, f"questions in {benchmark_vision.SEED_FILE}",
                           pictures="."),
    "mmmu": Benchmark(benchmark_exams.read_mmmu, "<subject>/validation-*.parquet with questions",
                      pictures="pictures"),
    "coco": Benchmark(benchmark_coco.read_coco, f"{benchmark_coco.CAPTIONS} and {benchmark_coco.PICTURES}/",
                      benchmark_coco.TASKS, parts=benchmark_coco.TASKS, pictures=benchmark_coco.PICTURES),
}


def read_benchmark(name: str, directory: str | Path, limit: int | None = None, *, part: str | None = None,
                   pictures: str | Path | None = None) -> list[Sample]:
    """The rows of a benchmark, in an order that depends on its files alone.

    `name`: one of `BENCHMARKS`. `limit`: only the first `limit` rows; what follows is not checked. `part`: one strategy
    of POPE, one subtask of MME or one task of COCO (default: all). `pictures`: the folder of POPE's,
    SEED-Bench-2-Plus's or COCO's pictures (default: within `directory`, as unpacked), or where MMMU's are unpacked to.

    Raises `BenchmarkError` for a name, part or limit that does not fit, and at the first fault in the files: a missing
    file, a malformed line, an answer that cannot be scored, a duplicate id, no rows at all.
    """
    benchmark = _benchmark(name)
    if limit is not None and (limit < 1 or limit % benchmark.together):
        raise BenchmarkError(f"limit is {limit}; give a positive number"
                             f"{', an even one: MME scores two questions together' * (benchmark.together == 2)}")
    directory = folder(Path(directory), f"give the directory of {name}: {benchmark.layout}")
    options = _part(name, benchmark, part) | _pictures(name, benchmark, directory, pictures)
    rows = list(islice(_distinct(benchmark.read(directory, **options)), limit))
    if not rows:
        raise BenchmarkError(f"{directory}: holds no rows of {name}; it should hold {benchmark.layout}")
    return rows


def tasks_of(name: str, part: str | None = None) -> tuple[str, ...]:
    """The tasks that a benchmark, or a part of it, asks of the model. Raises `BenchmarkError` like `read_benchmark`."""
    benchmark = _benchmark(name)
    _part(name, benchmark, part)
    return (part,) if part in benchmark.tasks else benchmark.tasks


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _part(name: str, benchmark: Benchmark, part: str | None) -> dict[str, tuple[str, ...]]:
    if part is not None and part not in benchmark.parts:
        raise BenchmarkError(f"no part {part!r} of {name}; "
                             + (f"choose one of {', '.join(benchmark.parts)}" if benchmark.parts else "leave it out"))
    return {"parts": benchmark.parts if part is None else (part,)} if benchmark.parts else {}


def _pictures(name: str, benchmark: Benchmark, directory: Path, pictures: str | Path | None) -> dict[str, Path]:
    if benchmark.pictures is not None:
        return {"pictures": directory / benchmark.pictures if pictures is None else Path(pictures)}
    if pictures is not None:
        raise BenchmarkError(f"{name} has no pictures apart from its own directory; leave `pictures` out")
    return {}


def _distinct(rows: Iterator[Row]) -> Iterator[Sample]:
    seen: dict[str, str] = {}
    for where, sample in rows:
        ident = sample.meta["id"]
        if ident in seen:
            raise BenchmarkError(f"{where}: the id {ident!r} stands twice, first in {seen[ident]}; keep one of them")
        seen[ident] = where
        yield sample
