"""LibriSpeech and LibriTTS as published (openslr.org/12 and /60): `<speaker>/<chapter>/` folders of recordings.

The directory is one split, such as LibriSpeech/test-clean, which the released scripts use for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.data.benchmark_rows import BenchmarkError, Row, read_lines, read_text

SPLIT = "give the folder of one split, whose folders are speakers, and theirs chapters"
AGAIN = "unpack the archive again"


Found = tuple[str, Sample | BenchmarkError]  # where a row stands, and the row or what is wrong with it


@dataclass(frozen=True)
class Said:
    """What one recording says; `where` the text stands; `fault`, what is wrong with it."""

    ident: str
    text: str
    where: str
    fault: str = ""


def read_librispeech(directory: Path) -> Iterator[Row]:
    """"asr" rows: `<speaker>-<chapter>-<n>.flac` and its line "ID WORDS" of `<speaker>-<chapter>.trans.txt`.

    Meta: "id", "speaker", "text" and "answer" (the words, in capitals as published). Raises `BenchmarkError` for a
    line without a recording, a recording without a line, and a line without words.
    """
    return _whole(librispeech_rows(directory))


def read_libritts(directory: Path) -> Iterator[Row]:
    """"tts" rows: `<id>.normalized.txt` is what to say, `<id>.wav` is the recording of the answer.

    Meta: "id", "speaker", "text" and "answer" (what to say). `evaluation.requests.reference_speech` gives the
    recordings, on which the judge's ceiling is measured. Raises `BenchmarkError` for a text without a recording, a
    recording without a text, and an empty text.
    """
    return _whole(libritts_rows(directory))


def librispeech_rows(directory: Path) -> Iterator[Found]:
    """Like `read_librispeech`, but a fault is yielded as its error, and the rows after it follow."""
    for chapter in _chapters(directory):
        for item, found in _matched(chapter, _transcript, ".flac"):
            yield item.where, found if isinstance(found, BenchmarkError) else Sample(
                build_messages("asr", answer=item.text), [], [found], "asr", _meta(item, chapter))


def libritts_rows(directory: Path) -> Iterator[Found]:
    """Like `read_libritts`, but a fault is yielded as its error, and the rows after it follow."""
    for chapter in _chapters(directory):
        for item, found in _matched(chapter, _texts, ".wav"):
            yield item.where, found if isinstance(found, BenchmarkError) else Sample(
                build_messages("tts", item.text, ""), [], [found], "tts", _meta(item, chapter))


def _whole(rows: Iterator[Found]) -> Iterator[Row]:
    """The rows of a benchmark, none of which may be left out."""
    for where, found in rows:
        if isinstance(found, BenchmarkError):
            raise found
        yield where, found


def _chapters(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*/*") if path.is_dir())


def _transcript(chapter: Path) -> Iterator[Said]:
    for where, line in read_lines(chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt", SPLIT):
        ident, _, words = line.partition(" ")
        yield Said(ident, words.strip(), where, "" if words.strip() else
                   f"{ident!r} has no words; a line is an id, a space and what is said")


def _texts(chapter: Path) -> Iterator[Said]:
    ending = ".normalized.txt"
    for path in chapter.glob(f"*{ending}"):
        ident = path.name.removesuffix(ending)
        try:
            text = read_text(path, AGAIN).strip()
            yield Said(ident, text, str(path), "" if text else f"is empty; {AGAIN}")
        except BenchmarkError as error:
            yield Said(ident, "", str(path), str(error).removeprefix(f"{path}: "))


def _matched(chapter: Path, texts: Callable[[Path], Iterator[Said]], suffix: str
             ) -> Iterator[tuple[Said, str | BenchmarkError]]:
    """Each text with the path of its recording, sorted by id, or what is wrong: every text needs a recording, and every
    recording a text. Recordings without a text come first."""
    recordings = {path.stem: path for path in chapter.glob(f"*{suffix}")}
    try:
        said = list(texts(chapter))
    except BenchmarkError as error:
        yield Said("", "", str(chapter)), error
        return
    for ident in sorted(recordings.keys() - {item.ident for item in said}):
        yield _fault(Said(ident, "", str(recordings[ident]),
                          f"has no text beside it; {AGAIN}, or take the recording away"))
    if not said and not recordings:
        yield _fault(Said("", "", str(chapter), f"holds neither texts nor {suffix} files; {SPLIT}"))
    for item in sorted(said, key=lambda item: item.ident):
        if item.fault:
            yield _fault(item)
        elif item.ident not in recordings:
            yield _fault(replace(item, fault=f"{item.ident}{suffix} is not there; {AGAIN}"))
        else:
            yield item, os.path.abspath(recordings[item.ident])


def _fault(item: Said) -> tuple[Said, BenchmarkError]:
    return item, BenchmarkError(f"{item.where}: {item.fault}")


def _meta(item: Said, chapter: Path) -> dict[str, str]:
    return {"id": item.ident, "speaker": chapter.parent.name, "text": item.text, "answer": item.text}
