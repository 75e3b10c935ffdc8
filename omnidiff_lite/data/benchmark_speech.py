"""LibriSpeech and LibriTTS as published (openslr.org/12 and /60): `<speaker>/<chapter>/` folders of recordings.

The directory is one split, such as LibriSpeech/test-clean, which the released scripts use for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.data.benchmark_rows import BenchmarkError, Row, read_lines, read_text

SPLIT = "give the folder of one split, whose folders are speakers, and theirs chapters"
AGAIN = "unpack the archive again"


@dataclass(frozen=True)
class Said:
    """What one recording says; `where` the text stands."""

    ident: str
    text: str
    where: str


def read_librispeech(directory: Path) -> Iterator[Row]:
    """"asr" rows: `<speaker>-<chapter>-<n>.flac` and its line "ID WORDS" of `<speaker>-<chapter>.trans.txt`.

    Meta: "id", "speaker", "text" and "answer" (the words, in capitals as published). Raises `BenchmarkError` for a
    line without a recording, a recording without a line, and a line without words.
    """
    for chapter in _chapters(directory):
        said = _transcript(chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt")
        for item, recording in _matched(chapter, said, ".flac"):
            yield item.where, Sample(build_messages("asr", answer=item.text), [], [recording], "asr",
                                     _meta(item, chapter))


def read_libritts(directory: Path) -> Iterator[Row]:
    """"tts" rows: `<id>.normalized.txt` is to be said, `<id>.wav` is the recording of the answer.

    Meta: "id", "speaker", "text" and "answer" (what to say). `evaluation.requests.reference_speech` gives the
    recordings, on which the judge's ceiling is measured. Raises `BenchmarkError` for a text without a recording, a
    recording without a text, and an empty text.
    """
    for chapter in _chapters(directory):
        for item, recording in _matched(chapter, _texts(chapter), ".wav"):
            yield item.where, Sample(build_messages("tts", item.text, ""), [], [recording], "tts",
                                     _meta(item, chapter))


def _chapters(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*/*") if path.is_dir())


def _transcript(path: Path) -> list[Said]:
    said = []
    for where, line in read_lines(path, SPLIT):
        ident, _, words = line.partition(" ")
        if not words.strip():
            raise BenchmarkError(f"{where}: {ident!r} has no words; a line is an id, a space and what is said")
        said.append(Said(ident, words.strip(), where))
    return said


def _texts(chapter: Path) -> list[Said]:
    ending = ".normalized.txt"
    said = [Said(path.name.removesuffix(ending), read_text(path, AGAIN).strip(), str(path))
            for path in chapter.glob(f"*{ending}")]
    silent = next((item for item in said if not item.text), None)
    if silent is not None:
        raise BenchmarkError(f"{silent.where}: is empty; {AGAIN}")
    return said


def _matched(chapter: Path, said: list[Said], suffix: str) -> Iterator[tuple[Said, str]]:
    """Each text with the path of its recording, sorted by id; every text has one, and every recording a text."""
    recordings = {path.stem: path for path in chapter.glob(f"*{suffix}")}
    unsaid = sorted(recordings.keys() - {item.ident for item in said})
    if unsaid:
        raise BenchmarkError(f"{recordings[unsaid[0]]}: has no text beside it; {AGAIN}, or take the recording away")
    if not said:
        raise BenchmarkError(f"{chapter}: holds neither texts nor {suffix} files; {SPLIT}")
    for item in sorted(said, key=lambda item: item.ident):
        if item.ident not in recordings:
            raise BenchmarkError(f"{item.where}: {item.ident}{suffix} is not there; {AGAIN}")
        yield item, os.path.abspath(recordings[item.ident])


def _meta(item: Said, chapter: Path) -> dict[str, str]:
    return {"id": item.ident, "speaker": chapter.parent.name, "text": item.text, "answer": item.text}
