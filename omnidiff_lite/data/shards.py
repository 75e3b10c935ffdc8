"""Encoded samples on disk in shards, read one sample at a time: what `omnidiff tokenize` writes and training reads.

    encoded/index.json                 the shards in order, with their samples, tasks, bytes and hashes
            shard-00000.safetensors    ids, labels int32 [tokens]; frames float16 [k, dim]; starts int64 [n + 1, 2] of
                                       each sample in these; tasks, holds_pad uint8 [n]
            broken.jsonl               samples that were left out, with the reason

In memory are each sample's length, shard and place there: 13 bytes per sample, some 250 MB for all of the paper's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.errors import DataError, GoneError
from omnidiff_lite.data.tensor_file import read_notes, read_rows
from omnidiff_lite.files import written_whole
from omnidiff_lite.weights import write_json

INDEX = "index.json"


# --- writing ----------------------------------------------------------------------------------------------------------

def write_shard(path: Path, samples: Sequence[EncodedSample], pad: int, notes: dict[str, Any]) -> None:
    """Write one shard; a reader sees the whole file or none. `notes`: plain JSON values, stored with it."""
    tasks = sorted({sample.task for sample in samples})
    sizes = np.array([[len(s.ids), len(s.frames)] for s in samples], np.int64).reshape(-1, 2)
    empty = {"ids": np.zeros(0, np.int32), "labels": np.zeros(0, np.int32), "frames": np.zeros((0, 1), np.float16)}
    tensors = {name: np.concatenate([getattr(s, name) for s in samples]) if samples else none
               for name, none in empty.items()}
    tensors |= {"starts": np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(sizes, axis=0)]),
                "tasks": np.array([tasks.index(s.task) for s in samples], np.uint8),
                "holds_pad": np.array([(s.ids == pad).any() for s in samples], np.uint8)}
    with written_whole(path) as partial:
        # A single entry: safetensors writes several in any order, and equal shards should be equal files.
        save_file(tensors, partial, metadata={"notes": json.dumps({"tasks": tasks, **notes})})


def shard_notes(path: Path) -> dict[str, Any]:
    """The `notes` of a shard, and its "tasks" in the order of their numbers."""
    return json.loads(read_notes(path)["notes"])


def write_index(directory: Path, shards: Iterable[Path], about: dict[str, Any]) -> dict[str, Any]:
    """Write `index.json` for these shards, with `about` stored beside them; returns it."""
    index = {**about, "shards": [_entry(shard) for shard in shards]}
    write_json(directory / INDEX, index)
    return index


def _entry(shard: Path) -> dict[str, Any]:
    names, tasks = shard_notes(shard)["tasks"], read_rows(shard, "tasks")
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return {"file": shard.name, "bytes": shard.stat().st_size, "sha256": digest, "samples": len(tasks),
            "tokens": int(read_rows(shard, "starts", len(tasks))[0, 0]),
            "tasks": {names[task]: count for task, count in sorted(Counter(tasks.tolist()).items())}}


# --- reading ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ShardSamples:
    """The samples of one task in any number of shards (a `Samples`)."""

    shards: tuple[Path, ...]
    hashes: tuple[str, ...]
    task: str
    lengths: np.ndarray  # int32 [n]
    shard: np.ndarray  # int32 [n]: which shard a sample is in
    place: np.ndarray  # int32 [n]: which sample of that shard
    holds_pad: np.ndarray  # bool [n]

    def __len__(self) -> int:
        return len(self.lengths)

    def measure(self, numbers: Sequence[int], pad: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.asarray(numbers, int)
        return self.lengths[chosen].astype(np.int64), self.holds_pad[chosen]

    def fetch(self, numbers: Sequence[int]) -> list[EncodedSample | None]:
        """Raises `GoneError` naming a shard that has vanished since the run began."""
        return [self._read(self.shards[self.shard[number]], int(self.place[number])) for number in numbers]

    def _read(self, path: Path, place: int) -> EncodedSample:
        (token, frame), (token_end, frame_end) = read_rows(path, "starts", place, place + 2).tolist()
        return EncodedSample(read_rows(path, "ids", token, token_end), read_rows(path, "labels", token, token_end),
                             read_rows(path, "frames", frame, frame_end), self.task)

    def take(self, numbers: np.ndarray) -> ShardSamples:
        return ShardSamples(self.shards, self.hashes, self.task, self.lengths[numbers], self.shard[numbers],
                            self.place[numbers], self.holds_pad[numbers])

    def fingerprint(self) -> str:
        """By the hashes in the index: a shard that has changed by a byte since is not noticed here."""
        digest = hashlib.sha256("\n".join([self.task, *self.hashes]).encode())
        digest.update(self.lengths.tobytes() + self.shard.tobytes() + self.place.tobytes())
        return digest.hexdigest()[:16]


def read_shards(directories: Iterable[str | Path]) -> dict[str, ShardSamples]:
    """The samples of encoded folders by task. Raises `DataError` or `GoneError` naming an incomplete folder or shard,
    before any training."""
    shards = [(path, entry["sha256"]) for directory in directories for path, entry in _shards(Path(directory))]
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for number, (path, _) in enumerate(shards):
        lengths = np.diff(read_rows(path, "starts")[:, 0]).astype(np.int32)
        tasks, holds_pad = read_rows(path, "tasks"), read_rows(path, "holds_pad").astype(bool)
        for index, task in enumerate(shard_notes(path)["tasks"]):
            place = np.flatnonzero(tasks == index).astype(np.int32)
            parts.setdefault(task, []).append((lengths[place], np.full(len(place), number, np.int32), place,
                                               holds_pad[place]))
    paths, hashes = zip(*shards) if shards else ((), ())
    return {task: ShardSamples(paths, hashes, task, *map(np.concatenate, zip(*of_task)))
            for task, of_task in sorted(parts.items())}


def _shards(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    index = directory / INDEX
    try:
        entries = json.loads(index.read_text())["shards"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{index}: no index of encoded shards ({error}); `omnidiff tokenize` writes it last, so run it "
                        "to its end") from None
    for entry in entries:
        path = directory / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            raise GoneError(f"{path}: {'is gone' if size is None else f'has {size} bytes'}, the index says "
                            f"{entry['bytes']} bytes; put it back, or delete it and run omnidiff tokenize again, which "
                            "makes it anew")
    return [(directory / entry["file"], entry) for entry in entries]
