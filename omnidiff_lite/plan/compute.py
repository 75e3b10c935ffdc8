"""FLOPs of training, and days at a stated utilisation."""

from __future__ import annotations

from dataclasses import dataclass

from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.config import Preset
from omnidiff_lite.plan.data import (
    ASSUMED, Tokens, packing_efficiency, sample_tokens, sources, task_tokens, total_tokens)
from omnidiff_lite.plan.parts import attention_widths, denoiser_config
from omnidiff_lite.training.trainer import stage_config


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass over a micro batch; a multiplication and an addition count as two."""

    layers: float  # matrices of the layers
    attention: float  # scores and their sum over the values
    head: float  # output projection of the scored positions
    adapter: float
    down: float  # of `layers`, the last matrix of each

    @property
    def forward(self) -> float:
        return self.layers + self.attention + self.head + self.adapter

    @property
    def training(self) -> float:
        """Forward and backward. The backward pass multiplies twice: by the input, and by the weight."""
        return 3 * self.forward

    @property
    def recomputing(self) -> float:
        """The same with activations recomputed: the layers' forward pass once more, except for the last matrix of each,
        whose output no gradient needs (torch's checkpointing stops early)."""
        return self.training + self.layers + self.attention - self.down


def flops(config: DenoiserConfig, rows: float, length: int, scored: float, frames: float = 0,
          ids: int | None = None) -> Flops:
    """A forward pass over `rows` packed rows of `length` tokens, with `scored` positions and speech `frames` in all.

    `ids`: how many the head projects onto; None: all V of the vocabulary.

    2 T n (2 H A + 2 H K + 3 H F) for the matrices of n layers, 4 T L n A for attention over whole rows (every position
    meets every other, and the kernels compute what the packing mask then hides), 2 M H V for the head at only the M
    scored positions, 2 N (D H + H^2) for N frames. The usual count of dense transformers (Kaplan et al. 2020, arXiv
    2001.08361, table 1; PaLM, arXiv 2204.02311, appendix B), with the head apart, at 176,264 ids a tenth of it.
    Norms, activations, softmax and the loss are left out: below one percent.
    """
    hidden, (attention, keys) = config.hidden_size, attention_widths(config)
    tokens, layers = rows * length, config.num_hidden_layers
    matrices = 2 * hidden * attention + 2 * hidden * keys + 3 * hidden * config.intermediate_size
    return Flops(layers=2 * tokens * layers * matrices, attention=4 * tokens * length * layers * attention,
                 head=2 * scored * hidden * (config.vocab_size if ids is None else ids),
                 adapter=2 * frames * (config.speech_dim * hidden + hidden**2),
                 down=2 * tokens * layers * hidden * config.intermediate_size)


@dataclass(frozen=True)
class Work:
    """An amount of training: `days` at the stated utilisation of the stated GPUs."""

    samples: float
    tokens: float  # of samples, padding of the rows not counted
    rows: float
    steps: float
    flops: float
    days: float


@dataclass(frozen=True)
class StageWork:
    """One stage: `data` is one pass over its rows of table 4, `planned` the preset's own number of steps and mix."""

    stage: int
    efficiency: float  # share of row positions that hold samples, in the pass over the data
    data: Work
    planned: Work


def stage_work(preset: Preset, stage: int, flops_per_second: float) -> StageWork:
    """The work of a stage. `flops_per_second`: of all GPUs together, utilisation included.

    Days count the FLOPs of forward and backward only, as model FLOPs utilisation does (PaLM, arXiv 2204.02311,
    appendix B): recomputation costs a quarter more and shows as a lower utilisation.
    """
    config = stage_config(preset, stage)
    table = [(sample_tokens(s.task, preset, s.clip_seconds).total, s.count) for s in sources(stage)]
    passed = total_tokens(sources(stage), preset)
    count = sum(n for _, n in table)
    efficiency = packing_efficiency(*zip(*table), preset.training.length)
    data = _work(preset, passed, count, passed.total / (preset.training.length * efficiency), config.rows,
                 flops_per_second)
    return StageWork(stage, efficiency, data, _planned(preset, stage, flops_per_second))


def _planned(preset: Preset, stage: int, flops_per_second: float) -> Work:
    """The preset's steps, with mean samples of each task in the proportions of its mix."""
    config, length = stage_config(preset, stage), preset.training.length
    means = {task: task_tokens(task, preset) for task in config.mix}
    mean = sum((means[task] * share for task, share in config.mix.items()), Tokens()) * (1 / sum(config.mix.values()))
    filled = packing_efficiency([means[task].total for task in config.mix], list(config.mix.values()), length)
    rows = config.steps * config.rows
    samples = rows * length * filled / mean.total
    return _work(preset, mean * samples, samples, rows, config.rows, flops_per_second)


def _work(preset: Preset, tokens: Tokens, samples: float, rows: float, rows_per_step: int,
          flops_per_second: float) -> Work:
    total = flops(denoiser_config(preset), rows, preset.training.length, scored_tokens(tokens, preset),
                  tokens.frames).training
    return Work(samples, tokens.total, rows, rows / rows_per_step, total, total / flops_per_second / 86400)


def scored_tokens(tokens: Tokens, preset: Preset) -> float:
    """How many tokens are masked and scored: answers at the mean time, tail pads gamma times as often (section 3.3)."""
    return ASSUMED["mean_time"] * (tokens.answer + preset.training.gamma * tokens.pads)


def most_scored(preset: Preset) -> int:
    """The most positions of a row that can be scored: all answers masked, in a row of the task with the longest
    answers."""
    tasks = {task for stage in (1, 2, 3) for task in stage_config(preset, stage).mix}
    means = [task_tokens(task, preset) for task in tasks]
    return round(preset.training.length * max((mean.answer + mean.pads) / mean.total for mean in means))
