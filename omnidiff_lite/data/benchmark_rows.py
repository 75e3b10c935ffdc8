"""What the readers of published benchmarks share: one kind of error, files that must be there, and questions as rows.

A reader yields pairs (where, sample): `where` names the file, and the line if there is one, in every message.
"""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnidiff_lite.chat import IMAGE, Sample, build_messages

Row = tuple[str, Sample]

LETTERS = string.ascii_uppercase


class BenchmarkError(ValueError):
    """A benchmark's directory is not as published; the message names the file, the line and the fix."""


# --- files ------------------------------------------------------------------------------------------------------------


def read_text(path: Path, mend: str) -> str:
    """A whole text file. Raises `BenchmarkError` if it is missing or not UTF-8, with `mend` as the fix."""
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark, which some editors add
    except FileNotFoundError:
        raise BenchmarkError(f"{path}: is not there; {mend}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); {mend}") from None


def read_lines(path: Path, mend: str) -> Iterator[tuple[str, str]]:
    """(where, line) of each line that is not blank, counted from 1. Raises what `read_text` raises."""
    for number, line in enumerate(read_text(path, mend).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip("\r")


def existing(path: Path, where: str, mend: str) -> Path:
    """`path`, if it is a file. Raises `BenchmarkError` naming the place that asks for it."""
    if not path.is_file():
        raise BenchmarkError(f"{where}: names {path}, which is not there; {mend}")
    return path


def folder(path: Path, mend: str) -> Path:
    """`path`, if it is a folder. Raises `BenchmarkError` for anything else."""
    if not path.is_dir():
        raise BenchmarkError(f"{path}: no such folder; {mend}")
    return path


# --- values -----------------------------------------------------------------------------------------------------------


def parse(text: str, where: str) -> Any:
    """JSON. Raises `BenchmarkError` naming the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"{where}: not JSON ({error}); download the file again") from None


def field(row: Any, key: str, where: str) -> str:
    """The text or number under `key`, as text.

    Raises `BenchmarkError` if the row is not an object, lacks the key, or has nothing or something else there.
    """
    if not isinstance(row, dict):
        raise BenchmarkError(f"{where}: a {type(row).__name__}, not an object; download the file again")
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise BenchmarkError(f"{where}: {key!r} is {value!r}, not a text; give the file as published")
    return str(value).strip()


def yes_or_no_label(label: str, where: str) -> str:
    """"yes" or "no", from a label in any case. Raises `BenchmarkError` for another answer."""
    if label.lower() not in ("yes", "no"):
        raise BenchmarkError(f"{where}: the answer {label!r} is neither yes nor no; correct the line")
    return label.lower()


def letter_label(letter: str, choices: Sequence[str], where: str) -> str:
    """The letter of one of the choices, in capitals. Raises `BenchmarkError` for a letter beyond them."""
    allowed = LETTERS[:len(choices)]
    if len(letter) != 1 or letter.upper() not in allowed:
        raise BenchmarkError(f"{where}: the answer {letter!r} is outside {allowed[0]}..{allowed[-1]}, the letters of "
                             "its choices; correct the row")
    return letter.upper()


# --- rows -------------------------------------------------------------------------------------------------------------


def visual_question(ident: str, pictures: Sequence[Path], question: str, answer: str, *, kind: str,
                    choices: Sequence[str] = (), **meta: Any) -> Sample:
    """A "vqa" row: meta "id", "question" (as spoken), "text" (as typed), "answer", "kind", "choices", and `meta`.

    The pictures follow the text, one placeholder each. The benchmarks' authors rank their options by likelihood
    and so publish no prompt for a letter; the wording of the choices is the embedded world's.
    """
    text = with_choices(question, choices)
    messages = build_messages("vqa", text, answer)
    messages[0]["content"] += f"\n{IMAGE}" * (len(pictures) - 1)
    return Sample(messages, [os.path.abspath(path) for path in pictures], [], "vqa", {
        "id": ident, "question": question, "text": text, "answer": answer, "kind": kind, "choices": list(choices),
        **meta})


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question as typed: with its lettered choices, if it has any."""
    if not choices:
        return question
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices))
    return f"{question}{options}\nAnswer with the letter."
