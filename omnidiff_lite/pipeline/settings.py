"""What a system needs besides its weights: picture sizes, answer lengths, decoding; and the canvas of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from omnidiff_lite.chat import IGNORE, TASKS, ChatEncoder, build_messages
from omnidiff_lite.config import ConfigError, Preset
from omnidiff_lite.diffusion.canvas import Canvas, Span, answer_canvas
from omnidiff_lite.diffusion.guidance import unconditional_prompt
from omnidiff_lite.diffusion.settings import DecodingConfig
from omnidiff_lite.sizes import FRAME_SECONDS, QUERY_FRAMES, TOKENS_PER_SECOND
from omnidiff_lite.strict import from_dict
from omnidiff_lite.tokenizers.text import encode_text

if TYPE_CHECKING:
    from omnidiff_lite.data.encode import EncodedSample
    from omnidiff_lite.pipeline.requests import Request
    from omnidiff_lite.tokenizers import Tokenizers
    from omnidiff_lite.vocabulary import Vocabulary

Decoding = Mapping[str, Any] | str | None  # a style, or fields of DecodingConfig, optionally with "style"
STYLES = ("paper", "released")
_OWN = ("length", "seed", "allowed_ids", "guidance_prompt_ids")  # what the pipeline itself sets for each request
SHORTEST = 4  # masks
WORLD_NOTE = ("This model knows only the kit's small drawn world of coloured shapes and synthetic voices: expect no "
              "sense outside of it, and at the smoke preset, which trains for minutes, none at all, only the right "
              "form.")


@dataclass(frozen=True)
class AnswerLengths:
    """Adaptive token length (section 3.4): how many masks an answer starts from. The defaults are the paper's.

    Synthesis: `speech_per_text` x text tokens + `speech_extra`; recognition: `text_per_speech` x frames + `text_extra`.
    """

    text: int = 64  # masks of a text answer
    texts: dict[str, int] = field(default_factory=dict)  # task -> masks of its text answers, if it has its own number
    speech: int = 128  # masks of a whole spoken sentence
    spoken: int = 128  # masks of an answer in text and speech
    spokens: dict[str, int] = field(default_factory=dict)  # task -> the same, if it has its own number
    spoken_text: int = 32  # of these, the most that its text takes
    speech_per_text: float = 3.5
    speech_extra: int = 0
    text_per_speech: float = 0.2
    text_extra: int = 0

    @classmethod
    def fit(cls, datasets: Mapping[str, Sequence[EncodedSample]], chat: ChatEncoder,
            quantile: float = 0.98) -> AnswerLengths:
        """Lengths that fit `quantile` of the training answers, closing tokens included; fitted lines if they adapt."""
        found: dict[str, Any] = {}

        def lengths_of(tasks: Sequence[str]) -> tuple[list[int], dict[str, int]]:
            """The lengths of all these tasks' answers, and by task the length that fits its own."""
            own = {task: [len(_answer(s)) for s in datasets[task]] for task in tasks if datasets.get(task)}
            return [n for ns in own.values() for n in ns], {task: _holding(ns, quantile) for task, ns in own.items()}

        texts, found["texts"] = lengths_of(("text_qa", "captioning", "vqa"))
        spoken, found["spokens"] = lengths_of(("sqa", "svqa"))
        if texts:
            found["text"] = _holding(texts, quantile)
        if datasets.get("tts"):
            found["speech"] = _holding([len(_answer(s)) for s in datasets["tts"]], quantile)
        if spoken:
            found["spoken"] = _holding(spoken, quantile)
            leads = [list(_answer(s)).index(chat.vocabulary.begin_of_audio) + 1
                     for task in found["spokens"] for s in datasets[task]]
            found["spoken_text"] = _holding(leads, quantile)
        if datasets.get("tts"):
            around = len(chat.prompt(build_messages("tts", "")))
            asked = [int((s.labels == IGNORE).sum()) - around for s in datasets["tts"]]
            found["speech_per_text"], found["speech_extra"] = _line(asked, datasets["tts"], quantile)
        if datasets.get("asr"):
            asked = [_frames(s, chat.vocabulary) for s in datasets["asr"]]
            found["text_per_speech"], found["text_extra"] = _line(asked, datasets["asr"], quantile)
        return cls(**found)


