"""The tiny random-weight denoiser that the released implementation was run with, and what it was recorded to do."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from omnidiff_lite.backbone import Denoiser

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = sorted(path.stem.removeprefix("dream_sample_") for path in GOLDEN.glob("dream_sample_*.safetensors"))
MASK, BEGIN_OF_AUDIO = 566, 584


def released_directory(directory: Path) -> Path:
    """A checkpoint directory with the released names: config.json of model_type "Dream", one safetensors file."""
    shutil.copy(GOLDEN / "dream_tiny_config.json", directory / "config.json")
    shutil.copy(GOLDEN / "dream_tiny.safetensors", directory / "model.safetensors")
    return directory


@cache
def released_denoiser() -> Denoiser:
    """Shared by the tests: do not change it."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return Denoiser.from_pretrained(released_directory(Path(directory)))


@cache
def forward_case(name: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / "dream_forward.safetensors")
    return {key.removeprefix(name + "."): value for key, value in tensors.items() if key.startswith(name + ".")}


def sample_case(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The call's arguments, the settings that the released sampler really used, and the recorded tensors."""
    with safe_open(GOLDEN / f"dream_sample_{name}.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    return json.loads(meta["call"]), json.loads(meta["effective_generation_config"]), tensors


def with_sharper_head(model: Denoiser, scale: float) -> Denoiser:
    """A copy that shares all weights but the output head, which is `scale` times as large."""
    if scale == 1:
        return model
    copy = Denoiser(model.config)
    copy.model = model.model
    copy.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * scale)
    return copy
