"""From a row of a published corpus to a sample of the kit: one function for each shape of training data."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnidiff_lite.chat import IMAGE, Sample, build_messages, task_of
from omnidiff_lite.data.corpus_files import Place
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.jsonl import ROLE_NAMES, sample_of
from omnidiff_lite.data.members import is_member
from omnidiff_lite.files import written_whole
from omnidiff_lite.world.voices import ANSWER_VOICE, speech_ref

if TYPE_CHECKING:
    from omnidiff_lite.data.corpora import Corpus

Row = dict[str, Any]
_HIDDEN = re.compile(r"<image>\s*")  # where LLaVA's format puts a picture


@dataclass(frozen=True)
class Source:
    """What a row comes from: its corpus, the corpus's directory, the folder for unpacked media, and its place."""

    corpus: Corpus
    directory: Path
    media: Path
    place: Place

    def value(self, row: Row, name: str) -> Any:
        """The row's value in the column of a field, "a.b" for b within a; None if it has none."""
        value: Any = row
        for key in self.corpus.fields[name].split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, row: Row, name: str = "text") -> str:
        """A text that is not blank. Raises `DataError`."""
        value = self.value(row, name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{self.corpus.fields[name]!r} is {value!r}, not a text; give the file as published")
        for word, mark in self.corpus.punctuation.items():
            value = value.replace(f" {word}", mark)
        return value.strip()

    def medium(self, row: Row, name: str) -> str:
        """The reference to a picture or recording, which must exist; unpacked if it is in the row itself."""
        pattern = self.corpus.fields[name]
        value = self._path(row, pattern) if "{" in pattern else self.value(row, name)
        if isinstance(value, dict) and value.get("bytes"):
            return self._unpacked(value)
        if isinstance(value, str) and is_member(value):
            return value
        if not isinstance(value, str):
            raise self.error(f"has no {name} in {pattern!r}; give the file as published")
        if not os.path.isfile(value):
            raise self.error(f"names {value}, which is not there; unpack the archives beside it")
        return value

    def error(self, fault: str) -> DataError:
        return DataError(f"{self.place.where}: {fault}")

    def _path(self, row: Row, pattern: str) -> str:
        """A path with {columns} filled in; a * stands for the one folder that matches."""
        values = {key: str(value) for key, value in row.items() if isinstance(value, (str, int))}
        try:
            path = pattern.format(**values, table=self.place.path.stem.removesuffix("_metadata"))
        except KeyError as missing:
            raise self.error(f"has no column {missing}; give the file as published") from None
        folder = self.place.path.parent
        if "*" not in pattern:
            return os.path.abspath(folder / path)
        root = Path(os.path.abspath(folder / path.partition("*")[0]))
        rest = path.partition("*/")[2]
        found = next((each for each in sorted(root.glob("*")) if (each / rest).is_file()), root / "*")
        return os.path.abspath(found / rest)

    def _unpacked(self, medium: dict[str, Any]) -> str:
        """The file with the bytes of a medium, which is complete if it exists. It is named by its row and its table,
        folders included, since subsets of a corpus have tables of the same name."""
        suffix = Path(medium.get("path") or "").suffix
        table = self.place.path.relative_to(self.directory).with_suffix("")
        path = self.media / table / f"{self.place.number:06d}{suffix}"
        if not path.is_file() or path.stat().st_size != len(medium["bytes"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as partial:
                partial.write_bytes(medium["bytes"])
        return os.path.abspath(path)


# --- shapes -----------------------------------------------------------------------------------------------------------

def conversation(row: Row, source: Source) -> Sample:
    """Turns of a chat, by role and content or from and value, and at most one picture, which follows the first text."""
    turns = source.value(row, "turns")
    if not isinstance(turns, list) or not turns:
        raise source.error(f"{source.corpus.fields['turns']!r} is {turns!r}, not a list of turns; give the file as "
                           "published")
    messages = [_message(turn, source) for turn in turns]
    images = []
    if "image" in source.corpus.fields and source.value(row, "image") is not None:
        images = [source.medium(row, "image")]
        asked = next((message for message in messages if message["role"] == "user"), None)
        if asked is None:
            raise source.error("a picture but no user turn; give the file as published")
        asked["content"] = f"{asked['content']}\n{IMAGE}"
    meta = {"source": row["data_source"]} if isinstance(row.get("data_source"), str) else {}
    return Sample(messages, images, [], task_of(messages), meta)


def _message(turn: Any, source: Source) -> dict[str, str]:
    role, content = ((turn.get("role", turn.get("from")), turn.get("content", turn.get("value")))
                     if isinstance(turn, dict) else (None, None))
    if role not in ROLE_NAMES or not isinstance(content, str):
        raise source.error(f"a turn is {turn!r}; it needs a role ({', '.join(ROLE_NAMES)}) and a text")
    return {"role": ROLE_NAMES[role], "content": _HIDDEN.sub("", content).strip()}


def caption(row: Row, source: Source) -> Sample:
    """A picture, to be described, and its caption."""
    words = source.text(row)
    return Sample(build_messages("captioning", answer=words), [source.medium(row, "image")], [], "captioning",
                  {"caption": words})


def picture(row: Row, source: Source) -> Sample:
    """A text, and the picture to be drawn from it."""
    words = source.text(row)
    return Sample(build_messages("t2i", words, ""), [source.medium(row, "image")], [], "t2i", {"caption": words})


def recording(row: Row, source: Source) -> Sample:
    """A recording, to be transcribed, and its words."""
    words = source.text(row)
    return Sample(build_messages("asr", answer=words), [], [source.medium(row, "audio")], "asr", {"text": words})


def reading(row: Row, source: Source) -> Sample:
    """A text and its recording, to be spoken."""
    words = source.text(row)
    return Sample(build_messages("tts", words, ""), [], [source.medium(row, "audio")], "tts", {"text": words})


def spoken_question(row: Row, source: Source) -> Sample:
    """A recorded question and a written answer, which the kit's answer voice speaks."""
    answer = source.text(row)
    spoken = [source.medium(row, "audio"), speech_ref(answer, ANSWER_VOICE)]
    return Sample(build_messages("sqa", answer=answer), [], spoken, "sqa",
                  {"question": source.text(row, "question"), "answer": answer})


def released(row: Row, source: Source) -> Sample:
    """A row of the released format, whose paths may begin with the folder it was packed in."""
    strip = source.corpus.fields.get("strip", "")
    rows = {kind: [str(ref).removeprefix(strip) for ref in row.get(kind) or []] for kind in ("images", "audios")}
    return sample_of(row | rows, source.directory, source.place.where)


SHAPES: dict[str, Callable[[Row, Source], Sample]] = {
    shape.__name__: shape for shape in (conversation, caption, picture, recording, reading, spoken_question, released)}
