"""Presets: one tree of frozen dataclasses whose defaults are the released full-size system.

`load_preset("smoke")` reads `presets/smoke.yaml`, which names only what differs from full size.
Strict: an unknown key or a value of the wrong type is a `ConfigError` that names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from omnidiff_lite.sizes import (DenoiserSize, FlowConfig, ImageTokenizerConfig, SpeechDecoderConfig,
                                 SpeechEncoderConfig, SpeechTokenizerConfig, TextTokenizerConfig, VocoderConfig)
from omnidiff_lite.strict import ENDLESS, ConfigError, from_dict, to_dict, within

__all__ = ["ConfigError", "DenoiserSize", "FlowConfig", "ImageTokenizerConfig", "Preset", "SpeechDecoderConfig",
           "SpeechEncoderConfig", "SpeechTokenizerConfig", "TextTokenizerConfig", "VocoderConfig", "from_dict",
           "load_preset", "preset_names", "to_dict"]
PRESETS = Path(__file__).parent / "presets"
Task = Literal["text_qa", "captioning", "vqa", "t2i", "asr", "tts", "sqa", "svqa", "s2i"]
MaskSchedule = Literal["linear", "cosine", "cubic"]


@dataclass(frozen=True)
class Budget:
    """How long one part trains, and how fast."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    items: int = 1000  # training items drawn from the world
    precision: Literal["bf16", "fp32"] = "fp32"  # of the matrix products; bf16 where the hardware has it, else fp32
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the inner matrices (the rest stays with AdamW)

    def __post_init__(self) -> None:
        within(self, steps=(0, ENDLESS), batch=(1, ENDLESS), learning_rate=(0, ENDLESS), warmup=(0, 1),
               weight_decay=(0, ENDLESS), items=(1, ENDLESS))


@dataclass(frozen=True)
class WorldConfig:
    """The embedded world (`omnidiff_lite.world`): what is drawn, and who speaks."""

    image_size: int = 256  # pixels of a drawn picture, square
    max_objects: int = 4
    grid: int = 4  # objects sit near the centres of a grid x grid lattice
    jitter: float = 0.1  # displacement from the lattice point, in cells
    train_voices: int = 24
    max_seconds: float = 6.0  # longest utterance kept
    short_share: float = 0.5  # of the training sentences spoken: one to three words in any order

    def __post_init__(self) -> None:
        within(self, image_size=(1, ENDLESS), grid=(1, ENDLESS), jitter=(0, ENDLESS), train_voices=(1, ENDLESS),
               max_seconds=(0.1, ENDLESS), short_share=(0, 1))
        within(self, max_objects=(1, self.grid**2))  # one per cell


@dataclass(frozen=True)
class StageConfig:
    """One of the three stages of section 3.3."""

    steps: int = 1000
    rows: int = 128  # packed rows per step
    learning_rate: float = 1e-4
    warmup: float = 0.03
    final: float = 0.0  # share of the learning rate left at the end of the cosine
    evenness: float = 0.0  # token weight 1 / answer length ** this: 0 all tokens equal (released), 1 all answers equal
    left_to_right: float = 0.0  # share of the steps, from the first: no masks, each token predicted from earlier ones
    mix: dict[Task, float] = field(default_factory=dict)  # task -> share of the samples
    weights: dict[Task, float] = field(default_factory=dict)  # task -> factor on its tokens' loss; 1 where not named

    def __post_init__(self) -> None:
        within(self, steps=(0, ENDLESS), rows=(1, ENDLESS), learning_rate=(0, ENDLESS), warmup=(0, 1), final=(0, 1),
               evenness=(0, ENDLESS), left_to_right=(0, 1))
        for task, weight in self.weights.items():
            if not 0 <= weight < ENDLESS:
                raise ConfigError(f"weights.{task}: expected at least 0, got {weight:g}")


@dataclass(frozen=True)
class TrainingConfig:
    """Corruption, optimizer and packing (section 3.3 and appendix A of the paper)."""

    length: int = 3072  # tokens in a packed row
    gamma: float = 0.6  # tail-pad masking ratio factor
    max_tail_pads: int = 16
    time: Literal["sequence", "token"] = "sequence"  # paper | released code
    schedule: MaskSchedule = "linear"  # share masked at time t: t (the paper), or more
    suffix: dict[Task, float] = field(default_factory=dict)  # task -> share of answers masked from some point onward
    loss_weight: Literal["plain", "bound"] = "plain"  # of a masked token: 1 (equation 1), or the likelihood bound's 1/t
    optimizer: Literal["adamw", "muon"] = "adamw"  # as in `Budget`
    weight_decay: float = 0.0
    clip: float = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"  # as in `Budget`
    compile: bool = False
    recompute: bool = False  # recompute activations in the backward pass, to save memory
    processes: int = 1  # on a CPU; they share the rows of a step
    micro_rows: int = 0  # rows per forward pass, to save memory; 0 = all of a process's rows at once
    checkpoint_every: int = 600
    samples: dict[Task, int] = field(default_factory=dict)  # task -> training samples
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig()
    stage3: StageConfig = StageConfig(learning_rate=1e-5)

    def __post_init__(self) -> None:
        within(self, length=(1, ENDLESS), gamma=(0, 1), max_tail_pads=(0, ENDLESS), weight_decay=(0, ENDLESS),
               processes=(1, ENDLESS), micro_rows=(0, ENDLESS), checkpoint_every=(1, ENDLESS))
        if not 0 < self.clip < ENDLESS:
            raise ConfigError(f"clip: expected more than 0, the largest norm of a gradient, got {self.clip:g}")
        for task, share in self.suffix.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"suffix.{task}: expected 0 to 1, got {share:g}")
        if any(self.suffix.values()) and self.time != "sequence":
            raise ConfigError("suffix: one time says how much of an answer's end is masked; it needs time 'sequence'")
        self._refuse_no_bound()

    def _refuse_no_bound(self) -> None:
        """With weights by answer length, or masks in one order only, the "bound" would no longer bound anything."""
        if self.loss_weight == "bound" and any(self.suffix.values()):
            raise ConfigError("loss_weight: 'bound' bounds the likelihood over all orders, suffix masks are of one "
                              "order; set training.suffix to {}")
        uneven = [name for name in ("stage1", "stage2", "stage3") if getattr(self, name).evenness > 0]
        if self.loss_weight == "bound" and uneven:
            raise ConfigError("loss_weight: 'bound' weighs tokens by their time alone, but evenness, which weighs them "
                              "by answer length too, is above 0; set " +
                              " and ".join(f"training.{name}.evenness to 0" for name in uneven))


