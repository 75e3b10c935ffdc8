"""MMMU as published (huggingface.co/datasets/MMMU/MMMU): parquet files, one folder per subject, pictures inside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnidiff_lite.chat import Sample
from omnidiff_lite.data import parquet
from omnidiff_lite.data.benchmark_rows import LETTERS, BenchmarkError, Row, field, letter_label, visual_question
from omnidiff_lite.files import written_whole

MOST_PICTURES = 7  # columns image_1..image_7
COLUMNS = ["id", "question", "options", "answer", "question_type",
           *(f"image_{number}" for number in range(1, MOST_PICTURES + 1))]
ROWS_AT_ONCE = 32  # questions whose pictures are in memory together


def read_mmmu(directory: Path, pictures: Path) -> Iterator[Row]:
    """The questions of `validation-*.parquet`, in one subject's folder or in all below `directory`.

    Columns: id, question, options (the text of a Python list), answer (a letter), image_1..image_7 (bytes and path),
    question_type. "<image k>" in a text names the k-th picture; these markers stay, and the pictures follow the text in
    that order, unpacked into `pictures` as `<id>_<k>`. Meta "kind" is the subject. Raises `BenchmarkError`, also if
    pyarrow is missing.

    A few questions are "open": no choices, meta "answer" is words, or the text of a list of them. A few show several
    pictures, for which the kit's own "vqa" request has no room. `evaluation.benchmarks` scores the others, and says
    how many it left out.
    """
    for path in sorted(directory.glob("**/validation-*.parquet")):
        for number, row in enumerate(parquet_rows(path), start=1):
            where = f"{path}, row {number}"
            yield where, _sample(row, pictures, where)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file; a picture is {"bytes", "path"}, or None if there is none."""
    return parquet.parquet_rows(path, COLUMNS, ROWS_AT_ONCE, BenchmarkError)


def _sample(row: dict[str, Any], pictures: Path, where: str) -> Sample:
    ident, question = field(row, "id", where), field(row, "question", where)
    choices, answer = [], field(row, "answer", where)
    if field(row, "question_type", where) != "open":
        choices = _options(field(row, "options", where), where)
        answer = letter_label(answer, choices, where)
    shown = _shown(row, " ".join([question, *choices]), where)
    files = [_unpacked(image, pictures / f"{re.sub(r'[^0-9A-Za-z_-]', '_', ident)}_{number}", where)
             for number, image in shown.items()]
    subject = re.fullmatch(r"validation_(.+)_\d+", ident)  # validation_Art_Theory_12
    return visual_question(ident, files, question, answer, kind=subject[1] if subject else "", choices=choices)


def _options(text: str, where: str) -> list[str]:
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        options = None
    if not isinstance(options, list) or not 0 < len(options) <= len(LETTERS):
        raise BenchmarkError(f"{where}: options is {text!r}, not a Python list of choices; download the file again")
    return [str(option) for option in options]


def _shown(row: dict[str, Any], text: str, where: str) -> dict[int, dict[str, Any]]:
    """The pictures of a row by number; the first, and every one that the text names, must be there."""
    shown = {number: row[f"image_{number}"] for number in range(1, MOST_PICTURES + 1)
             if (row.get(f"image_{number}") or {}).get("bytes")}
    named = {int(number) for number in re.findall(r"<image (\d+)>", text)} | {1}
    absent = sorted(named - shown.keys())
    if absent:
        raise BenchmarkError(f"{where}: has no picture in image_{absent[0]}, which its text needs; download the file "
                             "again")
    return shown


def _unpacked(image: dict[str, Any], path: Path, where: str) -> Path:
    """The file with a picture's bytes, written unless it exists; a different size reveals an unfinished one."""
    path = path.with_name(path.name + (Path(image.get("path") or "").suffix or ".png"))
    try:
        if not path.is_file() or path.stat().st_size != len(image["bytes"]):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as partial:
                partial.write_bytes(image["bytes"])
    except OSError as error:
        raise BenchmarkError(f"{where}: its picture cannot be unpacked ({error}); give a folder that can be written as "
                             "`pictures`") from None
    return path
