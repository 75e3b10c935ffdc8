"""Test samples to model requests and answers. Evaluations ask the model through `ask`, or through `ask_parts` if they
ask other requests than the samples' own; timed requests are sent one by one, and inpainting has its own call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import PIL.Image

from omnidiff_lite.chat import AUDIO, IMAGE, T2I_PROMPTS, TASKS, ChatError, Sample
from omnidiff_lite.config import Preset
from omnidiff_lite.data.media import load_image_ref, load_speech_ref
from omnidiff_lite.media import Image, Part, Speech, Text, Waveform
from omnidiff_lite.processes import over_processes

CHUNK = 256  # samples whose media are in memory at once


@dataclass(frozen=True)
class Settings:
    """How to evaluate, apart from the task's own switches. `row` names the method in the tables."""

    row: str = "diffusion"
    seed: int = 0
    batch: int = 16
    bootstrap: int = 1000
    decoding: Mapping[str, Any] | None = None  # fields of DecodingConfig that differ from the model's own
    root: str | Path | None = None  # base of relative media paths
    image_sizes: tuple[int | None, int | None] = (None, None)  # pixels of a drawn picture in a question, in an answer

    @classmethod
    def of(cls, preset: Preset, **changes: Any) -> Settings:
        """Settings with a preset's batch size, number of resamples and picture sizes."""
        return cls(**{"batch": preset.evaluation.batch, "bootstrap": preset.evaluation.bootstrap,
                      "image_sizes": preset.image_tokenizer.sizes, **changes})

    @property
    def resampling(self) -> dict[str, int]:
        """Keyword arguments of the functions in `statistics`."""
        return {"samples": self.bootstrap, "seed": self.seed}


class Answer(Protocol):
    """What a model returns; a modality that was requested but not produced is None or empty."""

    text: str | None
    speech: Waveform | None
    image: PIL.Image.Image | None
    ids: Sequence[int]  # the decoded canvas: its length is what throughput counts


class Model(Protocol):
    """The one call evaluation needs, as in `OmniDiffusion`, the autoregressive twin or a test's stand-in."""

    def generate_many(self, requests: list[list[Part]], to: str | Sequence[str], task: str | None = None,
                      decoding: Mapping[str, Any] | None = None, seed: int = 0, batch_size: int = 16
                      ) -> Sequence[Answer]: ...


def ask(model: Model, samples: Sequence[Sample], settings: Settings, *, to: str | Sequence[str], task: str
        ) -> list[Answer]:
    """One answer per sample, in order. Several processes (`training.launch.join`) share the samples.

    The seed advances with the position, so that chunks do not share noise and an answer is the same whichever process
    gives it.
    """
    answers: list[Answer] = []
    for start in range(0, len(samples), CHUNK):
        numbers = range(start, min(start + CHUNK, len(samples)))
        answers += over_processes(partial(_answers, model, samples, settings, to, task), numbers)
    return answers


def _answers(model: Model, samples: Sequence[Sample], settings: Settings, to: str | Sequence[str], task: str,
             numbers: range) -> list[Answer]:
    """Answers to the samples with the consecutive `numbers`."""
    requests = requests_of(samples[numbers.start:numbers.stop], settings.root, settings.image_sizes[0])
    return ask_parts(model, requests, replace(settings, seed=settings.seed + numbers.start), to=to, task=task)


def ask_parts(model: Model, requests: list[list[Part]], settings: Settings, *, to: str | Sequence[str],
              task: str | None = None) -> list[Answer]:
    """One answer per request, in order, from one call; without `task` the model infers it. Raises `RuntimeError` if
    the number of answers differs."""
    answers = model.generate_many(requests, to=to, task=task, decoding=settings.decoding, seed=settings.seed,
                                  batch_size=settings.batch)
    if len(answers) != len(requests):
        raise RuntimeError(f"the model gave {len(answers)} answers to {len(requests)} requests")
    return list(answers)


def requests_of(samples: Sequence[Sample], root: str | Path | None = None, size: int | None = None) -> list[list[Part]]:
    """The user's side of each sample: its text without the task's prompt (the model adds it), speech and pictures.

    Media are loaded, and the world's pictures drawn at `size` pixels; the reference answer is left out.
    Raises `MediaError` naming an unreadable file.
    """
    return [_request(sample, root, size) for sample in samples]


def _request(sample: Sample, root: str | Path | None, size: int | None) -> list[Part]:
    text = user_text(sample)
    images, audios = media_refs(sample, "user")
    return ([Text(text)] if text else []) + [Speech(load_speech_ref(ref, root)) for ref in audios] + [
        Image(load_image_ref(ref, root, size)) for ref in images]


def user_text(sample: Sample) -> str:
    """What the user wrote: "{text}" of the task's format, recovered from the sample's messages."""
    content = "\n".join(m["content"] for m in sample.messages if m["role"] == "user")
    content = content.replace(IMAGE, "").replace(AUDIO, "").strip()
    form = TASKS.get(sample.task or "")
    if form is None:
        return content
    if "{text}" not in form.user:
        return ""
    first, _, rest = content.partition("\n")
    return rest if rest and first in (form.user.partition("\n")[0], *T2I_PROMPTS) else content


def media_refs(sample: Sample, role: str) -> tuple[list[str], list[str]]:
    """The image and audio references in the turns of `role` ("user": what is asked, "assistant": the answer).

    Raises `ChatError` where the messages' placeholders and the references differ in number.
    """
    return (_refs_of(sample, IMAGE, sample.images, role), _refs_of(sample, AUDIO, sample.audios, role))


def _refs_of(sample: Sample, token: str, refs: Sequence[str], role: str) -> list[str]:
    owners = [m["role"] for m in sample.messages for _ in range(m["content"].count(token))]
    if len(owners) != len(refs):
        raise ChatError(f"a {sample.task} sample has {len(owners)} {token} in its messages but {len(refs)} references")
    return [ref for owner, ref in zip(owners, refs) if owner == role]


@dataclass(frozen=True)
class ReferenceImages(Sequence[PIL.Image.Image]):
    """The picture in each sample's answer, loaded when accessed, so that thousands of photographs fill no memory."""

    samples: Sequence[Sample]
    settings: Settings = Settings()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> PIL.Image.Image:
        sample = self.samples[number]
        ref = _only(media_refs(sample, "assistant")[0], sample, "picture")
        return load_image_ref(ref, self.settings.root, self.settings.image_sizes[1])


def reference_images(samples: Sequence[Sample], settings: Settings = Settings()) -> list[PIL.Image.Image]:
    """The picture in each sample's answer: what text-to-image is compared with."""
    return list(ReferenceImages(samples, settings))


def reference_speech(samples: Sequence[Sample], settings: Settings = Settings()) -> list[Waveform]:
    """The recording in each sample's answer."""
    return [load_speech_ref(_only(media_refs(s, "assistant")[1], s, "recording"), settings.root) for s in samples]


def _only(refs: list[str], sample: Sample, what: str) -> str:
    if len(refs) != 1:
        raise ValueError(f"a {sample.task} sample's answer needs one {what}, this one has {len(refs)}")
    return refs[0]


def meta(sample: Sample, key: str) -> Any:
    """`sample.meta[key]`. Raises `ValueError` naming what the sample lacks."""
    if key not in sample.meta:
        raise ValueError(f"a {sample.task} test sample needs meta {key!r}; it has {', '.join(sample.meta) or 'none'}")
    return sample.meta[key]
