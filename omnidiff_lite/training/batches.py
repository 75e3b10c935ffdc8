"""From packed rows to what the denoiser sees: choose what to predict, hide it, stack into tensors.

The masks of a row depend only on (seed, stage, step, row): not on the number of processes, the micro-batch, or whether
the run was resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnidiff_lite.adapters import NO_ANSWER
from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import ConfigError, TrainingConfig
from omnidiff_lite.data.packing import PackedRow
from omnidiff_lite.diffusion.corruption import bound_weight, corrupt, mask_rate, sample_time, corrupt_suffix


@dataclass(frozen=True)
class Batch:
    """Corrupted rows, each tensor [B, length] unless stated otherwise."""

    input_ids: Tensor  # int64, masked positions replaced
    targets: Tensor  # int64, the id to predict, -100 where there is none
    segment_ids: Tensor  # int64, -1 on padding
    position_ids: Tensor  # int64
    speech_frames: Tensor  # float32 [B, length, dim], 0 where there is no speech
    tasks: Tensor  # int64, index into the list of tasks, -1 on padding
    weights: Tensor  # float32, of each position's loss; 0 outside answers
    time_weights: Tensor  # float32, a further factor of the loss: 1, or the bound's
    masked_share: Tensor  # float32, of all answers of the sample, -1 outside answers

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)))


def derive_seed(*parts: int) -> int:
    """One well-mixed 63-bit seed from several non-negative numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def choose_scored(row: PackedRow, config: TrainingConfig, denoiser: DenoiserConfig, seed: Sequence[int]) -> Tensor:
    """The positions of a row to predict, bool [length]; answers only.

    Those masked: tail pads at gamma times the rate of other tokens, with one t per sample if `config.time` is
    "sequence" (the paper), one per token if it is "token" (the released code). In a share `config.suffix` of a task's
    samples, the end of each answer is masked instead: the share t of its tokens, pads included. For a causal denoiser,
    the autoregressive twin: the whole answer.
    """
    labels = torch.from_numpy(row.labels)
    if denoiser.is_causal:
        return labels != IGNORE
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    times = _times(row, config, generator)
    from_left = _from_left(row, config, generator) if any(config.suffix.values()) else None
    masked = corrupt(labels, labels == denoiser.pad_token_id, mask_rate(times, config.schedule), config.gamma,
                     generator)
    return masked if from_left is None else torch.where(from_left, corrupt_suffix(answer_numbers(row), times), masked)


def time_weights(row: PackedRow, config: TrainingConfig, denoiser: DenoiserConfig, seed: Sequence[int]) -> Tensor:
    """The factor that its time gives each position's loss [length], for the times at which `choose_scored` masks.

    1 with `loss_weight` "plain" and for a causal denoiser, whose loss is exact; else the bound's. Raises `ConfigError`
    if each token has its own time: bounding a likelihood needs masks of a single time.
    """
    if config.loss_weight == "plain" or denoiser.is_causal:
        return torch.ones(len(row.labels))
    if config.time != "sequence":
        raise ConfigError("training.loss_weight 'bound' needs training.time 'sequence': with a time for each token the "
                          "weighted loss bounds no likelihood")
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    return bound_weight(_times(row, config, generator), config.schedule)


def _times(row: PackedRow, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """The noise level t of each position [length]; the first draw from `generator`."""
    segments = torch.from_numpy(row.segment_ids)[None]
    return sample_time(segments, config.time, generator, segments)[0]


def _from_left(row: PackedRow, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Whether a position's sample is one of those masked from some point onward, bool [length]."""
    shares = torch.tensor([config.suffix.get(task, 0.0) for task in row.tasks] + [0.0])  # segment -1 takes the last
    return (torch.rand(shares.shape, generator=generator) < shares)[torch.from_numpy(row.segment_ids)]


def collate(rows: Sequence[PackedRow], scored: Sequence[Tensor], tasks: Sequence[str], denoiser: DenoiserConfig,
            evenness: float = 0.0, factors: Sequence[Tensor] | None = None,
            task_weights: Mapping[str, float] = {}) -> Batch:
    """Stack rows; the `scored` positions become the targets, and are masked unless the denoiser is causal.

    `evenness` and `task_weights` as in `StageConfig` (`weights`). `factors` [length] each: `time_weights`; 1 if not
    given.
    """
    ids, labels, segments, positions = (torch.from_numpy(np.stack([getattr(row, name) for row in rows]))
                                        for name in ("input_ids", "labels", "segment_ids", "position_ids"))
    chosen = torch.stack(list(scored))
    frames = torch.zeros(*ids.shape, denoiser.speech_dim)
    for number, row in enumerate(rows):
        if len(row.frames):
            frames[number, row.frame_positions] = torch.from_numpy(row.frames).float()
    hidden = torch.zeros_like(chosen) if denoiser.is_causal else chosen
    seen = ids.masked_fill(hidden, denoiser.mask_token_id)
    return Batch(seen, labels.masked_fill(~chosen, IGNORE), segments, positions, frames,
                 torch.stack([_task_ids(row, tasks) for row in rows]),
                 torch.stack([answer_weights(row, evenness, task_weights) for row in rows]),
                 torch.ones(ids.shape) if factors is None else torch.stack(list(factors)),
                 torch.stack([masked_share(row, mask) for row, mask in zip(rows, hidden)]))


def answer_weights(row: PackedRow, evenness: float, task_weights: Mapping[str, float] = {}) -> Tensor:
    """Weight of each position's loss [length]: 1 / answer length ** evenness in an answer, times its task's weight (1
    unless given); 0 elsewhere.

    The length is that of the whole answer with its tail pads, masked or not: an answer weighs the same at every time t,
    whatever else is in the row, be it another sample or another turn of a conversation.
    """
    answer = answer_numbers(row)
    lengths = torch.bincount(answer[answer >= 0], minlength=1).float()
    factors = torch.tensor([task_weights.get(task, 1.0) for task in row.tasks] + [0.0])  # segment -1 takes the last
    weights = factors[torch.from_numpy(row.segment_ids)] * lengths[answer.clamp_min(0)].clamp_min(1) ** -evenness
    return torch.where(answer >= 0, weights, 0.0)


def answer_numbers(row: PackedRow) -> Tensor:
    """The answer that each position of the row belongs to, numbered from 0 in order, -1 outside: int64 [length]."""
    answers, segments = torch.from_numpy(row.labels) != IGNORE, torch.from_numpy(row.segment_ids)
    goes_on = torch.zeros_like(answers)
    goes_on[1:] = answers[:-1] & (segments[1:] == segments[:-1])
    return torch.where(answers, (answers & ~goes_on).cumsum(0) - 1, -1)


def masked_share(row: PackedRow, masked: Tensor) -> Tensor:
    """Masked share of each sample's answer, tail pads included: [length], -1 outside answers."""
    answers, segments = torch.from_numpy(row.labels) != IGNORE, torch.from_numpy(row.segment_ids)
    hidden, whole = (torch.bincount(segments[here], minlength=max(1, len(row.tasks)))
                     for here in (answers & masked, answers))
    return torch.where(answers, (hidden / whole.clamp_min(1))[segments.clamp_min(0)], NO_ANSWER)


def _task_ids(row: PackedRow, tasks: Sequence[str]) -> Tensor:
    numbers = torch.tensor([tasks.index(task) for task in row.tasks] + [-1])  # segment -1 takes the last: padding
    return numbers[torch.from_numpy(row.segment_ids)]
