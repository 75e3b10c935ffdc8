"""MS-COCO's captions as published (cocodataset.org): annotations/captions_val2014.json, and the pictures of val2014/.

A picture is one row, and serves three tasks: to be described, and to be drawn from its first caption, as written and
as spoken. The paper draws 10,000 pictures of this set in both ways; it does not say which ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.data.benchmark_rows import BenchmarkError, Row, existing, field, parse, read_text
from omnidiff_lite.data.sdvi import recording, voice_of
from omnidiff_lite.processes import over_processes
from omnidiff_lite.world.splits import stream
from omnidiff_lite.world.synthesisers import Synthesiser
from omnidiff_lite.world.voices import speech_ref, test_voices

TASKS = ("captioning", "t2i", "s2i")
CAPTIONS = "annotations/captions_val2014.json"
PICTURES = "val2014"
AGAIN = "unpack annotations_trainval2014.zip again"


def read_coco(directory: Path, parts: Sequence[str], pictures: Path) -> Iterator[Row]:
    """One "captioning" row per picture, by image id. `parts`: the tasks to score it on.

    Keys: images (id, file_name: a file in `pictures`) and annotations (image_id, caption; five per picture or a few
    more, in the order of the file). Meta: "id", "captions" (all of them), "caption" and "answer" (the first),
    "recording" (the first, in an espeak-ng voice that no training utterance has; `respoken` gives others), "tasks".
    Raises `BenchmarkError` for a caption of an unlisted picture, and for a picture without caption or file.
    """
    path = directory / CAPTIONS
    data = parse(read_text(path, f"give the folder that holds {CAPTIONS} and {PICTURES}/"), str(path))
    images = _images(data, path)
    captions = _captions(data, path, images)
    for number, (where, row) in sorted(images.items()):
        picture = existing(pictures / field(row, "file_name", where), where, f"unpack {PICTURES}.zip beside "
                           "annotations/, or give COCO's val2014 as `pictures`")
        if not captions[number]:
            raise BenchmarkError(f"{where}: the picture {number} has no caption; {AGAIN}")
        yield where, _sample(number, picture, captions[number], parts)


def as_task(row: Sample, task: str) -> Sample:
    """A row of `read_coco` as a sample of one of its tasks; in the drawing tasks its picture is the answer."""
    if task == "captioning":
        return row
    spoken = [row.meta["recording"]] if task == "s2i" else []
    return Sample(build_messages(task, row.meta["caption"], ""), row.images, spoken, task, row.meta)


def respoken(rows: Sequence[Sample], speaker: Synthesiser, out: str | Path, seed: int = 0) -> list[Sample]:
    """The rows with their captions in the voices of another `speaker`, chosen as for SDVI (`data.sdvi`).

    Recordings go to `out`, one per text and voice, and are made only if missing; several processes
    (`training.launch.join`) share the work. Raises `VoiceError` for a caption that cannot be spoken.
    """
    return over_processes(partial(_respoken, speaker, Path(out), seed), rows)


def _respoken(speaker: Synthesiser, out: Path, seed: int, rows: Sequence[Sample]) -> list[Sample]:
    found = []
    for row in rows:
        caption = row.meta["caption"]
        made = recording(caption, voice_of(speaker, seed, row.images[0], caption), out, speaker)
        found.append(replace(row, meta=row.meta | {"recording": os.path.abspath(out / made)}))
    return found


# --- the file ---------------------------------------------------------------------------------------------------------


def _rows(data: Any, key: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of one of the file's two lists."""
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: holds no list of {key}; {AGAIN}")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, {key.removesuffix('s')} {number}", row


def _images(data: Any, path: Path) -> dict[int, tuple[str, Any]]:
    """(where, row) by image id."""
    images: dict[int, tuple[str, Any]] = {}
    for where, row in _rows(data, "images", path):
        number = _number(row, "id", where)
        if number in images:
            raise BenchmarkError(f"{where}: the id {number} stands twice, first in {images[number][0]}; {AGAIN}")
        images[number] = where, row
    return images


def _captions(data: Any, path: Path, images: dict[int, tuple[str, Any]]) -> dict[int, list[str]]:
    """Captions by image id."""
    captions: dict[int, list[str]] = {number: [] for number in images}
    for where, row in _rows(data, "annotations", path):
        number = _number(row, "image_id", where)
        if number not in captions:
            raise BenchmarkError(f"{where}: a caption of the picture {number}, which is not among the images; {AGAIN}")
        captions[number].append(" ".join(field(row, "caption", where).split()))  # a few hold line breaks
    return captions


def _number(row: Any, key: str, where: str) -> int:
    text = field(row, key, where)
    if not text.isdecimal():
        raise BenchmarkError(f"{where}: {key!r} is {text!r}, not a whole number; {AGAIN}")
    return int(text)


def _sample(number: int, picture: Path, captions: list[str], tasks: Sequence[str]) -> Sample:
    first, voices = captions[0], test_voices()
    voice = voices[int(stream("coco voice", number).integers(len(voices)))]
    return Sample(build_messages("captioning", answer=first), [os.path.abspath(picture)], [], "captioning", {
        "id": str(number), "captions": captions, "caption": first, "answer": first,
        "recording": speech_ref(first, voice), "tasks": list(tasks)})
