"""The parts that train before the denoiser, each from the embedded world's own data: tokenizers and judges.

    encoder, history = train_part("speech_encoder", preset, seed, cache)
    waiting = side_by_side().submit(train_part, "image_tokenizer", preset, seed, cache)  # in a separate process

A judge gets a different seed and its own voices: one that shared the model's data could share its mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import PIL.Image
import torch

from omnidiff_lite.config import Preset
from omnidiff_lite.data.media import load_many
from omnidiff_lite.tokenizers.image import prepare
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.training.alignment_judge import train_alignment_judge
from omnidiff_lite.training.image_tokenizer import train_image_tokenizer
from omnidiff_lite.training.judges import train_recognition_judge
from omnidiff_lite.training.speech_decoder import train_speech_decoder
from omnidiff_lite.training.speech_encoder import train_speech_encoder
from omnidiff_lite.training.speech_tokenizer import train_speech_tokenizer
from omnidiff_lite.training.utterances import Utterance
from omnidiff_lite.world.dataset import pictures, utterances

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARTS = 0.25  # share of the image tokenizer's pictures that are charts, maps, pages and signs
ANSWERS = 0.25  # share of the speech tokenizer's recordings in the answer voice
BLOCK = 512  # recordings
JUDGE_SEED = 1000  # added to the run's seed
Trained = tuple[Any, pd.DataFrame]  # the part in eval mode, and one row of figures per step


def train_part(name: str, preset: Preset, seed: int, cache_dir: str | Path, needs: Any = None) -> Trained:
    """Train one of `PARTS`, with its budget `preset.parts.<name>`. `needs`: the speech tokenizer for the speech
    decoder, the text tokenizer for the alignment judge. Raises `ValueError` for an unknown name."""
    if name not in PARTS:
        raise ValueError(f"no part {name!r}: choose one of {', '.join(PARTS)}")
    torch.manual_seed(seed)
    return PARTS[name](preset, seed, cache_dir, *([] if needs is None else [needs]))


def spoken(preset: Preset, split: str, n: int, seed: int, cache_dir: str | Path, workers: int = 0
           ) -> Iterator[Utterance]:
    """`n` recordings of a split with their words; made once and cached, `BLOCK` in memory at a time."""
    said = utterances(split, n, seed, preset.world)
    for block in (said[i:i + BLOCK] for i in range(0, n, BLOCK)):
        waves = load_many([u.ref for u in block], workers=workers or _free_cores(), cache_dir=cache_dir)
        yield from zip(waves, [u.text for u in block])


def drawn(preset: Preset, split: str, n: int, seed: int, cache_dir: str | Path, charts: float = 0.0, workers: int = 0
          ) -> list[tuple[PIL.Image.Image, str]]:
    """`n` pictures of a split with their captions; a share `charts` are charts, which have none."""
    shown = pictures(split, n, seed, preset.world, charts)
    images = load_many([p.ref for p in shown], workers=workers or _free_cores(), cache_dir=cache_dir,
                       size=preset.world.image_size)
    return list(zip(images, [p.caption for p in shown]))


def _free_cores() -> int:
    """Number of processes that draw and speak: the cores this one may use, if a GPU does the training."""
    return torch.get_num_threads() if torch.cuda.is_available() else 0


def _image_tokenizer(preset: Preset, seed: int, cache_dir: str | Path) -> Trained:
    budget, size = preset.parts.image_tokenizer, preset.image_tokenizer.generation_size
    shown = drawn(preset, "train", budget.items, seed, cache_dir, CHARTS)
    return train_image_tokenizer(preset.image_tokenizer, torch.stack([prepare(image, size) for image, _ in shown]),
                                 budget, seed)


def _speech_encoder(preset: Preset, seed: int, cache_dir: str | Path) -> Trained:
    budget = preset.parts.speech_encoder
    return train_speech_encoder(preset.speech_encoder, spoken(preset, "train", budget.items, seed, cache_dir), budget,
                                seed)


def _speech_tokenizer(preset: Preset, seed: int, cache_dir: str | Path) -> Trained:
    """Hears all voices, and in a share of the recordings the one that the answers' tokens must encode."""
    budget = preset.parts.speech_tokenizer
    own = round(ANSWERS * budget.items)
    heard = chain(spoken(preset, "train", budget.items - own, seed, cache_dir),
                  spoken(preset, "answer", own, seed, cache_dir))
    return train_speech_tokenizer(preset.speech_tokenizer, heard, budget, seed)


def _speech_decoder(preset: Preset, seed: int, cache_dir: str | Path, tokenizer: SpeechTokenizer) -> Trained:
    budget = preset.parts.speech_decoder
    answers = [wave for wave, _ in spoken(preset, "answer", budget.items, seed, cache_dir)]
    return train_speech_decoder(preset.speech_decoder, tokenizer.encode_many(answers), answers, budget, seed)


def _recognition_judge(preset: Preset, seed: int, cache_dir: str | Path) -> Trained:
    budget = preset.parts.recognition_judge
    return train_recognition_judge(preset.judges.recogniser, spoken(preset, "judge", budget.items, seed, cache_dir),
                                   budget, seed + JUDGE_SEED)


def _alignment_judge(preset: Preset, seed: int, cache_dir: str | Path, text: PreTrainedTokenizerBase) -> Trained:
    budget = preset.parts.alignment_judge
    return train_alignment_judge(preset.judges, text, drawn(preset, "judge", budget.items, seed, cache_dir), budget,
                                 seed + JUDGE_SEED)


PARTS: dict[str, Callable[..., Trained]] = {
    "speech_tokenizer": _speech_tokenizer, "speech_encoder": _speech_encoder, "image_tokenizer": _image_tokenizer,
    "recognition_judge": _recognition_judge, "alignment_judge": _alignment_judge, "speech_decoder": _speech_decoder}
