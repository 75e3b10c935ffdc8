"""The 49 combinations of non-empty sets of text, image and speech: what is asked in each, or why nothing is.

A combination is asked where the world has one right answer to it: every task of the paper; the same questions answered
in text, in speech or in both, typed, spoken or half and half, with or without a picture; and inpainting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from omnidiff_lite.chat import Sample
from omnidiff_lite.config import Preset
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.evaluation.requests import Settings, media_refs, meta, requests_of
from omnidiff_lite.media import Image, Part, Speech, Text
from omnidiff_lite.world.voices import parse_speech, speech_ref

SETS = tuple(" + ".join(kinds) for size in (1, 2, 3) for kinds in combinations(("text", "image", "speech"), size))
INSTRUCTION = "Convert the speech to text."

Ask = Callable[[Sample, Settings], list[Part]]


# --- how a sample is asked --------------------------------------------------------------------------------------------


def as_trained(sample: Sample, settings: Settings) -> list[Part]:
    """What the user's turn of the sample holds."""
    return requests_of([sample], settings.root, settings.image_sizes[0])[0]


def typed(sample: Sample, settings: Settings) -> list[Part]:
    """The sample's spoken question, typed."""
    return [Text(meta(sample, "question")), *_pictures(sample, settings)]


def halved(sample: Sample, settings: Settings) -> list[Part]:
    """What the sample says, begun aloud and ended in writing: neither half says enough."""
    text, voice = parse_speech(media_refs(sample, "user")[1][0])
    words = text.split()
    middle = len(words) // 2
    spoken, written = " ".join(words[:middle]), " ".join(words[middle:])
    return [Speech(load_speech_ref(speech_ref(spoken, voice))), Text(written), *_pictures(sample, settings)]


def instructed(sample: Sample, settings: Settings) -> list[Part]:
    """A typed instruction beside the recording."""
    return [Text(INSTRUCTION), *as_trained(sample, settings)]


def _pictures(sample: Sample, settings: Settings) -> list[Part]:
    return [Image(load_image_ref(ref, settings.root, settings.image_sizes[0]))
            for ref in media_refs(sample, "user")[0]]


# --- the matrix -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One kind of request: test samples of the world's task `drawn`, put by `ask` (None: by inpainting).

    `task`: what the model knows this combination as; None: no task has it, so it must combine what it has learnt.
    """

    drawn: str
    ask: Ask | None = as_trained
    task: str | None = None


def _known(task: str) -> Cell:
    return Cell(task, as_trained, task)


CELLS: dict[tuple[str, str], Cell] = {
    ("text", "text"): _known("text_qa"),
    ("text", "image"): _known("t2i"),
    ("text", "speech"): _known("tts"),
    ("text", "text + speech"): Cell("text_qa"),
    ("image", "text"): _known("captioning"),
    ("image", "speech"): Cell("captioning"),
    ("image", "text + speech"): Cell("captioning"),
    ("speech", "text"): _known("asr"),
    ("speech", "image"): _known("s2i"),
    ("speech", "speech"): _known("sqa"),
    ("speech", "text + speech"): _known("sqa"),
    ("text + image", "text"): _known("vqa"),
    ("text + image", "image"): Cell("t2i", None),
    ("text + image", "speech"): Cell("svqa", typed),
    ("text + image", "text + speech"): Cell("svqa", typed),
    ("text + speech", "text"): Cell("asr", instructed),
    ("text + speech", "image"): Cell("s2i", halved),
    ("text + speech", "speech"): Cell("sqa", halved),
    ("text + speech", "text + speech"): Cell("sqa", halved),
    ("image + speech", "text"): _known("svqa"),
    ("image + speech", "speech"): _known("svqa"),
    ("image + speech", "text + speech"): _known("svqa"),
    ("text + image + speech", "text"): Cell("svqa", halved),
    ("text + image + speech", "speech"): Cell("svqa", halved),
    ("text + image + speech", "text + speech"): Cell("svqa", halved),
}


def undefined(inputs: str, outputs: str) -> str:
    """Why a cell that is not in `CELLS` has no right answer."""
    if outputs != "image":
        return "one request of the world asks for words or for a picture, not for both"
    return "a picture alone asks for words" if inputs == "image" else "inpainting takes its wish in writing alone"


def is_trained(cell: Cell, preset: Preset) -> bool:
    """Whether a stage of the preset trains on this combination; else it is zero-shot."""
    stages = (preset.training.stage1, preset.training.stage2, preset.training.stage3)
    return any(stage.mix.get(cell.task, 0) > 0 for stage in stages)
