"""The released data format: one conversation per line, with lists of its pictures and recordings.

    {"messages": [{"role": "user", "content": "Convert the speech to text.\\n<|audio|>"},
                  {"role": "assistant", "content": "a red circle"}], "images": [], "audios": ["clips/0001.wav"]}

As in the release, `conversations` may stand for `messages`, `from`/`value` for `role`/`content`, `human` and `gpt` for
`user` and `assistant`, and a `.json` file holds the same rows in one list. The kit also reads and writes the optional
keys `task` and `meta` (what evaluation needs: the reference answer, the choices, ...).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omnidiff_lite.chat import AUDIO, IMAGE, ROLES, Sample, task_of
from omnidiff_lite.config import Task
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.media import is_recipe, load_image_ref, load_speech_ref
from omnidiff_lite.data.members import is_member

ROLE_NAMES = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}


def read_samples(path: str | Path, root: str | Path | None = None) -> list[Sample]:
    """Every row of a `.jsonl` or `.json` file, checked; paths come back absolute.

    `root`: base of relative paths of pictures and recordings (default: the folder of the file). Raises `DataError` at
    the first fault: malformed JSON, an unknown role, a placeholder without a file or a missing file.
    """
    path = Path(path)
    root = Path(root) if root is not None else path.parent
    samples = [sample_of(row, root, where) for where, row in _rows(path)]
    if not samples:
        raise DataError(f"{path}: holds no samples; give one conversation a line")
    return samples


def write_samples(samples: Iterable[Sample], directory: str | Path, name: str = "samples",
                  image_size: int | None = None) -> Path:
    """Write `directory/name.jsonl`, with recipes drawn and spoken into `images/` and `audios/`; returns its path.
    One sample is in memory at a time.

    `image_size`: pixels of the drawn pictures. Files that samples already name are not copied: their absolute paths
    are written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for sample in samples:
            row = row_of(sample) | {"images": [_write_image(ref, directory, image_size) for ref in sample.images],
                                    "audios": [_write_audio(ref, directory) for ref in sample.audios]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def row_of(sample: Sample) -> dict[str, Any]:
    """A sample as a row of the format, references as they are."""
    return {"messages": sample.messages, "images": sample.images, "audios": sample.audios, "task": sample.task,
            "meta": sample.meta}


# --- reading ----------------------------------------------------------------------------------------------------------

def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) for each row."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a .jsonl or .json file in UTF-8") from None
    if path.suffix == ".json":
        rows = parse_row(text, str(path))
        if not isinstance(rows, list):
            raise DataError(f"{path}: holds a {type(rows).__name__}; a .json file holds one list of conversations")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", parse_row(line, f"{path}, line {number}")


def parse_row(text: str | bytes, where: str) -> Any:
    """JSON. Raises `DataError` naming the place."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not JSON ({error}); write one complete object a line") from None


def sample_of(row: Any, root: Path, where: str) -> Sample:
    """One row, checked. `where` names it in messages. Raises `DataError` like `read_samples`."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, not an object with 'messages', 'images' and 'audios'")
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: no conversation; give a list of turns under 'messages' (or 'conversations')")
    messages = [_message(turn, where) for turn in turns]
    images = _files(row, "images", IMAGE, messages, root, where)
    audios = _files(row, "audios", AUDIO, messages, root, where)
    task, meta = row.get("task"), row.get("meta") or {}
    if task is not None and task not in Task.__args__:
        raise DataError(f"{where}: unknown task {task!r}; choose one of {', '.join(Task.__args__)}, or leave it out")
    if not isinstance(meta, dict):
        raise DataError(f"{where}: 'meta' is a {type(meta).__name__}; give an object or leave it out")
    return Sample(messages, images, audios, task or task_of(messages), meta)


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: a turn is a {type(turn).__name__}, not an object with 'role' and 'content'")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLE_NAMES:
        raise DataError(f"{where}: unknown role {role!r}; use one of {', '.join(ROLE_NAMES)}")
    if not isinstance(content, str):
        raise DataError(f"{where}: the content of the {role} turn is {content!r}; give a text")
    return {"role": ROLE_NAMES[role], "content": content}


def _files(row: dict, key: str, placeholder: str, messages: list[dict[str, str]], root: Path, where: str) -> list[str]:
    """The files of one kind as absolute paths (recipes unchanged); as many as placeholders, and all exist."""
    refs = row.get(key) or []
    if not isinstance(refs, list) or not all(isinstance(ref, str) for ref in refs):
        raise DataError(f"{where}: {key!r} is {refs!r}; give a list of paths")
    wanted = sum(message["content"].count(placeholder) for message in messages)
    if wanted != len(refs):
        raise DataError(f"{where}: {wanted} {placeholder} in the messages but {len(refs)} {key}; give one for each")
    paths = [ref if is_recipe(ref) or is_member(ref) else os.path.abspath(root / ref) for ref in refs]
    missing = next((p for p in paths if not (is_recipe(p) or is_member(p) or os.path.isfile(p))), None)
    if missing is not None:
        raise DataError(f"{where}: {key} names {missing}, which is not there; check the path or give another root")
    return paths


# --- writing ----------------------------------------------------------------------------------------------------------

def _write_image(ref: str, directory: Path, size: int | None) -> str:
    if not is_recipe(ref):
        return ref if is_member(ref) else os.path.abspath(ref)
    name = f"images/{_digest(ref)}.png"
    if not (directory / name).exists():
        (directory / "images").mkdir(exist_ok=True)
        load_image_ref(ref, size=size).save(directory / name)
    return name


def _write_audio(ref: str, directory: Path) -> str:
    if not is_recipe(ref):
        return ref if is_member(ref) else os.path.abspath(ref)
    name = f"audios/{_digest(ref)}.wav"
    if not (directory / name).exists():
        load_speech_ref(ref).save(directory / name)
    return name


def _digest(ref: str) -> str:
    return hashlib.sha256(ref.encode()).hexdigest()[:16]
