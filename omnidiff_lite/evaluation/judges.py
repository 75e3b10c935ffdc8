"""Learned judges: one that hears (CTC recogniser, or Whisper) and one that compares text with pictures (CLIP).

Small ones are trained on the embedded world, separately from the model under test; at full size Whisper-large-v3 and
CLIP are read by hub id or directory. Every table that uses a judge shows its score on real data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (AutoProcessor, AutoTokenizer, CLIPModel, PreTrainedConfig, PreTrainedTokenizerBase,
                          WhisperForConditionalGeneration)

from omnidiff_lite.config import Preset, SpeechEncoderConfig
from omnidiff_lite.media import Waveform
from omnidiff_lite.tokenizers.characters import transcribe
from omnidiff_lite.tokenizers.image import prepare
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.weights import CheckpointError, read_part_config

TRAINED = "trained"  # in JudgeConfig: a judge that the kit trains on the world
RECOGNITION, ALIGNMENT = "recognition", "alignment"  # their folders
WHISPER_RATE = 16000
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class RecognitionJudge:
    """Recordings to text: a `SpeechEncoder` with its CTC head, or Whisper."""

    def __init__(self, model: SpeechEncoder | WhisperForConditionalGeneration, processor: object = None,
                 batch: int = 16) -> None:
        """`processor`: Whisper's, from `AutoProcessor`; None for a `SpeechEncoder`. `batch`: recordings at a time."""
        self.model, self.processor, self.batch = model.eval(), processor, batch

    @classmethod
    def from_pretrained(cls, where: str | Path) -> RecognitionJudge:
        """A directory that `save_pretrained` wrote, or a directory or hub id of Whisper. Raises `CheckpointError`."""
        with _released(where, "whisper"):
            if read_part_config(SpeechEncoderConfig, where) is not None:
                return cls(SpeechEncoder.from_pretrained(where))
            _require(where, "whisper")
            whisper = WhisperForConditionalGeneration.from_pretrained(str(where))
            return cls(whisper, AutoProcessor.from_pretrained(str(where)))

    def save_pretrained(self, directory: str | Path) -> None:
        self.model.save_pretrained(str(directory))
        if self.processor is not None:
            self.processor.save_pretrained(str(directory))

    def to(self, device: str | torch.device) -> RecognitionJudge:
        self.model.to(device)
        return self

    @torch.no_grad()
    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        """One transcript per recording, as the judge writes it. Any sample rate; Whisper cuts off after 30 s."""
        hear = self._whisper if self.processor is not None else lambda part: transcribe(self.model, part)
        parts = [list(waves[start:start + self.batch]) for start in range(0, len(waves), self.batch)]
        return [text for part in parts for text in hear(part)]

    def _whisper(self, waves: list[Waveform]) -> list[str]:
        samples = [wave.resample(WHISPER_RATE).samples for wave in waves]
        features = self.processor(samples, sampling_rate=WHISPER_RATE, return_tensors="pt").input_features
        # An English-only Whisper takes neither a language nor a task.
        many = getattr(self.model.generation_config, "is_multilingual", False)
        ids = self.model.generate(features.to(self.model.device, self.model.dtype),
                                  **({"language": "en", "task": "transcribe"} if many else {}))
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


