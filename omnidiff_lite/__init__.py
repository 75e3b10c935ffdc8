"""Omni-Diffusion, reproduced: one masked discrete diffusion model over text, speech and image tokens.

    from omnidiff_lite import OmniDiffusion, Speech, Image
    model = OmniDiffusion.from_pretrained("results/smoke/checkpoint")
    model.generate([Speech("question.wav"), Image("scene.png")], to=("text", "speech"))
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Names are imported when first used, so that worker processes that only draw and speak stay light.
_HOMES = {
    "OmniDiffusion": "pipeline", "Answer": "pipeline",
    "load_preset": "config", "Preset": "config",
    "Text": "media", "Image": "media", "Speech": "media", "Waveform": "media",
    "Denoiser": "backbone", "DenoiserConfig": "backbone",
    "DecodingConfig": "diffusion.decoding", "decode": "diffusion.decoding",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"omnidiff_lite.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'omnidiff_lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
