"""One cell of a decoding study: the shipped checkpoint, asked with the variant's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from omnidiff_lite.ablation.measures import Sums, check_metric, measure
from omnidiff_lite.ablation.study import Study, Variant
from omnidiff_lite.config import ConfigError, Preset
from omnidiff_lite.diffusion.settings import DecodingConfig
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.settings import STYLES, AnswerLengths
from omnidiff_lite.strict import from_dict, to_dict
from omnidiff_lite.vocabulary import Vocabulary

LENGTHS = "lengths."
_OWN = ("length", "seed", "allowed_ids", "guidance_prompt_ids")  # what the pipeline itself gives to each request


def check(study: Study, variant: Variant, preset: Preset) -> None:
    """Raises `ConfigError` for a setting or a metric that does not exist or does not fit."""
    for metric in study.metrics:
        check_metric(study.task, metric)
    if "latency_s" in study.metrics and not variant.budget.timed:
        raise ConfigError("latency_s needs budget.timed, the number of answers to time")
    decoding, lengths = split(variant.settings, Vocabulary.released())
    from_dict(AnswerLengths, lengths)
    check_decoding(study.task, decoding, preset)


def check_decoding(task: str, changes: Mapping[str, Any], preset: Preset) -> None:
    """Raises `ConfigError` for an unknown field of `DecodingConfig`, a wrong type, a value out of range, or one that
    the pipeline itself gives to each request."""
    changes = dict(changes)
    style = changes.pop("style", STYLES[0])
    if style not in STYLES:
        raise ConfigError(f"style: {style!r} is none of {', '.join(STYLES)}")
    for key in changes.keys() & set(_OWN):
        raise ConfigError(f"{key}: given by the pipeline to each request; it cannot be set for all")
    own = preset.decoding.get(task, {}) if style == "paper" else {}
    config = getattr(DecodingConfig, style)(task).replace(**own)
    from_dict(DecodingConfig, {f.name: getattr(config, f.name) for f in fields(DecodingConfig)} | changes)


def run(study: Study, variant: Variant, seed: int, model: OmniDiffusion, judges: Judges, preset: Preset
        ) -> dict[str, Sums]:
    """The sums of every metric over the items."""
    decoding, lengths = split(variant.settings, model.tokenizers.vocabulary)
    settings = replace(model.settings, lengths=from_dict(AnswerLengths, to_dict(model.settings.lengths) | lengths))
    asked = OmniDiffusion(model.denoiser, model.tokenizers, settings)
    items = variant.budget.items or preset.evaluation.items
    return measure(study.task, study.metrics, asked, judges, preset, seed, items, variant.budget.timed, decoding)


def split(settings: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `DecodingConfig` (and "style"), and of `AnswerLengths`.

    Token ids may be named: `{0.25: begin_of_audio}`.
    """
    lengths = {key.removeprefix(LENGTHS): value for key, value in settings.items() if key.startswith(LENGTHS)}
    decoding = {key: value for key, value in settings.items() if not key.startswith(LENGTHS)}
    if isinstance(decoding.get("prefill"), Mapping):
        decoding["prefill"] = {place: _id(token, vocabulary) for place, token in decoding["prefill"].items()}
    return decoding, lengths


def _id(token: Any, vocabulary: Vocabulary) -> Any:
    found = getattr(vocabulary, token, None) if isinstance(token, str) else token
    if not isinstance(found, int):
        raise ConfigError(f"prefill: no token {token!r}; give an id, or a name such as begin_of_audio")
    return found
