"""One cell of a decoding study: the shipped checkpoint, asked with the variant's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omnidiff_lite.ablation.measures import Sums, check_metric, measure
from omnidiff_lite.ablation.study import Study, Variant
from omnidiff_lite.config import ConfigError, Preset
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.pipeline import OmniDiffusion
from omnidiff_lite.pipeline.settings import AnswerLengths, check_decoding
from omnidiff_lite.strict import from_dict, to_dict
from omnidiff_lite.vocabulary import Vocabulary

LENGTHS = "lengths."


def check(study: Study, variant: Variant, preset: Preset) -> None:
    """Raises `ConfigError` for a setting or a metric that does not exist or does not fit."""
    for metric in study.metrics:
        check_metric(study.task, metric)
    tokens = (preset.image_tokenizer.generation_size // preset.image_tokenizer.factor) ** 2
    if study.picture_tokens and tokens != study.picture_tokens:
        raise ConfigError(f"picture_tokens: the settings are for pictures of {study.picture_tokens} tokens, those of "
                          f"the preset {preset.name} have {tokens}; change both in a copy of the study's .yaml file")
    decoding, lengths = split(variant.settings, Vocabulary.released())
    from_dict(AnswerLengths, lengths)
    check_decoding(study.task, decoding, preset.decoding.get(study.task, {}))


def run(study: Study, variant: Variant, seed: int, model: OmniDiffusion, judges: Judges, preset: Preset
        ) -> dict[str, Sums]:
    """The sums of every metric over the items."""
    decoding, lengths = split(variant.settings, model.tokenizers.vocabulary)
    settings = replace(model.settings, lengths=from_dict(AnswerLengths, to_dict(model.settings.lengths) | lengths))
    asked = OmniDiffusion(model.denoiser, model.tokenizers, settings)
    items = variant.budget.items or preset.evaluation.items
    return measure(study.task, study.metrics, asked, judges, preset, seed, items, decoding)


def split(settings: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `DecodingConfig` (and "style"), and of `AnswerLengths`, where null keeps the checkpoint's own.

    Token ids may be given by name: `{0.25: begin_of_audio}`.
    """
    lengths = {key.removeprefix(LENGTHS): value for key, value in settings.items()
               if key.startswith(LENGTHS) and value is not None}
    decoding = {key: value for key, value in settings.items() if not key.startswith(LENGTHS)}
    if isinstance(decoding.get("prefill"), Mapping):
        decoding["prefill"] = {place: _id(token, vocabulary) for place, token in decoding["prefill"].items()}
    return decoding, lengths


def _id(token: Any, vocabulary: Vocabulary) -> Any:
    found = getattr(vocabulary, token, None) if isinstance(token, str) else token
    if not isinstance(found, int):
        raise ConfigError(f"prefill: no token {token!r}; give an id, or a name such as begin_of_audio")
    return found
