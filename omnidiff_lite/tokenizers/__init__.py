"""Everything between media and ids: text, image, speech in, speech tokens, speech out."""

from typing import Any

__all__ = ["Tokenizers"]


def __getattr__(name: str) -> Any:
    if name == "Tokenizers":  # imported on use: text alone needs none of the other parts
        from omnidiff_lite.tokenizers.bundle import Tokenizers

        return Tokenizers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
