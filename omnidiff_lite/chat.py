"""Messages with text, images and speech <-> one token sequence; the released prompts of every task.

ChatML turns (facts: tools/inference.py and dataset_qwen2.py of the release):

    <|im_start|>user\\nConvert the speech to text.\\n<|audio|><|im_end|>\\n<|im_start|>assistant\\n ... <|im_end|>\\n

`<|image|>` becomes begin_of_image, codes, end_of_image. `<|audio|>` becomes continuous frames in a user turn
(begin_of_audio, one context_of_audio per frame, end_of_audio), and discrete codes in an assistant turn or in a user
turn whose recording comes without frames (`denoiser.speech_input` "discrete", which is not in the paper).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Sequence

from omnidiff_lite.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100  # label of what is not predicted
IMAGE, AUDIO = "<|image|>", "<|audio|>"
ROLES = ("system", "user", "assistant")

# The eight that released training draws from (trainer_v4_51_3.py, get_t2i_prompt); inference uses the first.
T2I_PROMPTS = (
    "Generate an image based on the provided text description.",
    "Produce an image that matches the details in the given text.",
    "Generate a picture that aligns with the provided text.",
    "Create an artwork from the given text prompt.",
    "Translate the given description into an image.",
    "Produce a high-quality image from the provided description.",
    "Synthesize an image that matches the provided text description.",
    "Generate a picture that captures the essence of the text.",
)
# The kit's own: the paper's only captioning prompt is figure 1's, which the first one corrects.
CAPTION_PROMPTS = (
    "Describe the image in detail.",
    "What does the image show?",
    "Write a caption for the image.",
    "Tell me what you see in the picture.",
)
S2I_SYSTEM = "Please generate an image based on the input audio."
SQA_SYSTEM = "Please response the input audio."
SVQA_SYSTEM = "Please response the input audio based on the given image."


@dataclass(frozen=True)
class TaskFormat:
    """How one task is worded. `{text}` is the text input; `inputs` and `outputs` are modalities."""

    inputs: frozenset[str]
    outputs: tuple[str, ...]
    user: str
    system: str | None = None
    answer: str = "{answer}"


def _task(inputs: str, outputs: str, user: str, system: str | None = None, answer: str = "{answer}") -> TaskFormat:
    return TaskFormat(frozenset(inputs.split("+")), tuple(outputs.split("+")), user, system, answer)


TASKS: dict[str, TaskFormat] = {
    "text_qa": _task("text", "text", "{text}"),
    "captioning": _task("image", "text", f"{CAPTION_PROMPTS[0]}\n{IMAGE}"),
    "vqa": _task("text+image", "text", f"{{text}}\n{IMAGE}"),
    "t2i": _task("text", "image", f"{T2I_PROMPTS[0]}\n{{text}}", answer=IMAGE),
    "asr": _task("speech", "text", f"Convert the speech to text.\n{AUDIO}"),
    "tts": _task("text", "speech", "Convert the text to speech.\n{text}", answer=AUDIO),
    "sqa": _task("speech", "text+speech", AUDIO, SQA_SYSTEM, f"{{answer}}\n{AUDIO}"),
    "svqa": _task("speech+image", "text+speech", f"{AUDIO}\n{IMAGE}", SVQA_SYSTEM, f"{{answer}}\n{AUDIO}"),
    "s2i": _task("speech", "image", AUDIO, S2I_SYSTEM, IMAGE),
}
INSTRUCTIONS = {"asr": (TASKS["asr"].user.splitlines()[0],), "captioning": CAPTION_PROMPTS}  # given with one medium


@dataclass
class Sample:
    """One row of the released jsonl format. Media references are paths, or recipes of the embedded world.

    `messages`: dicts with "role" and "content"; the content's `<|image|>` and `<|audio|>` stand for the entries of
    `images` and `audios`, in order. `meta` carries what evaluation needs (the reference answer, the scene, ...).
    """

    messages: list[dict[str, str]]
    images: list[str] = field(default_factory=list)
    audios: list[str] = field(default_factory=list)
    task: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpeechTokens:
    """One recording as tokens: discrete `codes` (12.5 Hz), and the number of continuous `frames`, queries included."""

    codes: Sequence[int] = ()
    frames: int = 0


class ChatError(ValueError):
    """Messages whose placeholders, roles or media do not match."""


def infer_task(inputs: set[str], outputs: Sequence[str]) -> str | None:
    """The named task for a set of inputs and outputs, or None where the paper names none.

    Text to text is text QA, an image alone to text is captioning; spoken questions get text, speech or both.
    """
    wanted, fitting = set(outputs), [name for name, task in TASKS.items() if task.inputs == inputs]
    exact = [name for name in fitting if set(TASKS[name].outputs) == wanted]
    part = [name for name in fitting if wanted < set(TASKS[name].outputs)]
    return next(iter(exact + part), None)


def instructed_task(text: str, media: set[str], outputs: Sequence[str]) -> str | None:
    """The task for these media whose instruction `text` is, word for word: a recording with "Convert the speech to
    text." is recognition. None if there is no such task, or if it has other `outputs`."""
    fitting = [name for name, task in TASKS.items() if task.inputs == media and set(task.outputs) == set(outputs)]
    return next((name for name in fitting if text.strip() in INSTRUCTIONS.get(name, ())), None)