@dataclass(frozen=True)
class PartBudgets:
    """Budgets of everything that trains before stage 1."""

    image_tokenizer: Budget = Budget()
    speech_encoder: Budget = Budget()
    speech_tokenizer: Budget = Budget()
    speech_decoder: Budget = Budget()
    recognition_judge: Budget = Budget()
    alignment_judge: Budget = Budget()


@dataclass(frozen=True)
class JudgeConfig:
    """Learned judges: small ones trained here, or Whisper and CLIP by directory or hub id."""

    recognition: str = "openai/whisper-large-v3"  # "trained" = a CTC recogniser on the world
    clip_t: str = "openai/clip-vit-base-patch32"  # "trained" = a CLIP-like model on the world
    clip_i: str = "openai/clip-vit-large-patch14"
    recogniser: SpeechEncoderConfig = SpeechEncoderConfig(
        dim=128, ffn=256, blocks=4, tp_blocks=2, ctc_vocabulary=32, ctc_steps=3)
    clip_dim: int = 128
    clip_layers: int = 3


@dataclass(frozen=True)
class EvaluationConfig:
    """How many items each table uses."""

    items: int = 200
    bootstrap: int = 1000
    batch: int = 16
    steps: tuple[int, ...] = (256, 50, 10, 4, 1)  # table 3, image rows; the paper has the first three
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)  # table 3, speech rows, of the length L

    def __post_init__(self) -> None:
        within(self, items=(1, ENDLESS), bootstrap=(1, ENDLESS), batch=(1, ENDLESS))
        if not self.steps or min(self.steps) < 1:
            raise ConfigError(f"steps: expected a list of numbers of at least 1, got {list(self.steps)}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"ratios: expected a list of shares above 0 and up to 1, got {list(self.ratios)}")


@dataclass(frozen=True)
class Preset:
    """Everything that one run of the kit depends on, except its seed."""

    name: str
    world: WorldConfig = WorldConfig()
    text_tokenizer: TextTokenizerConfig = TextTokenizerConfig()
    image_tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    speech_encoder: SpeechEncoderConfig = SpeechEncoderConfig()
    speech_tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    speech_decoder: SpeechDecoderConfig = SpeechDecoderConfig()
    denoiser: DenoiserSize = DenoiserSize()
    parts: PartBudgets = PartBudgets()
    training: TrainingConfig = TrainingConfig()
    judges: JudgeConfig = JudgeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decoding: dict[Task, dict[str, Any]] = field(default_factory=dict)  # task -> DecodingConfig fields

    def __post_init__(self) -> None:
        stride, pooling = self.speech_encoder.stride, self.speech_tokenizer.pooling
        if stride != 6:
            raise ConfigError("speech_encoder.stride must be 6: answers get their lengths from 60 ms frames; got "
                              f"{stride}")
        if pooling != 4:
            raise ConfigError("speech_tokenizer.pooling must be 4: the speech decoder speaks 12.5 tokens a second; got "
                              f"{pooling}")
        if self.speech_tokenizer.codes != self.speech_decoder.codes:
            raise ConfigError(f"speech_tokenizer.codes is {self.speech_tokenizer.codes}, speech_decoder.codes "
                              f"{self.speech_decoder.codes}: one codebook, so give both the same")


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load_preset(name: str | Path, overrides: dict[str, Any] | None = None) -> Preset:
    """A shipped preset by name, or a YAML file by path, with dotted overrides on top.

    `load_preset("smoke", {"training.stage1.steps": 3})`. Raises `ConfigError`.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.exists():
        raise ConfigError(f"no preset {str(name)!r}: choose one of {', '.join(preset_names())}, or give a .yaml file")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; a preset is a mapping of sections")
    tree.setdefault("name", path.stem)
    for key, value in (overrides or {}).items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} is a value, not a section")
        node[leaf] = value
    return from_dict(Preset, tree)
