"""POPE, MME-Perception and SEED-Bench-2-Plus as published: questions about one picture each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnidiff_lite.data.benchmark_rows import (BenchmarkError, Row, existing, field, folder, letter_label, parse,
                                               read_lines, read_text, visual_question, yes_or_no_label)

STRATEGIES = ("random", "popular", "adversarial")
SUBTASKS = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
PICTURE_SUFFIXES = (".jpg", ".png", ".jpeg")
SEED_FILE = "SEED-Bench-2-plus-text-rich.json"


def read_pope(directory: Path, parts: Sequence[str], pictures: Path) -> Iterator[Row]:
    """Questions of `coco_pope_<strategy>.json` (github.com/AoiDragon/POPE): one object per line.

    Keys: question_id, image (a file of COCO's val2014, in `pictures`), text, label (yes or no). `parts`: strategies.
    Meta "strategy" tells them apart; ids count from 1 in each file, so that meta "id" is "<strategy>/<question_id>".
    """
    for strategy in parts:
        path = directory / f"coco_pope_{strategy}.json"
        for where, line in read_lines(path, "give the folder that holds POPE's coco_pope_*.json files"):
            row = parse(line, where)
            picture = existing(pictures / field(row, "image", where), where, "give COCO's val2014 as `pictures`")
            answer = yes_or_no_label(field(row, "label", where), where)
            yield where, visual_question(f"{strategy}/{field(row, 'question_id', where)}", [picture],
                                         field(row, "text", where), answer, kind="existence", strategy=strategy)


# --- MME --------------------------------------------------------------------------------------------------------------


def read_mme(directory: Path, parts: Sequence[str]) -> Iterator[Row]:
    """Two questions per picture, in the layouts of MME_Benchmark_release_version; `parts`: subtasks, meta "kind".

    A subtask is a folder: `images/` and `questions_answers_YN/`, or pictures and texts side by side. `<picture>.txt`
    holds two lines "question, tab, Yes or No"; the questions already ask for yes or no. Meta "id" is
    "<subtask>/<picture>/<1 or 2>".
    """
    for subtask in parts:
        home = folder(directory / subtask, f"give the folder that holds MME's subtasks: {', '.join(SUBTASKS)}")
        apart = (home / "questions_answers_YN").is_dir()
        texts, pictures = (home / "questions_answers_YN", home / "images") if apart else (home, home)
        paths = sorted(texts.glob("*.txt"))
        if not paths:
            raise BenchmarkError(f"{texts}: holds no questions; MME has one .txt file a picture there")
        for path in paths:
            picture = _picture_of(path, pictures)
            for number, (where, question, answer) in enumerate(_pair(path), start=1):
                yield where, visual_question(f"{subtask}/{path.stem}/{number}", [picture], question, answer,
                                             kind=subtask)


def _pair(path: Path) -> list[tuple[str, str, str]]:
    """(where, question, answer) of the two questions about one picture."""
    pair = []
    for where, line in read_lines(path, "unpack MME again"):
        question, tab, answer = line.rpartition("\t")
        if not tab or not question.strip():
            raise BenchmarkError(f"{where}: is not a question, a tab and Yes or No; correct the line")
        pair.append((where, question.strip(), yes_or_no_label(answer.strip(), where)))
    if len(pair) != 2:
        raise BenchmarkError(f"{path}: holds {len(pair)} question{'s' * (len(pair) != 1)}; MME asks two a picture, "
                             "one a line")
    return pair


def _picture_of(path: Path, pictures: Path) -> Path:
    """The picture with the name of a text file. Names may contain dots, so the ending is appended."""
    candidates = [pictures / f"{path.stem}{suffix}" for suffix in PICTURE_SUFFIXES]
    found = next((picture for picture in candidates if picture.is_file()), None)
    return found or existing(candidates[0], str(path), f"the picture may end in {', '.join(PICTURE_SUFFIXES)}")


# --- SEED-Bench-2-Plus ------------------------------------------------------------------------------------------------


def read_seed2plus(directory: Path, pictures: Path) -> Iterator[Row]:
    """Questions with four choices of SEED-Bench-2-plus-text-rich.json (huggingface.co/datasets/AILab-CVC).

    The file is a list of questions, or an object with that list under "questions", as in SEED-Bench's DATASET.md.
    Keys: question_id, question, choice_a..choice_d (or choice_A..choice_D), answer (a letter), data_id (a file such
    as text_rich/1.png, in `pictures`), question_image_type (chart, map or web: meta "kind"; if missing,
    question_type_id).
    """
    path = directory / SEED_FILE
    data = parse(read_text(path, f"give the folder that holds {SEED_FILE} and text_rich/"), str(path))
    questions = data.get("questions") if isinstance(data, dict) else data
    if not isinstance(questions, list):
        raise BenchmarkError(f"{path}: holds no list of questions; download the file again")
    for number, row in enumerate(questions, start=1):
        where = f"{path}, question {number}"
        ident, name = field(row, "question_id", where), field(row, "data_id", where)
        choices = [field(row, _choice_key(row, letter), where) for letter in "abcd"]
        picture = existing(pictures / name, where, "unpack text_rich.zip beside the file, or give `pictures`")
        yield where, visual_question(
            ident, [picture], field(row, "question", where),
            letter_label(field(row, "answer", where), choices, where), choices=choices,
            kind=field(row, "question_image_type" if "question_image_type" in row else "question_type_id", where))


def _choice_key(row: dict[str, Any], letter: str) -> str:
    """SEED-Bench-2-Plus's own file has choice_A where the documentation of the series has choice_a."""
    return next((key for key in (f"choice_{letter}", f"choice_{letter.upper()}") if key in row), f"choice_{letter}")