def task_of(messages: list[dict[str, str]]) -> str:
    """The task of a conversation in the released format, which does not name it.

    Decided by the media in the user's and the assistant's turns; the released instructions tell recognition from
    spoken questions, and captioning from visual ones.
    """
    user, answer = ("\n".join(m["content"] for m in messages if m["role"] == role) for role in ("user", "assistant"))
    if AUDIO in user:
        if IMAGE in answer:
            return "s2i"
        if IMAGE in user:
            return "svqa"
        return "asr" if user.startswith("Convert the speech to text") and AUDIO not in answer else "sqa"
    if IMAGE in answer:
        return "t2i"
    if IMAGE in user:
        return "captioning" if user.replace(IMAGE, "").strip() in ("", *CAPTION_PROMPTS) else "vqa"
    return "tts" if AUDIO in answer else "text_qa"


def build_messages(task: str, text: str | None = None, answer: str | None = None, rng: Any = None
                   ) -> list[dict[str, str]]:
    """The messages of a named task. With `answer`, the assistant's turn too (speech and image as placeholders).

    `rng` (numpy Generator): draws one of the paraphrases for text-to-image and captioning, as training does; without
    it, the first is used, as in inference. Raises `ChatError` for an unknown task or a missing text.
    """
    if task not in TASKS:
        raise ChatError(f"no task {task!r}; choose one of {', '.join(TASKS)}")
    form = TASKS[task]
    if "{text}" in form.user and text is None:
        raise ChatError(f"task {task!r} needs a text")
    user = form.user.replace("{text}", text or "")
    for prompts in (T2I_PROMPTS, CAPTION_PROMPTS):
        if rng is not None and form.user.startswith(prompts[0]):
            user = user.replace(prompts[0], prompts[int(rng.integers(len(prompts)))], 1)
    messages = [{"role": "system", "content": form.system}] if form.system else []
    messages.append({"role": "user", "content": user})
    if answer is not None:
        messages.append({"role": "assistant", "content": form.answer.replace("{answer}", answer)})
    return messages


def compose_messages(inputs: Sequence[str], outputs: Sequence[str], text: str = "") -> list[dict[str, str]]:
    """Messages for a set of inputs and outputs that no task of the paper names.

    The system turn is the nearest task's; the user turn holds speech, text and image in that order.
    """
    if "image" in outputs:
        system = S2I_SYSTEM if "speech" in inputs else None
        text = text if "speech" in inputs or not text else f"{T2I_PROMPTS[0]}\n{text}"
    elif "speech" in inputs or "speech" in outputs:
        system = SVQA_SYSTEM if "image" in inputs else SQA_SYSTEM
    else:
        system = None
    parts = [AUDIO] * inputs.count("speech") + ([text] if text else []) + [IMAGE] * inputs.count("image")
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": "\n".join(parts)}]


def released_inference_messages(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put a newline before the audio in S2I and spoken QA, as the released inference script does; training has none."""
    return [{**m, "content": "\n" + m["content"]} if m["role"] == "user" and m["content"] == AUDIO else m
            for m in messages]


class ChatEncoder:
    """Messages to ids and labels, piece by piece, as the released training code tokenizes them."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
        self.vocabulary, self.tokenizer = vocabulary, tokenizer

    def sample(self, messages: list[dict[str, str]], images: Sequence[Sequence[int]] = (),
               audios: Sequence[SpeechTokens] = ()) -> tuple[list[int], list[int]]:
        """Ids and labels of a whole conversation. `images`: row-major codes; `audios`: tokens, both in order.

        Labels are -100 except for each assistant turn's content, its `<|im_end|>` and the newline after it
        (dataset_qwen2.py:807-831). Raises `ChatError` where placeholders and media do not match.
        """
        ids: list[int] = []
        labels: list[int] = []
        pictures, recordings = iter(images), iter(audios)
        self._count(messages, len(images), len(audios))
        for message in messages:
            header = [self.vocabulary.im_start, *self._text(message["role"] + "\n")]
            body = self._content(message, pictures, recordings)
            body += [self.vocabulary.im_end, *self._text("\n")]
            ids += header + body
            labels += [IGNORE] * len(header)
            labels += body if message["role"] == "assistant" else [IGNORE] * len(body)
        return ids, labels

    def prompt(self, messages: list[dict[str, str]], images: Sequence[Sequence[int]] = (),
               audios: Sequence[SpeechTokens] = ()) -> list[int]:
        """Ids up to and including the assistant's header; a final assistant turn is left out."""
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        ids, _ = self.sample(messages, images, audios)
        return ids + [self.vocabulary.im_start, *self._text("assistant\n")]

    def _content(self, message: dict[str, str], pictures: Any, recordings: Any) -> list[int]:
        v, ids = self.vocabulary, []
        for piece in re.split(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})", message["content"]):
            if piece == IMAGE:
                ids += [v.begin_of_image, *v.image_ids(next(pictures)), v.end_of_image]
            elif piece == AUDIO:
                speech = next(recordings)
                heard = speech.frames and message["role"] != "assistant"
                body = [v.context_of_audio] * speech.frames if heard else v.speech_ids(speech.codes)
                ids += [v.begin_of_audio, *body, v.end_of_audio]
            elif piece:
                ids += self._text(piece)
        return ids

    def _text(self, text: str) -> list[int]:
        from omnidiff_lite.tokenizers.text import encode_text  # here: samples and prompts need no transformers

        return encode_text(self.tokenizer, text)

    @staticmethod
    def _count(messages: list[dict[str, str]], images: int, audios: int) -> None:
        for message in messages:
            if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise ChatError(f"a message needs a role of {', '.join(ROLES)} and a text content, got {message!r}")
        text = "".join(m["content"] for m in messages)
        for token, given, what in ((IMAGE, images, "images"), (AUDIO, audios, "audios")):
            if text.count(token) != given:
                raise ChatError(f"{text.count(token)} {token} in the messages but {given} {what}")
