"""Every decoding knob, and each task's settings in the paper and in the released code."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion.filters import ORDERS
from omnidiff_lite.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class DecodingConfig:
    """How a canvas of masks becomes an answer. Raises `ConfigError` for a value out of range."""

    length: int | None = None  # masks at the start; None: the caller gives lengths or a canvas
    steps: int | float | None = None  # a count; or a share of the length, up to 1.0; None: one step per token
    algorithm: str = "entropy"  # which positions come first: an order of `filters.ORDERS`
    temperature: float = 0.0  # 0 = the likeliest token
    top_p: float | None = None
    top_k: int | None = None
    eps: float = 1e-3  # where time ends
    repetition_penalty: float = 1.0  # on ids already decoded; 1 = off
    position_penalty: float = 1.0  # "ramp": largest divisor (released 2.0); "fixed": the factor (paper 0.5); 1 = off
    position_penalty_mode: Literal["ramp", "fixed"] = "ramp"
    position_free: int = 100  # the first masks, never penalised; with no more than this many left, none are
    prefill: Mapping[float, int] = field(default_factory=dict)  # place, as a fraction of the length -> token id
    guidance_scale: float = 1.0  # "aligned": 1 = off; "released": the weight is one more, so 0 = off
    guidance_prompt_ids: Any = None  # unconditional prompt: ids [U], or one such list per sequence; None = no guidance
    guidance_alignment: Literal["aligned", "released"] = "aligned"
    block_length: int | None = None  # decode block after block, left to right; None: all at once
    allowed_ids: Any = None  # ids for every position, or {modality of a canvas span: ids}
    threshold: float | None = None  # also fix positions at least this confident, beyond the schedule
    entropy_bound: float | None = None  # nats; also fix the most confident whose entropies, less the largest, sum to it
    confidence_temperature: float = 0.0  # noise on the order; 0 = most confident first (released alg_temp)
    schedule: Literal["linear", "cosine"] = "linear"  # tokens per step: about equal, or few at first
    early_stop: bool = False  # an answer is over when all remaining masks lie after an end, or would become pads
    head: Literal["allowed", "full"] = "allowed"  # score the ids that may occur, or all: the same answer, more slowly
    cache: Literal["none", "prefix", "dual"] = "none"  # cached keys and values: the prompt's; also decided tokens'
    cache_refresh: int = 4  # steps between full passes; 1: every pass is full, and nothing is approximate
    seed: int = 0  # sequence i of a batch draws from seed + i

    def __post_init__(self) -> None:
        steps = self.steps
        _check("length", self.length is None or self.length >= 1, self.length, "at least 1, or None")
        _check("steps", steps is None or steps >= 1 or (isinstance(steps, float) and 0 < steps), steps,
               "at least 1, a share of the length such as 0.5, or None")
        _check("algorithm", self.algorithm in ORDERS, self.algorithm, f"one of {', '.join(ORDERS)}")
        _check("temperature", self.temperature >= 0, self.temperature, "at least 0")
        _check("top_p", self.top_p is None or 0 < self.top_p <= 1, self.top_p, "above 0 and at most 1, or None")
        _check("top_k", self.top_k is None or self.top_k >= 1, self.top_k, "at least 1, or None")
        _check("eps", 0 <= self.eps < 1, self.eps, "at least 0 and below 1")
        _check("repetition_penalty", self.repetition_penalty > 0, self.repetition_penalty, "above 0; 1 is off")
        _check("position_penalty", self.position_penalty > 0, self.position_penalty, "above 0; 1 is off")
        _check("position_penalty_mode", self.position_penalty_mode in ("ramp", "fixed"), self.position_penalty_mode,
               "'ramp' or 'fixed'")
        _check("position_free", self.position_free >= 0, self.position_free, "at least 0")
        _check("prefill", all(0 <= place < 1 for place in self.prefill), dict(self.prefill),
               "{fraction from 0 to below 1: token id}")
        _check("guidance_alignment", self.guidance_alignment in ("aligned", "released"), self.guidance_alignment,
               "'aligned' or 'released'")
        _check("block_length", self.block_length is None or self.block_length >= 1, self.block_length,
               "at least 1, or None")
        _check("threshold", self.threshold is None or self.algorithm != "random", self.threshold,
               "None with the random algorithm, which has no order")
        _check("threshold", self.threshold is None or self.threshold <= 0 or self.algorithm != "entropy",
               self.threshold,
               "at most 0 with the entropy algorithm, whose sureness is a negative number; or another algorithm")
        _check("entropy_bound", self.entropy_bound is None or (self.entropy_bound >= 0 and self.algorithm != "random"),
               self.entropy_bound, "at least 0, or None; None with the random algorithm, which has no order")
        _check("confidence_temperature", self.confidence_temperature >= 0, self.confidence_temperature, "at least 0")
        _check("schedule", self.schedule in ("linear", "cosine"), self.schedule, "'linear' or 'cosine'")
        _check("early_stop", isinstance(self.early_stop, bool), self.early_stop, "True or False")
        _check("head", self.head in ("allowed", "full"), self.head, "'allowed' or 'full'")
        _check("cache", self.cache == "none" or (self.cache in ("prefix", "dual") and self.algorithm != "random"),
               self.cache, "'none', 'prefix' or 'dual'; 'none' with the random algorithm, which scores what it draws")
        _check("cache_refresh", self.cache_refresh >= 1, self.cache_refresh, "at least 1")

    def replace(self, **changes: Any) -> DecodingConfig:
        """A copy with some fields changed; an unknown field is a `ConfigError` that names it."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(f"unknown decoding setting {name!r}; "
                                  + (f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"))
        return dataclasses.replace(self, **changes)

    def step_count(self, length: int) -> int:
        """Steps for an answer of `length` tokens; never more than one per token."""
        steps = length if self.steps is None else self.steps
        if isinstance(steps, float) and steps <= 1:
            steps = steps * length
        return min(max(int(steps), 1), length)

    def guided(self) -> bool:
        """Whether guidance is on. A scale without an unconditional prompt is a `ConfigError`: it would do nothing."""
        if self.guidance_scale == self.guidance_off:
            return False
        if self.guidance_prompt_ids is None:
            raise ConfigError(f"guidance_scale {self.guidance_scale} needs guidance_prompt_ids, a prompt")
        return True

    @property
    def by_block(self) -> bool:
        """Whether a step need only score its block. Not if ranks, noise, neighbours or an end depend on all masks; and
        a random order draws the positions it scores."""
        return (self.block_length is not None and self.algorithm != "random" and self.position_penalty == 1
                and self.confidence_temperature == 0 and not self.early_stop
                and (self.guidance_alignment == "aligned" or not self.guided()))

    @property
    def guidance_off(self) -> float:
        """The scale that leaves logits unchanged: 1, or 0 in the released form, which adds 1."""
        return 0.0 if self.guidance_alignment == "released" else 1.0

    @classmethod
    def released(cls, task: str, vocabulary: Vocabulary | None = None) -> DecodingConfig:
        """Settings of the released scripts (tools/inference.py; "librispeech", "libritts", "mme": its evaluations).

        top_k 50 is not set there: it is a default of the library's old configurations that reaches the sampler.
        Guided S2I also needs `guidance_prompt_ids`. `vocabulary`: its begin-of-audio id is pre-filled.
        """
        common = {"top_p": 0.9, "top_k": 50, "guidance_alignment": "released", "guidance_scale": 0.0}
        return cls(**common | _settings(RELEASED, task) | _prefill(task, 0.2, vocabulary))

    @classmethod
    def paper(cls, task: str, vocabulary: Vocabulary | None = None) -> DecodingConfig:
        """Settings of section 3.4; where the paper is silent (top_p, repetition penalty, scale), the released value.

        The released guidance with scale 2 weighs the difference by 3, hence 3 here. Speech lengths depend on the input:
        see the pipeline's `AnswerLengths`.
        """
        common = {"temperature": 1.0, "top_p": 0.9}
        return cls(**common | _settings(PAPER, task) | _prefill(task, 0.25, vocabulary))


def _image(length: int, **more: Any) -> dict[str, Any]:
    return {"length": length, "steps": length, "position_penalty": 2.0, **more}


_SPOKEN = {"length": 128, "steps": 128, "repetition_penalty": 1.2}
_TEXT = {"length": 64, "steps": 64}
_SHORT = {"length": 50, "steps": 25}
RELEASED: dict[str, dict[str, Any]] = {
    "s2i": _image(260, repetition_penalty=1.5, guidance_scale=2.0),
    "t2i": _image(260, repetition_penalty=1.2),
    "svqa": _SPOKEN, "sqa": _SPOKEN,
    "vqa": _TEXT, "captioning": _TEXT, "text_qa": _TEXT,
    "tts": _SHORT, "asr": _SHORT,
    "librispeech": {"steps": 0.5},
    "libritts": {"steps": 0.5, "repetition_penalty": 1.2},
    "mme": {"length": 8, "steps": 8},
}
_FIXED = {"position_penalty": 0.5, "position_penalty_mode": "fixed"}
PAPER: dict[str, dict[str, Any]] = {
    "s2i": _image(256, repetition_penalty=1.5, guidance_scale=3.0) | _FIXED,
    "t2i": _image(256, repetition_penalty=1.2) | _FIXED,
    "svqa": _SPOKEN, "sqa": _SPOKEN,
    "vqa": _TEXT, "captioning": _TEXT, "text_qa": _TEXT,
    "tts": {"steps": 0.5, "repetition_penalty": 1.2},
    "asr": {"steps": 0.5},
}


def _settings(table: Mapping[str, dict[str, Any]], task: str) -> dict[str, Any]:
    if task not in table:
        raise ConfigError(f"no decoding settings for task {task!r}; choose one of {', '.join(table)}")
    return table[task]


def _prefill(task: str, fraction: float, vocabulary: Vocabulary | None) -> dict[str, Any]:
    if task not in ("svqa", "sqa"):
        return {}
    return {"prefill": {fraction: (vocabulary or Vocabulary.released()).begin_of_audio}}


def _check(name: str, fine: bool, value: Any, wanted: str) -> None:
    if not fine:
        raise ConfigError(f"{name}: expected {wanted}; got {value!r}")
