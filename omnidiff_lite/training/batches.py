"""From packed rows to what the denoiser sees: choose what to predict, hide it, stack into tensors.

The masks of a row depend on (seed, stage, step, row) alone: not on the number of processes, on the micro-batch, or on
whether the run was resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.config import TrainingConfig
from omnidiff_lite.data.packing import PackedRow
from omnidiff_lite.diffusion.corruption import corrupt, mask_rate, sample_time


@dataclass(frozen=True)
class Batch:
    """Corrupted rows, [B, length] each unless said otherwise."""

    input_ids: Tensor  # int64, masked positions replaced
    targets: Tensor  # int64, the id to predict where one is, -100 elsewhere
    segment_ids: Tensor  # int64, -1 on padding
    position_ids: Tensor  # int64
    speech_frames: Tensor  # float32 [B, length, dim], 0 where there is no speech
    tasks: Tensor  # int64, index into the list of tasks, -1 on padding
    weights: Tensor  # float32, of each position's loss; 0 where no answer is

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)))


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers of at least 0, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def choose_scored(row: PackedRow, config: TrainingConfig, denoiser: DenoiserConfig, seed: Sequence[int]) -> Tensor:
    """The positions of a row to predict, bool [length]; answers only.

    Masked ones: tail pads at the rate gamma * t, one t a sample where `config.time` is "sequence" (the paper), one a
    token where it is "token" (the released code). For a causal denoiser, the autoregressive twin, the whole answer.
    """
    labels, segments = torch.from_numpy(row.labels), torch.from_numpy(row.segment_ids)
    if denoiser.is_causal:
        return labels != IGNORE
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    t = sample_time(labels[None], config.time, generator, segments[None])[0]
    rate = mask_rate(t, config.schedule)
    return corrupt(labels, labels == denoiser.pad_token_id, rate, config.gamma, generator)


def collate(rows: Sequence[PackedRow], scored: Sequence[Tensor], tasks: Sequence[str], denoiser: DenoiserConfig,
            evenness: float = 0.0) -> Batch:
    """Stack rows; the `scored` positions become the targets, and are hidden from all but a causal denoiser.

    `evenness` as in `StageConfig`.
    """
    ids, labels, segments, positions = (torch.from_numpy(np.stack([getattr(row, name) for row in rows]))
                                        for name in ("input_ids", "labels", "segment_ids", "position_ids"))
    chosen = torch.stack(list(scored))
    frames = torch.zeros(*ids.shape, max(row.frames.shape[1] for row in rows))
    for number, row in enumerate(rows):
        if len(row.frames):
            frames[number, row.frame_positions] = torch.from_numpy(row.frames).float()
    seen = ids if denoiser.is_causal else ids.masked_fill(chosen, denoiser.mask_token_id)
    return Batch(seen, labels.masked_fill(~chosen, IGNORE), segments, positions, frames,
                 torch.stack([_task_ids(row, tasks) for row in rows]),
                 torch.stack([answer_weights(row, evenness) for row in rows]))


def answer_weights(row: PackedRow, evenness: float) -> Tensor:
    """Weight of each position's loss [length]: 1 / answer length ** evenness in an answer, 0 elsewhere.

    The length is that of the whole answer with its tail pads, masked or not: samples weigh the same at every time t
    and beside any others in the row.
    """
    answers, segments = torch.from_numpy(row.labels) != IGNORE, torch.from_numpy(row.segment_ids)
    lengths = torch.bincount(segments[answers], minlength=len(row.tasks)).float()
    return torch.where(answers, lengths[segments.clamp_min(0)].clamp_min(1) ** -evenness, 0.0)


def _task_ids(row: PackedRow, tasks: Sequence[str]) -> Tensor:
    numbers = torch.tensor([tasks.index(task) for task in row.tasks] + [-1])  # segment -1 finds the last: padding
    return numbers[torch.from_numpy(row.segment_ids)]
