"""Omni-Diffusion, reproduced: one masked discrete diffusion model over text, speech and image tokens.

    from omnidiff_lite import OmniDiffusion, Speech, Image
    model = OmniDiffusion.from_pretrained("results/smoke/checkpoint")
    model.generate([Speech("question.wav"), Image("scene.png")], to=("text", "speech"))
"""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# GNU OpenMP threads spin while they wait for each other. When another program holds a core, they stall at each of a
# small network's many steps: on two cores, one of them busy, a picture took 71 s, and 2.3 s with fewer spins. With both
# cores free it makes no difference (1.07 and 1.04 s). The variable is read when torch is loaded, so set it before that.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Names are imported on first use, so that worker processes that only draw and speak stay light.
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