def _holding(lengths: Sequence[int], quantile: float) -> int:
    return round(float(np.quantile(lengths, quantile)))


def _answer(sample: EncodedSample) -> np.ndarray:
    """The first answer of a conversation."""
    answers = sample.labels != IGNORE
    first = sample.labels[np.argmax(answers):]
    return first[:np.argmin(first != IGNORE)] if (first == IGNORE).any() else first


def _frames(sample: EncodedSample, vocabulary: Vocabulary) -> float:
    """Frames of a sample's user speech; if it is given as tokens, the number it would have had."""
    codes = len(vocabulary.codes_of_speech(sample.ids[sample.labels == IGNORE]))
    return codes / TOKENS_PER_SECOND / FRAME_SECONDS + QUERY_FRAMES if codes else len(sample.frames)


def _line(asked: list[float], samples: Sequence[EncodedSample], quantile: float) -> tuple[float, int]:
    """Slope of answer length over input length, and the offset that leaves 1 - `quantile` of the answers above it."""
    given = np.array([len(_answer(s)) for s in samples], float)
    slope = float(np.polyfit(asked, given, 1)[0]) if len(set(asked)) > 1 else 0.0
    return round(slope, 4), int(np.ceil(np.quantile(given - slope * np.array(asked), quantile)))


@dataclass(frozen=True)
class SystemSettings:
    """`system.json` of a checkpoint. The defaults are the released system's."""

    preset: str = "full"
    understanding_size: int = 512
    generation_size: int = 256
    lengths: AnswerLengths = AnswerLengths()
    decoding: dict[str, dict[str, Any]] = field(default_factory=dict)  # task -> fields that differ from the paper's
    style: Literal["paper", "released"] = "paper"  # of decoding, if a call names none
    note: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def check_decoding(task: str, changes: Mapping[str, Any], own: Mapping[str, Any] = {}) -> None:
    """Raise `ConfigError` for an unknown field of `DecodingConfig`, a wrong type, a value out of range, or a field that
    the pipeline itself sets for each request. `own`: a system's settings for the task, to which `changes` apply."""
    changes = dict(changes)
    style = changes.pop("style", STYLES[0])
    if style not in STYLES:
        raise ConfigError(f"style: {style!r} is none of {', '.join(STYLES)}")
    for key in changes.keys() & set(_OWN):
        raise ConfigError(f"{key}: given by the pipeline to each request; it cannot be set for all")
    config = getattr(DecodingConfig, style)(task).replace(**own if style == STYLES[0] else {})
    from_dict(DecodingConfig, {f.name: getattr(config, f.name) for f in fields(DecodingConfig)} | changes)


def check_decodings(preset: Preset) -> None:
    """`check_decoding` of a preset's settings for each task: before training, not at the first answer after it."""
    for task, changes in preset.decoding.items():
        check_decoding(task, changes)


def answer_canvas_of(settings: SystemSettings, tokenizers: Tokenizers, request: Request, outputs: Sequence[str],
                     prefill: Mapping[float, int]) -> Canvas:
    """The masked answer of a request: adaptive length, markers and allowed ids by modality.

    `prefill`: tokens put into an answer of text and speech from the start, by place as a fraction (section 3.4).
    """
    spoken = TASKS[request.task].outputs if request.task else tuple(outputs)
    if spoken == ("text", "speech"):  # even if only one of the two is wanted: the model was trained to give both
        return spoken_canvas(tokenizers, *spoken_room(settings.lengths, request), prefill)
    canvas = answer_canvas(tokenizers.vocabulary, outputs, answer_room(settings, tokenizers, request),
                           newline=newline_id(tokenizers))
    return replace(canvas, allowed={**canvas.allowed, "first text": (tokenizers.words,)})


def spoken_room(lengths: AnswerLengths, request: Request) -> tuple[int, int]:
    """Masks of an answer in text and speech: the most that its text takes, and the total.

    If a picture is shown without a question, a whole sentence describes it.
    """
    if request.text or request.speech:
        return lengths.spoken_text, lengths.spokens.get(request.task or "", lengths.spoken)
    return lengths.text, lengths.text + lengths.speech


