"""The five tokenizers of one system, side by side in one directory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.tokenizers.text import load_text_tokenizer
from omnidiff_lite.vocabulary import Vocabulary

PARTS = {"image": ("image_tokenizer", ImageTokenizer), "speech_encoder": ("speech_encoder", SpeechEncoder),
         "speech_tokenizer": ("speech_tokenizer", SpeechTokenizer), "speech_decoder": ("speech_decoder", SpeechDecoder)}


@dataclass
class Tokenizers:
    """The parts and the id space that they share. All modules are in eval mode."""

    text: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    image: ImageTokenizer
    speech_encoder: SpeechEncoder
    speech_tokenizer: SpeechTokenizer
    speech_decoder: SpeechDecoder

    @classmethod
    def from_pretrained(cls, directory: str | Path, folders: dict[str, Path] | None = None,
                        device: str | torch.device | None = None) -> Tokenizers:
        """Read `text_tokenizer/`, `image_tokenizer/`, `speech_encoder/`, ... under `directory`.

        `folders` gives other locations of single parts, by folder name (a released system's parts are scattered).
        `device`: by default a GPU if there is one. Raises `CheckpointError` or `VocabularyError` naming what does not
        fit.
        """
        place = {name: Path(directory) / name for name in ("text_tokenizer", *(folder for folder, _ in PARTS.values()))}
        place |= folders or {}
        parts = {name: kind.from_pretrained(place[folder]).eval() for name, (folder, kind) in PARTS.items()}
        codes = parts["speech_tokenizer"].config.codes, parts["image"].config.codes
        text, vocabulary = load_text_tokenizer(place["text_tokenizer"], *codes)
        return cls(text, vocabulary, **parts).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write each part into its folder; with `dtype` bfloat16, say, the files are half the size."""
        directory = Path(directory)
        self.text.save_pretrained(directory / "text_tokenizer")
        for name, (folder, _) in PARTS.items():
            getattr(self, name).save_pretrained(directory / folder, dtype=dtype)

    def to(self, device: str | torch.device) -> Tokenizers:
        for name in PARTS:
            getattr(self, name).to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device that all parts are on."""
        return self.speech_encoder.device

    @cached_property
    def words(self) -> tuple[int, ...]:
        """Text ids that are more than white space: what an answer may begin with."""
        tokens = self.text.convert_ids_to_tokens(list(self.vocabulary.text_range))
        return tuple(i for i, token in enumerate(tokens) if token.strip("ĠĊĉč"))  # byte-level blanks

    def fingerprint(self) -> str:
        """Hash of everything that decides which ids media become: weights, buffers and the text vocabulary."""
        digest = hashlib.sha256(self.text.backend_tokenizer.to_str().encode())
        for name in ("image", "speech_encoder", "speech_tokenizer"):
            for key, tensor in sorted(getattr(self, name).state_dict().items()):
                digest.update(key.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
