"""The 49 combinations of non-empty sets of text, image and speech: what is asked in each, or why nothing is.

A combination is asked where the world has one right answer to it: every task of the paper; the same questions answered
in text, in speech or in both, typed, spoken or half and half, with or without a picture; and inpainting. The model is
asked as a user would ask it, by inputs and outputs alone: `chat.infer_task` decides which task this is, if any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from omnidiff_lite.chat import INSTRUCTIONS, TASKS, Sample, infer_task
from omnidiff_lite.config import Preset
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.evaluation.requests import Settings, media_refs, meta, requests_of
from omnidiff_lite.media import Image, Part, Speech, Text
from omnidiff_lite.world.voices import parse_speech, speech_ref

SETS = tuple(" + ".join(kinds) for size in (1, 2, 3) for kinds in combinations(("text", "image", "speech"), size))

Ask = Callable[[Sample, Settings], list[Part]]


# --- how a sample is asked --------------------------------------------------------------------------------------------


def as_trained(sample: Sample, settings: Settings) -> list[Part]:
    """The contents of the sample's user turn."""
    return requests_of([sample], settings.root, settings.image_sizes[0])[0]


def typed(sample: Sample, settings: Settings) -> list[Part]:
    """The sample's spoken question, typed."""
    return [Text(meta(sample, "question")), *_pictures(sample, settings)]


def halved(sample: Sample, settings: Settings) -> list[Part]:
    """What the sample says, the first half spoken and the second typed: neither half is enough alone."""
    text, voice = parse_speech(media_refs(sample, "user")[1][0])
    words = text.split()
    middle = len(words) // 2
    spoken, written = " ".join(words[:middle]), " ".join(words[middle:])
    return [Speech(load_speech_ref(speech_ref(spoken, voice))), Text(written), *_pictures(sample, settings)]


def instructed(sample: Sample, settings: Settings) -> list[Part]:
    """The instruction that recognition is trained with, typed by the user next to the recording."""
    return [Text(INSTRUCTIONS["asr"][0]), *as_trained(sample, settings)]


def _pictures(sample: Sample, settings: Settings) -> list[Part]:
    return [Image(load_image_ref(ref, settings.root, settings.image_sizes[0]))
            for ref in media_refs(sample, "user")[0]]


# --- the matrix -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One kind of request: test samples of the world's task `drawn`, asked through `ask` (None: inpainting)."""

    drawn: str
    ask: Ask | None = as_trained


CELLS: dict[tuple[str, str], Cell] = {
    ("text", "text"): Cell("text_qa"),
    ("text", "image"): Cell("t2i"),
    ("text", "speech"): Cell("tts"),
    ("text", "text + speech"): Cell("text_qa"),
    ("image", "text"): Cell("captioning"),
    ("image", "speech"): Cell("captioning"),
    ("image", "text + speech"): Cell("captioning"),
    ("speech", "text"): Cell("asr"),
    ("speech", "image"): Cell("s2i"),
    ("speech", "speech"): Cell("sqa"),
    ("speech", "text + speech"): Cell("sqa"),
    ("text + image", "text"): Cell("vqa"),
    ("text + image", "image"): Cell("t2i", None),
    ("text + image", "speech"): Cell("svqa", typed),
    ("text + image", "text + speech"): Cell("svqa", typed),
    ("text + speech", "text"): Cell("asr", instructed),
    ("text + speech", "image"): Cell("s2i", halved),
    ("text + speech", "speech"): Cell("sqa", halved),
    ("text + speech", "text + speech"): Cell("sqa", halved),
    ("image + speech", "text"): Cell("svqa"),
    ("image + speech", "speech"): Cell("svqa"),
    ("image + speech", "text + speech"): Cell("svqa"),
    ("text + image + speech", "text"): Cell("svqa", halved),
    ("text + image + speech", "speech"): Cell("svqa", halved),
    ("text + image + speech", "text + speech"): Cell("svqa", halved),
}


def undefined(inputs: str, outputs: str) -> str:
    """Why a cell that is not in `CELLS` has no right answer."""
    if outputs != "image":
        return "one request of the world asks for words or for a picture, not for both"
    return "a picture alone asks for words" if inputs == "image" else "inpainting takes its wish in writing alone"


TRAINED, PART, ZERO_SHOT = "trained", "part of a trained answer", "zero-shot"


def known_as(inputs: str, outputs: str, preset: Preset) -> str:
    """Whether the preset's stages train on a cell.

    `TRAINED`: they do. `PART`: they train on these inputs, but with text and speech in the answer, of which only one
    is requested. `ZERO_SHOT`: they train on nothing of the kind.
    """
    asked, cell = outputs.split(" + "), CELLS[inputs, outputs]
    task = cell.drawn if cell.ask is instructed else infer_task(set(inputs.split(" + ")), asked)
    stages = (preset.training.stage1, preset.training.stage2, preset.training.stage3)
    mixed = {name for stage in stages for name, share in stage.mix.items() if share > 0}
    if task in mixed:
        return TRAINED if set(TASKS[task].outputs) == set(asked) else PART
    return ZERO_SHOT
