"""Samples encoded on the fly during training: media decoded in worker processes, tokenized on this process's device.
For small data and trials; at full size `omnidiff tokenize` does the work once.

Packing needs lengths before anything is decoded: they follow from the text, the sizes of pictures and the headers of
recordings.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omnidiff_lite.chat import ChatEncoder, Sample, SpeechTokens, task_of
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.encode import EncodedSample, EncodingError, encode_samples, uses_of
from omnidiff_lite.data.errors import DataError, GoneError
from omnidiff_lite.data.jsonl import ROLE_NAMES
from omnidiff_lite.data.media import seconds_of
from omnidiff_lite.data.rows import Rows, open_rows
from omnidiff_lite.media import MediaError
from omnidiff_lite.sizes import FRAME_SECONDS, QUERY_FRAMES, TOKENS_PER_SECOND

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers.bundle import Tokenizers

CODE_SECONDS = 1 / TOKENS_PER_SECOND


@dataclass(frozen=True)
class Encoder:
    """How samples become ids: `image_sizes`, `workers` and `speech_input` as in `encode_samples`."""

    tokenizers: Tokenizers
    image_sizes: tuple[int, int]
    workers: int = 0
    speech_input: str = "continuous"

    def length(self, sample: Sample) -> list[int]:
        """Ids with stand-ins for the media: at least as many as `encode` gives. Raises like `encode_samples`."""
        factor, images, audios = self.tokenizers.image.config.factor, [], []
        for use in uses_of(sample, self.image_sizes, self.speech_input):
            if use.kind == "image":
                images.append([0] * (use.size // factor) ** 2)
            elif use.kind == "frames":
                audios.append(SpeechTokens(frames=math.ceil(seconds_of(use.ref) / FRAME_SECONDS) + 1 + QUERY_FRAMES))
            else:
                audios.append(SpeechTokens(codes=[0] * (math.ceil(seconds_of(use.ref) / CODE_SECONDS) + 1)))
        return ChatEncoder(self.tokenizers.vocabulary, self.tokenizers.text).sample(sample.messages, images, audios)[0]

    def encode(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        """Each sample encoded, or the reason why it cannot be. Raises `GoneError` if a shard has vanished."""
        if not samples:
            return []
        try:
            return list(encode_samples(samples, self.tokenizers, self.image_sizes, workers=self.workers,
                                       speech_input=self.speech_input, small=2))  # few per step, but every step
        except EncodingError as error:
            if len(samples) == 1:
                return [str(error).removeprefix("sample 0: ")]
        half = len(samples) // 2  # at most a few are broken: halving finds them in few calls
        return self.encode(samples[:half]) + self.encode(samples[half:])


@dataclass(frozen=True)
class RawSamples:
    """The rows of one task in any number of files (a `Samples`)."""

    files: tuple[Rows, ...]
    file: np.ndarray  # int32 [n]: which file a sample is in
    number: np.ndarray  # int32 [n]: which row of that file
    encoder: Encoder
    log: BrokenLog
    lengths: None = None  # each window measures its own

    def __len__(self) -> int:
        return len(self.file)

    def measure(self, numbers: Sequence[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Samples`. Every process measures every sample, so that all agree on what is packed with what."""
        ids = [self._length(*self._place(number)) for number in numbers]
        self.log.saw(len(ids))
        return np.array([len(i) for i in ids], np.int64), np.array([pad in i for i in ids], bool)

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        """Some samples, encoded; None for a broken one, which is logged. Raises `GoneError` for a vanished file."""
        places = [self._place(number) for number in numbers]
        encoded = self.encoder.encode([rows.sample(row) for rows, row in places])
        for (rows, row), result in zip(places, encoded, strict=True):
            if isinstance(result, str):
                self.log.skip(rows.where(row), result)
        return [None if isinstance(result, str) else result for result in encoded]

    def take(self, numbers: np.ndarray) -> RawSamples:
        return RawSamples(self.files, self.file[numbers], self.number[numbers], self.encoder, self.log)

    def fingerprint(self) -> str:
        parts = [*(rows.fingerprint() for rows in self.files), self.encoder.tokenizers.fingerprint(),
                 str(self.encoder.image_sizes), self.encoder.speech_input]
        return hashlib.sha256("\n".join(parts).encode() + self.file.tobytes() + self.number.tobytes()).hexdigest()[:16]

    def _place(self, number: int) -> tuple[Rows, int]:
        return self.files[self.file[number]], int(self.number[number])

    def _length(self, rows: Rows, row: int) -> list[int]:
        """Ids of a sample before its media are decoded; none if it is broken."""
        try:
            return self.encoder.length(rows.sample(row))
        except GoneError:
            raise
        except (DataError, MediaError, EncodingError, ValueError) as error:
            self.log.skip(rows.where(row), str(error))
            return []


def raw_samples(paths: Iterable[str | Path], encoder: Encoder, log: BrokenLog) -> dict[str, RawSamples]:
    """The samples of jsonl, json and tar files by task. Raises `DataError` for a file that cannot be read.

    Reads every row once, to know its task; broken rows go to the log.
    """
    files = tuple(open_rows(path) for path in paths)
    places: dict[str, list[tuple[int, int]]] = {}
    for number, rows in enumerate(files):
        for row, task in _tasks(rows, log):
            places.setdefault(task, []).append((number, row))
    return {task: RawSamples(files, *np.array(of_task, np.int32).T, encoder, log)
            for task, of_task in sorted(places.items())}


def _tasks(rows: Rows, log: BrokenLog) -> Iterator[tuple[int, str]]:
    for number in range(len(rows)):
        log.saw(1)
        try:
            yield number, _task(rows.row(number))
        except GoneError:
            raise
        except (DataError, AttributeError, KeyError, TypeError) as error:
            log.skip(rows.where(number), str(error) or repr(error))


def _task(row: dict) -> str:
    """The task of a row that is otherwise unchecked."""
    turns = row.get("messages", row.get("conversations"))
    return row.get("task") or task_of([{"role": ROLE_NAMES[turn.get("role", turn.get("from"))],
                                        "content": turn.get("content", turn.get("value"))} for turn in turns])