class AlignmentJudge:
    """Cosines between texts and pictures in CLIP's space (CLIP-T) and between pictures (CLIP-I)."""

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, batch: int = 64) -> None:
        self.clip, self.tokenizer, self.batch = clip.eval(), tokenizer, batch

    @classmethod
    def from_pretrained(cls, where: str | Path) -> AlignmentJudge:
        """A directory that `save_pretrained` wrote, or a directory or hub id of CLIP. Raises `CheckpointError`."""
        with _released(where, "clip"):
            _require(where, "clip")
            return cls(CLIPModel.from_pretrained(str(where)), AutoTokenizer.from_pretrained(str(where)))

    def save_pretrained(self, directory: str | Path) -> None:
        self.clip.save_pretrained(str(directory))
        self.tokenizer.save_pretrained(str(directory))

    def to(self, device: str | torch.device) -> AlignmentJudge:
        self.clip.to(device)
        return self

    def similarity(self, texts: Sequence[str], images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Cosine of each text with its picture, [n] in -1..1."""
        return _paired(self.text_features(texts), self.features(images))

    def image_similarity(self, a: Sequence[PIL.Image.Image], b: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Cosine of each picture of `a` with its picture of `b`, [n]."""
        return _paired(self.features(a), self.features(b))

    def features(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Unit vectors [n, dim] of pictures."""
        return self._embed([clip_pixels(image, self.clip.config.vision_config.image_size) for image in images],
                           lambda part: self.embed_images(torch.stack(part)))

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, dim] of texts."""
        return self._embed(list(texts), lambda part: self.embed_texts(**self.tokenize(part)))

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` [n, length], cut at the model's length; the last kept token ends the text.

        CLIP reads a text at its end token; CLIP's own tokenizer adds one, and for a plain tokenizer it is added here.
        """
        limit = self.clip.config.text_config.max_position_embeddings
        end = self.tokenizer.eos_token_id
        rows = [[i for i in self.tokenizer(text).input_ids if i != end][:limit - 1] + [end] for text in texts]
        ids = torch.full((len(rows), max(map(len, rows))), end)
        for i, row in enumerate(rows):
            ids[i, :len(row)] = torch.tensor(row)
        return {"input_ids": ids, "attention_mask": torch.arange(ids.shape[1]) < torch.tensor([[len(r)] for r in rows])}

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors [n, dim], with gradient."""
        ids, mask = input_ids.to(self.clip.device), attention_mask.to(self.clip.device)
        pooled = self.clip.text_model(input_ids=ids, attention_mask=mask.long()).pooler_output
        return F.normalize(self.clip.text_projection(pooled).float(), dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit vectors [n, dim] of pixels [n, 3, size, size] as `clip_pixels` gives them, with gradient."""
        pooled = self.clip.vision_model(pixel_values=pixels.to(self.clip.device, self.clip.dtype)).pooler_output
        return F.normalize(self.clip.visual_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def _embed(self, items: list, embed: Callable[[list], Tensor]) -> np.ndarray:
        parts = [embed(items[i:i + self.batch]).cpu() for i in range(0, len(items), self.batch)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.clip.config.projection_dim), np.float32)


def clip_pixels(image: PIL.Image.Image, size: int) -> Tensor:
    """CLIP's preprocessing: short side to `size` (bicubic), centre crop, CLIP's mean and deviation; [3, size, size]."""
    pixels = (prepare(image, size) + 1) / 2
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} items against {len(b)}: similarities are taken in pairs")
    return (a * b).sum(axis=1)


# --- by directory or hub id -------------------------------------------------------------------------------------------

_TAKEN = {"whisper": "judges.recognition to {trained!r}, or to a directory or hub id of Whisper",
          "clip": "judges.clip_t and judges.clip_i to {trained!r}, or to a directory or hub id of CLIP"}


@contextmanager
def _released(where: str | Path, kind: str) -> Iterator[None]:
    """Reports any failure inside in one line that says what can be given."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: no judge can be read there ({' '.join(str(error).split())}); set "
                              + _TAKEN[kind].format(trained=TRAINED)) from None


def _require(where: str | Path, kind: str) -> None:
    """Checks the kind: for another kind of model, Transformers would fill in random weights and only warn."""
    found = PreTrainedConfig.get_config_dict(str(where))[0].get("model_type")
    if found != kind:
        raise ValueError(f"it holds a {found} model" if found else "it holds no config.json of a model")


@dataclass(frozen=True)
class Judges:
    """The judges of one preset. CLIP-T and CLIP-I may be two models (Emu2: ViT-B and ViT-L)."""

    recognition: RecognitionJudge
    clip_t: AlignmentJudge
    clip_i: AlignmentJudge

    def to(self, device: str | torch.device) -> Judges:
        for judge in (self.recognition, self.clip_t, self.clip_i):
            judge.to(device)
        return self


def load_judges(preset: Preset, directory: str | Path) -> Judges:
    """The judges that `preset.judges` names; "trained" ones lie in `directory`/recognition and /alignment.

    Raises `CheckpointError` naming what is missing, or is of another kind.
    """
    names = preset.judges
    recognition = RecognitionJudge.from_pretrained(_place(names.recognition, directory, RECOGNITION))
    clip_t = AlignmentJudge.from_pretrained(_place(names.clip_t, directory, ALIGNMENT))
    same = names.clip_i == names.clip_t
    clip_i = clip_t if same else AlignmentJudge.from_pretrained(_place(names.clip_i, directory, ALIGNMENT))
    return Judges(recognition, clip_t, clip_i)


def _place(name: str, directory: str | Path, folder: str) -> str | Path:
    if name != TRAINED:
        return name
    path = Path(directory) / folder
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path}: no {folder} judge there; train the judges first, or name a released one in the "
                              f"preset (judges.{'recognition' if folder == RECOGNITION else 'clip_t'})")
    return path
