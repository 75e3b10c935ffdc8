"""A finished run's model and judges; and one call per task, which picks the evaluation that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import torch

from omnidiff_lite.artifacts import Artifacts, MissingArtifact
from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import AUDIO, IMAGE, Sample
from omnidiff_lite.config import Preset
from omnidiff_lite.evaluation.alignment import evaluate_s2i, evaluate_t2i
from omnidiff_lite.evaluation.answers import evaluate_answers
from omnidiff_lite.evaluation.judges import TRAINED, Judges, load_judges
from omnidiff_lite.evaluation.records import Record
from omnidiff_lite.evaluation.requests import Model, Settings, user_text
from omnidiff_lite.evaluation.speech import evaluate_asr, evaluate_tts
from omnidiff_lite.evaluation.vision import evaluate_captioning
from omnidiff_lite.pipeline import OmniDiffusion


def finished_system(preset: Preset, artifacts: Artifacts, device: str | torch.device | None = None,
                    dtype: torch.dtype | str = "auto") -> tuple[OmniDiffusion, Judges]:
    """What notebooks 02 to 05 made, the denoiser computing in `dtype` ("auto": bfloat16 on a GPU, on a CPU
    what its config.json names).

    `device`: by default a GPU if there is one. Raises `MissingArtifact` naming the notebook to run first,
    `CheckpointError` for a judge named in the preset that cannot be read.
    """
    checkpoint = artifacts.require(artifacts.checkpoint, "05_stage3_speech_driven_visual_interaction")
    names = preset.judges
    if TRAINED in (names.recognition, names.clip_t, names.clip_i):
        artifacts.require(artifacts.judges, "02_training_the_tokenizers")
    judges = load_judges(preset, artifacts.judges)  # first, to report a misspelt name at once
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype == "auto" and device.type != "cpu":
        dtype = torch.bfloat16
    model = OmniDiffusion.from_pretrained(checkpoint, device, dtype=dtype)
    return model, judges.to(model.device)


def autoregressive_twin(model: OmniDiffusion, artifacts: Artifacts) -> OmniDiffusion:
    """What notebook 14 made: `model` with a causal denoiser, trained in the same way, in place of its own.

    Raises `MissingArtifact` naming the notebook to run first.
    """
    return with_denoiser(model, artifacts.require(artifacts.twin, "14_autoregressive_twin"))


def with_denoiser(model: OmniDiffusion, directory: str | Path) -> OmniDiffusion:
    """The same system around another denoiser, as a training stage saves it.

    Raises `CheckpointError` if there is none, or if it was trained with other tokenizers.
    """
    denoiser = Denoiser.from_pretrained(directory, dtype=model.denoiser.dtype).to(model.device)
    return OmniDiffusion(denoiser, model.tokenizers, model.settings)


def twin_or_reason(model: OmniDiffusion, artifacts: Artifacts) -> OmniDiffusion | str:
    """The same, or, if notebook 14 has not run, the reason why there is none, for the twin's cells."""
    try:
        return autoregressive_twin(model, artifacts)
    except MissingArtifact:
        return "no twin: run notebook 14"


def evaluate_task(task: str, model: Model, judges: Judges, samples: Sequence[Sample], preset: Preset,
                  seed: int = 0, decoding: Mapping[str, Any] | None = None) -> list[Record]:
    """Records of one task on `samples`, as `evaluate_items` makes them."""
    return evaluate_items(task, model, judges, samples, preset, seed, decoding)[0]


def evaluate_items(task: str, model: Model, judges: Judges, samples: Sequence[Sample], preset: Preset, seed: int = 0,
                   decoding: Mapping[str, Any] | None = None) -> tuple[list[Record], pd.DataFrame]:
    """Records of one task on `samples`, from the embedded world or a user's own files; and one row per item.

    Pictures are read back into scenes only if the samples carry their scene. `decoding`: fields of DecodingConfig
    that differ from the model's own. Raises `ValueError` for a sample without the reference that its task needs.
    """
    settings = Settings.of(preset, seed=seed, decoding=decoding)
    samples = [with_references(sample) for sample in samples]
    world = preset.world if all("scene" in sample.meta for sample in samples) else None
    if task == "asr":
        return evaluate_asr(model, samples, settings)
    if task == "tts":
        return evaluate_tts(model, judges.recognition, samples, settings)
    if task == "captioning":
        return evaluate_captioning(model, samples, settings)
    if task in ("t2i", "s2i"):
        return (evaluate_t2i if task == "t2i" else evaluate_s2i)(model, judges, samples, settings, world=world)
    judge = judges.recognition if task in ("sqa", "svqa") else None
    return evaluate_answers(model, samples, settings, task=task, judge=judge)


def with_references(sample: Sample) -> Sample:
    """A sample whose meta holds the question and the right answer, taken from its messages if not there already.

    The released format has no such fields: the reference is the content of the assistant's turn.
    """
    answer = "\n".join(m["content"] for m in sample.messages if m["role"] == "assistant")
    text = user_text(sample)
    found = dict.fromkeys(("text", "question", "caption"), text)
    found["answer"] = answer.replace(AUDIO, "").replace(IMAGE, "").strip()
    return replace(sample, meta=found | sample.meta)
