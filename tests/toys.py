"""A toy system for tests of data and training: a small id space, learnable tasks, a denoiser of 20,000 weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import DenoiserSize, Preset, load_preset
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.media import Waveform
from omnidiff_lite.tokenizers.text import extend, train_text_tokenizer
from omnidiff_lite.vocabulary import Vocabulary

WORDS, SPEECH_DIM = 12, 8
VOCABULARY = Vocabulary.small(text=WORDS, speech_codes=4, image_codes=4)
SIZE = DenoiserSize(hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, rope_theta=1e4,
                    max_positions=512)


def denoiser(seed: int = 0, **fields: Any) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(DenoiserConfig.from_size(SIZE, VOCABULARY, speech_dim=SPEECH_DIM, **fields))


def decided(vocabulary: Vocabulary, layers: int = 2, **fields: Any) -> Denoiser:
    """Random weights, drawn wide so that no decision of a decoder hangs on rounding."""
    torch.manual_seed(0)
    size = DenoiserSize(hidden_size=32, intermediate_size=48, layers=layers, heads=4, kv_heads=2, rope_theta=1e4)
    model = Denoiser(DenoiserConfig.from_size(size, vocabulary, speech_dim=6, initializer_range=0.8, **fields)).eval()
    model.lm_head.weight.data /= 3
    return model


def prompts(*lengths: int) -> list[torch.Tensor]:
    """Prompts of text ids, of these lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(30, (n,), generator=generator) for n in lengths]


def sample(task: str, prompt: list[int], answer: list[int], frames: np.ndarray | None = None) -> EncodedSample:
    """`prompt`, then `answer` and `<|im_end|>`, of which the latter two are predicted."""
    ids = [VOCABULARY.im_start, *prompt, *answer, VOCABULARY.im_end]
    labels = [-100] * (1 + len(prompt)) + ids[1 + len(prompt):]
    frames = np.zeros((0, SPEECH_DIM)) if frames is None else frames
    return EncodedSample(np.array(ids, np.int32), np.array(labels, np.int32), frames.astype(np.float16), task)


def copying(n: int, seed: int = 0, longest: int = 6, task: str = "text_qa") -> list[EncodedSample]:
    """The answer repeats the prompt."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(0, WORDS, rng.integers(2, longest + 1)).tolist() for _ in range(n)]
    return [sample(task, word, word) for word in words]


def hearing(n: int, seed: int = 0) -> list[EncodedSample]:
    """Speech frames, each of which spells one word of the answer: only the adapter can tell which."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(99).normal(size=(WORDS, SPEECH_DIM))
    words = [rng.integers(0, WORDS, 3).tolist() for _ in range(n)]
    return [sample("asr", [VOCABULARY.begin_of_audio, *[VOCABULARY.context_of_audio] * 3, VOCABULARY.end_of_audio],
                   word, signs[word]) for word in words]


def datasets() -> dict[str, list[EncodedSample]]:
    return {"text_qa": copying(64), "asr": hearing(64)}


def preset(**overrides: Any) -> Preset:
    """Six steps of stage 1 over both toy tasks; overrides by dotted key with `__` for the dot."""
    settings = {"training.length": 64, "training.max_tail_pads": 4, "training.checkpoint_every": 2,
                "training.stage1.steps": 6, "training.stage1.rows": 4, "training.stage1.learning_rate": 1e-2,
                "training.stage1.mix": {"text_qa": 0.5, "asr": 0.5}}
    return load_preset("smoke", settings | {key.replace("__", "."): value for key, value in overrides.items()})


class ToyParts:
    """Stands in for `Tokenizers`: a picture's code is its red channel, a sound's codes and frames are its loudness."""

    def __init__(self) -> None:
        self.text = train_text_tokenizer(["Convert the speech to text. a red circle"], 260)
        self.vocabulary = extend(self.text, speech_codes=8, image_codes=256)
        self.seen: list[tuple[str, int]] = []
        self.image = SimpleNamespace(encode=self._image, config=SimpleNamespace(factor=8))
        self.speech_encoder = SimpleNamespace(encode=self._frames, config=SimpleNamespace(dim=SPEECH_DIM))
        self.speech_tokenizer = SimpleNamespace(encode_many=self._codes)

    def fingerprint(self) -> str:
        return "weights-1"

    def _image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += [("image", pixels.shape[-1])] * len(pixels)
        return ((pixels[:, 0, ::8, ::8] + 1) * 127.5).round().long()

    def _frames(self, waves: list[Waveform], batch_size: int) -> list[torch.Tensor]:
        self.seen += [("frames", round(wave.seconds * 10)) for wave in waves]
        return [torch.full((4 + round(wave.seconds * 10), SPEECH_DIM), float(abs(wave.samples).max()))
                for wave in waves]

    def _codes(self, waves: list[Waveform], batch_size: int) -> list[torch.Tensor]:
        self.seen += [("codes", round(wave.seconds * 10)) for wave in waves]
        return [torch.full((round(wave.seconds * 10),), min(7, round(8 * float(abs(wave.samples).max()))))
                for wave in waves]
