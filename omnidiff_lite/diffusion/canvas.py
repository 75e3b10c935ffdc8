"""The canvas: an answer with undecided positions, which ids each may become, and how to read an answer off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from omnidiff_lite.vocabulary import Vocabulary


class Span(NamedTuple):
    """Positions start..stop-1 of the canvas hold one modality."""

    modality: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Canvas:
    """`ids` [N] with the mask id where undecided; `allowed`: which ids a modality's spans may become (none: any)."""

    ids: Tensor
    spans: Sequence[Span] = ()
    allowed: Mapping[str, tuple[range, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


class AnswerTokens(NamedTuple):
    """An answer split into text ids, speech codes at 12.5 Hz, and row-major image codes."""

    text: list[int]
    speech: list[int]
    image: list[int]


def answer_canvas(vocabulary: Vocabulary, outputs: Sequence[str], lengths: Mapping[str, int], markers: bool = True,
                  newline: int | None = None) -> Canvas:
    """An all-masked answer with room for `outputs` ("text", "speech", "image", in the order wanted).

    `lengths`: tokens of each, not counting closing markers. With `markers`, tokens whose places are certain are filled
    in from the start: begin_of_audio (the paper's pre-infilling), and begin_of_image and end_of_image, as a picture's
    size is known. Text and speech hold at least one token and may end early: after the first, their spans also allow
    the ids that end a turn. The turn's own closing, `<|im_end|>` and `newline` (the text tokenizer's id, if given),
    follows the last output. Without `markers` everything is masked, as in the released code, and every position may
    become any id that an answer can hold.
    """
    v, ids, spans = vocabulary, [], []
    for modality in outputs:
        if modality not in ("text", "speech", "image"):
            raise ValueError(f"output {modality!r} is none of 'text', 'speech', 'image'")
        if modality not in lengths:
            raise ValueError(f"lengths says nothing of {modality!r}")
        opening = {"speech": [v.begin_of_audio], "image": [v.begin_of_image]}.get(modality, [])
        ids += opening
        # The model decides where a recording ends, so its end_of_audio lies inside the span.
        room = lengths[modality] + (modality == "speech")
        if modality != "image":  # begin with content, so that no answer is empty
            spans.append(Span(f"first {modality}", len(ids), len(ids) + 1))
        spans.append(Span(modality, len(ids) + (modality != "image"), len(ids) + room))
        ids += [v.mask] * room
        ids += [v.end_of_image] if modality == "image" else []
    closing = [v.im_end] + ([] if newline is None else [newline])
    if outputs[-1] == "image":
        ids += closing
    else:
        spans[-1] = spans[-1]._replace(stop=len(ids) + len(closing))
        ids += [v.mask] * len(closing)
    if markers:
        return Canvas(torch.tensor(ids), tuple(spans), _allowed(v, newline))
    union = tuple({part: None for parts in _allowed(v, newline).values() for part in parts})
    marks = tuple(range(i, i + 1) for i in (v.begin_of_audio, v.begin_of_image, v.end_of_image))
    return Canvas(torch.full((len(ids),), v.mask), (Span("any", 0, len(ids)),), {"any": union + marks})


def inpainting_canvas(vocabulary: Vocabulary, codes: Tensor, mask: Tensor, newline: int | None = None) -> Canvas:
    """A picture with a hole: `codes` [h,w] of the image tokenizer, `mask` bool [h,w], True = to be repainted."""
    v = vocabulary
    if codes.shape != mask.shape:
        raise ValueError(f"codes {tuple(codes.shape)} and mask {tuple(mask.shape)} differ in shape")
    picture = torch.where(mask.bool().cpu(), v.mask, codes.cpu().long() + v.image_range.start).flatten()
    closing = [v.end_of_image, v.im_end] + ([] if newline is None else [newline])
    ids = torch.cat([torch.tensor([v.begin_of_image]), picture, torch.tensor(closing)])
    return Canvas(ids, (Span("image", 1, 1 + len(picture)),), _allowed(v, newline))


def _allowed(v: Vocabulary, newline: int | None) -> dict[str, tuple[range, ...]]:
    def single(*ids: int) -> tuple[range, ...]:
        return tuple(range(i, i + 1) for i in ids)

    line = () if newline is None else single(newline)
    return {"first text": (v.text_range,), "first speech": (v.speech_range,),
            "text": (v.text_range, *single(v.im_end, v.pad)),
            "speech": (v.speech_range, *single(v.end_of_audio, v.im_end, v.pad), *line),
            "image": (v.image_range,)}


def read_answer(vocabulary: Vocabulary, ids: Iterable[int], released: bool = False) -> AnswerTokens:
    """Split decoded `ids`: text up to the first `<|im_end|>`, speech up to the first end_of_audio, image codes.

    `released`: like the released script, take every id of a modality in order, wherever it stands; text ids then
    include the special ones.
    """
    v, ids = vocabulary, [int(i) for i in ids]
    if released:
        text = [i for i in ids if i < v.speech_range.start]
        return AnswerTokens(text, v.codes_of_speech(ids), v.codes_of_image(ids))
    text = [i for i in _until(ids, v.im_end) if i in v.text_range]
    return AnswerTokens(text, v.codes_of_speech(_until(ids, v.end_of_audio)), v.codes_of_image(ids))


def fit_image_codes(codes: Sequence[int], count: int) -> list[int]:
    """Exactly `count` codes, as in the release: cut, or filled up with the last one. Raises if there is none."""
    if not codes:
        raise ValueError("the answer holds no image token")
    return [*codes[:count], *[codes[-1]] * (count - len(codes))]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[:ids.index(end)] if end in ids else ids
