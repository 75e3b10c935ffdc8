"""The paper's training data by name: a table that describes each corpus, and one call that reads it as published.

    for sample in read_corpus("librispeech", "LibriSpeech/train-clean-100"): ...

`corpora.yaml` describes each; `corpus_files` knows the kinds of files, `corpus_samples` the shapes of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import yaml

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import Task
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.corpus_files import KINDS
from omnidiff_lite.data.corpus_samples import SHAPES, Source
from omnidiff_lite.data.errors import DataError, GoneError
from omnidiff_lite.strict import from_dict

TABLE = Path(__file__).with_name("corpora.yaml")


@dataclass(frozen=True)
class Corpus:
    """One row of table 4. `size`: in the table; `bytes`, `licence`: as published; `fetch`: a command; `layout`: what
    its directory then holds. The rest says how it is read."""

    title: str
    task: Task
    stages: tuple[int, ...]
    size: str
    licence: str
    bytes: str
    fetch: str
    layout: str
    kind: str
    files: str = ""
    shape: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    punctuation: dict[str, str] = field(default_factory=dict)  # words of a transcript that stand for a mark
    wordless: tuple[str, ...] = ()  # transcripts of recordings without speech, which are left out


@lru_cache(maxsize=1)
def corpora() -> dict[str, Corpus]:
    """The table, by the names that commands take."""
    return {name: from_dict(Corpus, row, name) for name, row in yaml.safe_load(TABLE.read_text("utf-8")).items()}


def read_corpus(name: str, directory: str | Path, limit: int | None = None, media: str | Path | None = None,
                log: BrokenLog | None = None) -> Iterator[Sample]:
    """The samples of a corpus, one at a time, in an order that depends on its files alone.

    `limit`: only the first `limit` samples. `media`: where pictures and recordings inside parquet files are unpacked
    (default: `directory/media`). `log`: takes broken rows, up to its limits; without it the first one raises.
    Raises `DataError` for an unknown name, a directory that is not as published, and a malformed row.
    """
    if name not in corpora():
        raise DataError(f"no corpus {name!r}; choose one of {', '.join(corpora())}")
    corpus, directory = corpora()[name], Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; give the directory of {name}: {corpus.layout}")
    found = _samples(corpus, directory, Path(media) if media else directory / "media", log)
    first = next(found, None)
    if first is None:
        raise DataError(f"{directory}: holds no samples of {name}; it should hold {corpus.layout}")
    return islice(_chain(first, found), limit)


def _chain(first: Sample, rest: Iterator[Sample]) -> Iterator[Sample]:
    yield first
    yield from rest


def _samples(corpus: Corpus, directory: Path, media: Path, log: BrokenLog | None) -> Iterator[Sample]:
    shape = SHAPES.get(corpus.shape)
    for place, row in KINDS[corpus.kind](directory, corpus.files):
        if log:
            log.saw(1)
        try:
            if isinstance(row, DataError):
                raise row
            source = Source(corpus, directory, media, place)
            if not (corpus.wordless and source.value(row, "text") in corpus.wordless):
                yield row if shape is None else shape(row, source)
        except GoneError:
            raise
        except DataError as error:
            if log is None:
                raise
            log.skip(place.where, str(error))


def corpus_table() -> str:
    """The table as text, with the command and the layout of each."""
    blocks = []
    for name, corpus in corpora().items():
        stages = ", ".join(map(str, corpus.stages))
        blocks.append(f"{name}: {corpus.title}\n  task {corpus.task}, stages {stages}, {corpus.size} in table 4\n"
                      f"  licence  {corpus.licence}\n  bytes    {corpus.bytes}\n  layout   {corpus.layout}\n"
                      f"  fetch    {corpus.fetch}")
    return "\n".join(blocks)
