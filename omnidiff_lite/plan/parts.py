"""Parameters of every part of a preset, counted on the meta device: shapes without memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from omnidiff_lite.adapters import WAVES
from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import Preset
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.vocabulary import RELEASED_TEXT, Vocabulary


class PlanError(ValueError):
    """A request that no plan can be made for; the message names it and the fix."""


@dataclass(frozen=True)
class Part:
    """One part: `trained` parts are in the optimizer of the three stages, the others only encode or decode."""

    name: str
    tensors: int
    parameters: int
    trained: bool


def vocabulary_of(preset: Preset) -> Vocabulary:
    """The id space of a preset: the released one at its text size, else the small layout.

    A trained text tokenizer may turn out smaller than `text_tokenizer.size`.
    """
    text, speech, image = preset.text_tokenizer.size, preset.speech_tokenizer.codes, preset.image_tokenizer.codes
    released = Vocabulary.released()
    if (text, speech, image) == (RELEASED_TEXT, released.speech_codes, released.image_codes):
        return released
    return Vocabulary.small(text, speech, image)


def denoiser_config(preset: Preset) -> DenoiserConfig:
    """The configuration of the preset's denoiser."""
    return DenoiserConfig.from_size(preset.denoiser, vocabulary_of(preset), preset.speech_encoder.dim)


def parts(preset: Preset) -> list[Part]:
    """Every part that has parameters. The language part and the speech adapter make up the denoiser."""
    with torch.device("meta"):
        denoiser = Denoiser(denoiser_config(preset))
        frozen = {"speech encoder": SpeechEncoder(preset.speech_encoder),
                  "image tokenizer": ImageTokenizer(preset.image_tokenizer),
                  "speech tokenizer": SpeechTokenizer(preset.speech_tokenizer),
                  "speech decoder": SpeechDecoder(preset.speech_decoder)}
    adapter, whole = _count("speech adapter", denoiser.model.audio_projection, True), _count("", denoiser, True)
    language = Part("language model", whole.tensors - adapter.tensors, whole.parameters - adapter.parameters, True)
    return [language, adapter, *(_count(name, module, False) for name, module in frozen.items())]


def _count(name: str, module: nn.Module, trained: bool) -> Part:
    sizes = [p.numel() for p in module.parameters()]
    return Part(name, len(sizes), sum(sizes), trained)


@dataclass(frozen=True)
class DenoiserParameters:
    """The denoiser's parameters by location, which is what matters for sharding and mixed precision."""

    layer: int  # of one of the layers
    layers: int
    ends: int  # embedding, output head, final norm, adapters
    multiplied: int  # weights of linear layers, which autocast copies to bfloat16

    @property
    def total(self) -> int:
        return self.layer * self.layers + self.ends


def denoiser_parameters(config: DenoiserConfig) -> DenoiserParameters:
    """Counted by arithmetic, so that a plan over many sizes needs no modules.

    One layer: q and o of H x A, k and v of H x K with biases on q, k, v, three of H x F, two norms of H, for hidden
    width H, attention width A = heads x head size, key width K, feed-forward width F. The ends are the
    embedding, the output head, the final norm, the speech adapter, and the optional parts of `adapters`.
    """
    hidden, attention, keys = config.hidden_size, *attention_widths(config)
    matrices = 2 * hidden * attention + 2 * hidden * keys + 3 * hidden * config.intermediate_size
    table, adapter = config.vocab_size * hidden, config.speech_dim * hidden + hidden**2
    step = (2 * WAVES * hidden + hidden**2) * config.step_embedding
    heads = 2 * hidden * (hidden // 2) * (len(config.head_starts) + 1 if config.head_starts else 0)
    return DenoiserParameters(
        layer=matrices + attention + 2 * keys + 2 * hidden, layers=config.num_hidden_layers,
        ends=2 * table + hidden + adapter + 2 * config.speech_dim + step + heads,
        multiplied=config.num_hidden_layers * matrices + table + adapter + step + heads)


def attention_widths(config: DenoiserConfig) -> tuple[int, int]:
    """Width of the queries, width of the keys."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