def answer_room(settings: SystemSettings, tokenizers: Tokenizers, request: Request) -> dict[str, int]:
    """Masks per modality."""
    lengths = settings.lengths
    side = image_side(settings, tokenizers)
    lead, spoken = spoken_room(lengths, request)
    room = {"text": lengths.texts.get(request.task or "", lengths.text), "speech": spoken - lead, "image": side * side}
    if request.task == "asr":
        frames = sum(w.seconds for w in request.speech) / FRAME_SECONDS + QUERY_FRAMES
        room["text"] = max(SHORTEST, round(lengths.text_per_speech * frames) + lengths.text_extra)
    if request.task == "tts":
        tokens = len(encode_text(tokenizers.text, request.text))
        room["speech"] = max(SHORTEST, round(lengths.speech_per_text * tokens) + lengths.speech_extra)
    return room


def image_side(settings: SystemSettings, tokenizers: Tokenizers) -> int:
    """Tokens along one side of a picture in an answer."""
    return settings.generation_size // tokenizers.image.config.factor


def spoken_canvas(tokenizers: Tokenizers, lead: int, n: int, prefill: Mapping[float, int] = {}) -> Canvas:
    """`n` masks for text, then the same in speech. Without `prefill` the model itself places begin_of_audio, within the
    first `lead` masks.

    After these come only speech codes, at least one, so that every answer can be heard.
    """
    v = tokenizers.vocabulary
    ends = tuple(range(i, i + 1) for i in (v.end_of_audio, v.im_end, v.pad, newline_id(tokenizers)))
    allowed = {"first text": (tokenizers.words,), "first speech": (v.speech_range,), "speech": (v.speech_range, *ends),
               "lead": (v.text_range, v.speech_range, range(v.begin_of_audio, v.begin_of_audio + 1))}
    spans = (Span("first text", 0, 1), Span("lead", 1, lead), Span("first speech", lead, lead + 1),
             Span("speech", lead + 1, n))
    ids = torch.full((n,), v.mask)
    for place, token in prefill.items():
        ids[int(place * n)] = token
    return Canvas(ids, spans, allowed)


def newline_id(tokenizers: Tokenizers) -> int:
    """The text id of a newline, which follows the end of a turn."""
    return encode_text(tokenizers.text, "\n")[0]


def decoding_style(settings: SystemSettings, decoding: Decoding) -> tuple[str, dict[str, Any]]:
    """ "paper" or "released", and the fields that the caller changes. Raises `ConfigError` for any other style."""
    changes = {"style": decoding} if isinstance(decoding, str) else dict(decoding or {})
    style = changes.pop("style", settings.style)
    if style not in STYLES:
        raise ConfigError(f"decoding style {style!r}: choose one of {', '.join(STYLES)}")
    return style, changes


def decoding_config(settings: SystemSettings, task: str | None, outputs: Sequence[str], decoding: Decoding,
                    chat: ChatEncoder, side: int) -> DecodingConfig:
    """The paper's settings for the task, then this system's, then the caller's. A misspelt field is a `ConfigError`.

    Or the released script's, then the caller's; an answer of `side` x `side` image tokens also has its three markers
    and a newline (260 tokens as in the release).
    """
    named = task or nearest_task(outputs)
    style, changes = decoding_style(settings, decoding)
    if style == "released":
        config = DecodingConfig.released(named, chat.vocabulary)
        if TASKS[named].outputs == ("image",):
            config = config.replace(length=side * side + 4, steps=side * side + 4)
    else:
        own = settings.decoding.get(named, {})
        config = DecodingConfig.paper(named, chat.vocabulary).replace(**own)
        if "length" in own or "length" in changes:
            raise ConfigError("length: an answer's length adapts to what is asked; only the released style takes one")
    config = config.replace(**changes)
    if config.guidance_scale != config.guidance_off and config.guidance_prompt_ids is None:
        config = config.replace(guidance_prompt_ids=unconditional_prompt(named, chat))
    return config


def nearest_task(outputs: Sequence[str]) -> str:
    """The task whose decoding settings an unnamed combination borrows."""
    return "t2i" if "image" in outputs else "svqa" if len(outputs) > 1 else "tts" if "speech" in outputs else "vqa"

