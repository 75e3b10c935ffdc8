"""The paper's training data (table 4 of arXiv v1, appendix A) in tokens and bytes.

The paper gives samples or hours, and the stages, but no lengths, no image sizes and no mixing ratios. `ASSUMPTIONS`
holds what is missing, each with its reason, so that a plan can be read for what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from omnidiff_lite.chat import TASKS
from omnidiff_lite.config import Preset
from omnidiff_lite.data.packing import WINDOW, first_fit
from omnidiff_lite.sizes import FRAME_SECONDS, QUERY_FRAMES, TOKENS_PER_SECOND


@dataclass(frozen=True)
class Source:
    """One row of table 4: `samples`, or `hours` of speech in clips of `clip_seconds` (an assumption)."""

    name: str
    task: str
    stages: tuple[int, ...]
    samples: int = 0
    hours: float = 0.0
    clip_seconds: float = 0.0

    @property
    def count(self) -> float:
        return self.samples or self.hours * 3600 / self.clip_seconds


# Names, tasks, stages, samples and hours: the paper. Clip lengths: assumptions, round means of each corpus.
TABLE_4 = (
    Source("Tulu 3 SFT mixture", "text_qa", (1, 2, 3), samples=670_000),
    Source("Laion-2B", "captioning", (1, 2), samples=10_000_000),
    Source("LLaVA-OneVision", "vqa", (2, 3), samples=820_000),
    Source("in-house VQA", "vqa", (2, 3), samples=2_000_000),
    Source("JourneyDB", "t2i", (1, 2, 3), samples=4_000_000),  # printed twice in v1; counted once
    Source("LibriSpeech", "asr", (2, 3), hours=100, clip_seconds=12.5),
    Source("Common Voice 17", "asr", (2, 3), hours=100, clip_seconds=5.0),
    Source("GigaSpeech", "asr", (2, 3), hours=1000, clip_seconds=4.5),
    Source("People's Speech", "asr", (2, 3), hours=100, clip_seconds=14.0),
    Source("VoxPopuli", "asr", (2, 3), hours=54, clip_seconds=10.0),
    Source("LibriTTS", "tts", (2, 3), hours=58, clip_seconds=6.0),
    Source("GLOBE", "tts", (2, 3), hours=50, clip_seconds=4.0),
    Source("Emilia", "tts", (2, 3), hours=5000, clip_seconds=9.0),
    Source("VoiceAssistant-400K", "sqa", (2, 3), samples=250_000),
    Source("AudioQA-1.0M", "sqa", (2, 3), samples=180_000),
    Source("SDVI spoken VQA", "svqa", (3,), samples=30_000),
    Source("SDVI speech to image", "s2i", (3,), samples=30_000),
)

FRAME_RATE = 1 / FRAME_SECONDS

# name: (value, unit, why)
ASSUMPTIONS = {
    "chat": (18, "tokens", "ChatML markers and the instruction of one sample"),
    "text_question": (150, "tokens", "a Tulu 3 prompt"),
    "text_answer": (350, "tokens", "a Tulu 3 answer"),
    "caption": (20, "tokens", "a Laion caption"),
    "image_prompt": (60, "tokens", "a JourneyDB prompt"),
    "question": (40, "tokens", "a written question about a picture"),
    "visual_answer": (60, "tokens", "its written answer"),
    "spoken_question": (5, "seconds", "a spoken question"),
    "spoken_prompt": (15, "seconds", "a spoken JourneyDB prompt"),
    "spoken_answer": (15, "seconds", "a spoken answer; SDVI's are at most 100 words"),
    "text_rate": (3.5, "tokens/s", "2.7 words a second, 1.3 tokens a word"),
    "mean_time": (0.5, "", "t is uniform in 0..1, so half of the answer is scored"),
    "image_bytes": (100e3, "bytes", "a JPEG of 512 pixels"),
    "audio_bytes": (18e3, "bytes/s", "FLAC, 16 kHz, mono"),
    "text_bytes": (4, "bytes", "of text a token"),
}
ASSUMED = {name: value for name, (value, _, _) in ASSUMPTIONS.items()}


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample, or of many: positions of the packed rows, and the media seconds behind them."""

    prompt: float = 0.0  # chat markers and written prompt
    seen: float = 0.0  # image codes and markers in a user turn
    frames: float = 0.0  # continuous speech positions in a user turn
    answer: float = 0.0  # what is predicted: text, codes, markers
    pads: float = 0.0  # tail pads, predicted at the rate gamma
    pictures: float = 0.0
    seconds: float = 0.0  # of speech, in and out

    @property
    def total(self) -> float:
        return self.prompt + self.seen + self.frames + self.answer + self.pads

    def __mul__(self, factor: float) -> Tokens:
        return Tokens(*(factor * getattr(self, f.name) for f in fields(self)))

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def sample_tokens(task: str, preset: Preset, clip_seconds: float = 0.0) -> Tokens:
    """A mean sample of `task`. `clip_seconds`: of the recording in ASR and TTS; elsewhere assumed.

    A user's picture has (understanding_size / factor)^2 codes (1,024 in the release), a drawn one
    (generation_size / factor)^2 (256); both stand between two markers (dataset_qwen2.py:748-777).
    """
    form, a, image = TASKS[task], ASSUMED, preset.image_tokenizer
    written = {"text_qa": a["text_question"], "t2i": a["image_prompt"], "vqa": a["question"],
               "tts": clip_seconds * a["text_rate"]}.get(task, 0)
    heard = {"asr": clip_seconds, "s2i": a["spoken_prompt"]}.get(task, a["spoken_question"]) \
        if "speech" in form.inputs else 0
    spoken = (clip_seconds if task == "tts" else a["spoken_answer"]) if "speech" in form.outputs else 0
    text = {"text_qa": a["text_answer"], "captioning": a["caption"], "vqa": a["visual_answer"],
            "asr": clip_seconds * a["text_rate"]}.get(task, spoken * a["text_rate"]) if "text" in form.outputs else 0
    sees, draws = "image" in form.inputs, "image" in form.outputs
    heard_codes = heard * TOKENS_PER_SECOND if preset.denoiser.speech_input == "discrete" else 0
    return Tokens(
        prompt=a["chat"] + written + 2 * (heard > 0) + heard_codes,
        seen=sees * ((image.understanding_size // image.factor) ** 2 + 2),
        frames=(heard > 0) * (not heard_codes) * (heard * FRAME_RATE + QUERY_FRAMES),
        answer=2 + text + (spoken > 0) * (spoken * TOKENS_PER_SECOND + 2)
        + draws * ((image.generation_size // image.factor) ** 2 + 2),
        pads=(1 + preset.training.max_tail_pads) / 2 if preset.training.max_tail_pads else 0,
        pictures=sees + draws, seconds=heard + spoken)


def sources(stage: int | None = None) -> list[Source]:
    """Rows of table 4 that a stage trains on; all rows if no stage is given."""
    return [source for source in TABLE_4 if stage is None or stage in source.stages]


def total_tokens(rows: Iterable[Source], preset: Preset) -> Tokens:
    """One pass over these rows of the table."""
    return sum((sample_tokens(s.task, preset, s.clip_seconds) * s.count for s in rows), Tokens())


def task_tokens(task: str, preset: Preset) -> Tokens:
    """A mean sample of a task, over its rows of the table."""
    rows = [source for source in TABLE_4 if source.task == task]
    return total_tokens(rows, preset) * (1 / sum(source.count for source in rows))


def packing_efficiency(lengths: Sequence[float], shares: Sequence[float], capacity: int, seed: int = 0) -> float:
    """Share of row positions that hold samples, when `WINDOW` draws are packed as training packs them, 0..1.

    Three captions of 1,070 tokens just miss fitting a row of 3,072, so two leave a third of it to shorter samples.
    Samples over `capacity` count as one full row each.
    """
    weights = np.asarray(shares, float) / np.sum(shares)
    drawn = np.random.default_rng(seed).choice(np.minimum(np.ceil(lengths), capacity).astype(int), WINDOW, p=weights)
    return float(drawn.sum() / (len(first_fit(drawn.tolist(), capacity)) * capacity))


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: the media and texts of one row of the table, and the output of `omnidiff tokenize` for them."""

    name: str
    raw: float
    encoded: float


def disk(preset: Preset, source: Source) -> Disk:
    """`encoded`: ids and labels int32, 8 bytes per token, and float16 speech frames (data/encode.py); no media.

    `raw` counts every answer as text, codes too: they are a hundredth of their picture's bytes.
    """
    tokens = total_tokens([source], preset)
    text = (tokens.prompt + tokens.answer) * ASSUMED["text_bytes"]
    media = tokens.pictures * ASSUMED["image_bytes"] + tokens.seconds * ASSUMED["audio_bytes"]
    frames = tokens.frames * preset.speech_encoder.dim * 2
    return Disk(source.name, text + media, 8 * (tokens.total - tokens.pads) + frames)


def assumptions() -> pd.DataFrame:
    """What the paper does not say and the plan has to assume."""
    return pd.DataFrame([{"assumed": name, "value": f"{value:g} {unit}".strip(), "for": why}
                         for name, (value, unit, why) in ASSUMPTIONS.items()])
