"""Released files in the kit's layout: `config.json` and safetensors for each part, `system.json` for the whole."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.pipeline.loading import PARTS, find
from omnidiff_lite.pipeline.system import OmniDiffusion
from omnidiff_lite.tokenizers.bundle import PARTS as MODULES
from omnidiff_lite.tokenizers.text import extend, read_tokenizer
from omnidiff_lite.vocabulary import RELEASED_IMAGE, RELEASED_SPEECH
from omnidiff_lite.weights import read_weights

ADAPTER_NORM = "model.audio_projection.pre_proj_layernorm.weight"


def convert_part(part: str, source: str | Path, out: str | Path, dtype: torch.dtype | str | None = None) -> Path:
    """Write the released files of one part (a directory or hub id) into the folder `out`, in the kit's layout.

    `.pt` and `.bin` files are read with `weights_only=True`. `dtype` None or "auto": the denoiser as stored, the others
    in float32. Raises `ConfigError` for an unknown part or an `out` that is the source, `CheckpointError` and
    `VocabularyError` if the files do not fit.
    """
    if part not in PARTS:
        raise ConfigError(f"no part {part!r}: choose one of {', '.join(PARTS)}")
    source, out, dtype = find(source), _elsewhere(source, out), None if dtype == "auto" else dtype
    if part == "text_tokenizer":
        tokenizer = read_tokenizer(source)
        extend(tokenizer, _held(tokenizer, "audio") or RELEASED_SPEECH, _held(tokenizer, "image") or RELEASED_IMAGE)
        tokenizer.save_pretrained(out)
    elif part == "denoiser":
        # A released config.json does not say how wide the speech frames are; the adapter's first weight does.
        width = {"speech_dim": len(norm) for norm in read_weights(source, ADAPTER_NORM).values()}
        Denoiser.from_pretrained(source, dtype=dtype or "auto", **width).save_pretrained(out)
    else:
        dict(MODULES.values())[part].from_pretrained(source).save_pretrained(out, dtype)
    return out


def convert_system(where: str | Path, out: str | Path, dtype: torch.dtype | str | None = None) -> Path:
    """Write a whole system, found as `OmniDiffusion.from_pretrained` finds it, as one directory of the kit."""
    out, dtype = _elsewhere(where, out), None if dtype == "auto" else dtype
    return OmniDiffusion.from_pretrained(where, device="cpu", dtype=dtype or "auto").save_pretrained(out, dtype)


def _elsewhere(source: str | Path, out: str | Path) -> Path:
    if Path(source).resolve() == Path(out).resolve():
        raise ConfigError(f"{out}: is what is to be converted; name another folder to write into")
    return Path(out)


def _held(tokenizer: PreTrainedTokenizerBase, kind: str) -> int:
    """How many codes of a kind the tokenizer already has."""
    return sum(re.fullmatch(rf"<\|{kind}_\d+\|>", name) is not None for name in tokenizer.get_vocab())
