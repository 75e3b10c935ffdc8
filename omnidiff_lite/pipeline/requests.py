"""A user's inputs as messages and media: which task they are, and how it is worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import PIL.Image

from omnidiff_lite.chat import (AUDIO, IMAGE, TASKS, build_messages, compose_messages, infer_task,
                                instructed_task)
from omnidiff_lite.media import Image, Part, Speech, Text, Waveform

MODALITIES = ("text", "speech", "image")  # also the order of an answer with several


class RequestError(ValueError):
    """Inputs, outputs or settings that do not fit together."""


@dataclass(frozen=True)
class Request:
    """One question: messages, media in the order of the placeholders, the text, and the task if it has a name."""

    messages: list[dict[str, str]]
    task: str | None
    text: str = ""
    images: list[PIL.Image.Image] = field(default_factory=list)
    speech: list[Waveform] = field(default_factory=list)

    @property
    def size(self) -> float:
        """Roughly how long its prompt is."""
        return len(self.text) + 17 * sum(w.seconds for w in self.speech) + 100 * len(self.images)


def read_request(parts: Sequence[Part], outputs: Sequence[str], task: str | None = None) -> Request:
    """Load the media and build the messages.

    The task is the paper's for these inputs and outputs; other combinations are worded like the nearest task. Text
    beside a single medium that is a task's instruction, word for word, selects that task. Raises `RequestError` for no
    input or a task that the inputs do not fit, `MediaError` for a bad file.
    """
    parts = [p for p in parts if not isinstance(p, Text) or p.text.strip()]
    if not parts:
        raise RequestError("no input: give at least one Text, Image or Speech")
    text = "\n".join(p.text for p in parts if isinstance(p, Text))
    if IMAGE in text or AUDIO in text:
        raise RequestError(f"the text holds {IMAGE} or {AUDIO}, which stand for media: give the picture or "
                           "the recording")
    images = [p.load() for p in parts if isinstance(p, Image)]
    speech = [p.load() for p in parts if isinstance(p, Speech)]
    media = ["speech"] * len(speech) + ["image"] * len(images)
    if task is None and len(media) == 1 and (task := instructed_task(text, set(media), outputs)):
        text = ""
    kinds = ["text"] * bool(text) + media
    task = task or (infer_task(set(kinds), outputs) if len(kinds) == len(set(kinds)) else None)
    if task is None:
        return Request(compose_messages(kinds, outputs, text), None, text, images, speech)
    _check(task, set(kinds), outputs)
    return Request(build_messages(task, text), task, text, images, speech)


def _check(task: str, kinds: set[str], outputs: Sequence[str]) -> None:
    if task not in TASKS:
        raise RequestError(f"no task {task!r}: choose one of {', '.join(TASKS)}")
    form = TASKS[task]
    if kinds != form.inputs or not set(outputs) <= set(form.outputs):
        raise RequestError(f"task {task!r} takes {' and '.join(sorted(form.inputs))} and gives "
                           f"{' and '.join(form.outputs)}; given {' and '.join(sorted(kinds)) or 'nothing'}, "
                           f"asked for {' and '.join(outputs)}")
