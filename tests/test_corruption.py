"""Masking: the paper's time, attenuated tail pads; the released draws and statistics are in test_parity_report.py."""

from __future__ import annotations

import math

import pytest
import torch

from omnidiff_lite.diffusion.corruption import SCHEDULES, corrupt, corrupt_suffix, mask_rate, sample_time
from omnidiff_lite.parity import GOLDEN

RELEASED = GOLDEN.json("forward_process")
PAD, RUNS = 151643, RELEASED["runs"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_time_per_sequence_spreads_the_number_of_masks():
    """One t per sequence: nearly full and nearly empty masks are as common as half ones; variance 44, not 5.5."""
    labels = torch.tensor(RELEASED["labels"]).expand(RUNS, -1)
    generator = seeded()
    masked = corrupt(labels, labels == PAD, sample_time(labels, "sequence", generator), 0.6, generator)[:, 6:28]
    assert masked.sum(1).float().var().item() == pytest.approx(44, rel=0.05)
    assert masked.float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_mask_rate_is_t_and_gamma_t_for_pads():
    ids, pads = torch.arange(20000), torch.arange(20000) >= 10000
    masked = corrupt(ids, pads, 0.5, 0.6, seeded())
    assert masked[:10000].float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert masked[10000:].float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert corrupt(ids, False, 1.0, 0.6, seeded()).all() and not corrupt(ids, False, 0.0, 0.6, seeded()).any()


def test_time_may_be_given_for_each_sequence():
    ids = torch.zeros(2, 1000, dtype=torch.long)
    for t in (torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [1.0]])):
        assert corrupt(ids, False, t, 0.6, seeded()).float().mean(1).tolist() == [0, 1]


def test_packed_rows_draw_one_time_for_each_segment():
    segments = torch.tensor([[0, 0, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
    t = sample_time(segments, "sequence", seeded(), segment_ids=segments)
    assert t.shape == segments.shape and t[0, 0] == t[0, 1] and t[0, 2] == t[0, 3] == t[0, 4]
    assert len({t[0, 0].item(), t[0, 2].item(), t[1, 0].item()}) == 3


def test_time_ranges_and_shapes():
    assert sample_time((3, 5), "sequence", seeded()).shape == (3, 1)
    token = sample_time((300, 50), "token", seeded())
    assert token.shape == (300, 50) and 1e-3 <= token.min() < 2e-3 and token.max() <= 1
    with pytest.raises(ValueError, match="'batch' is none of"):
        sample_time((3, 5), "batch")


def test_same_seed_same_mask():
    ids = torch.zeros(4, 50, dtype=torch.long)
    assert torch.equal(corrupt(ids, False, 0.5, 0.6, seeded(3)), corrupt(ids, False, 0.5, 0.6, seeded(3)))
    assert not torch.equal(corrupt(ids, False, 0.5, 0.6, seeded(3)), corrupt(ids, False, 0.5, 0.6, seeded(4)))


def test_a_mask_schedule_says_how_much_is_hidden_at_a_time():
    """Linear hides half on average, cosine 2 / pi, cubic three quarters; each nothing at 0 and everything at 1."""
    t = torch.linspace(0, 1, 10001)
    for schedule, mean in (("linear", 0.5), ("cosine", 2 / math.pi), ("cubic", 0.75)):
        rate = mask_rate(t, schedule)
        assert rate[0] == 0 and rate[-1] == pytest.approx(1) and rate.mean().item() == pytest.approx(mean, abs=1e-3)
        assert (rate.diff() >= 0).all()
    nearly_full = {schedule: (mask_rate(t, schedule) > 0.95).float().mean().item() for schedule in SCHEDULES}
    assert nearly_full == pytest.approx({"linear": 1 / 20, "cosine": 1 / 5, "cubic": 1 / 2.7}, rel=0.02)
    with pytest.raises(ValueError, match="'square' is none of 'linear', 'cosine', 'cubic'"):
        mask_rate(t, "square")


def test_a_suffix_is_masked_whole_and_grows_with_time():
    """Two answers of 4 and 2 tokens, and a prompt before each: of each the last round(t n), whatever the other's t."""
    answer = torch.tensor([-1, 0, 0, 0, 0, -1, 1, 1, -1])
    for t, u, masked in ((0.0, 1.0, "......##."), (0.5, 0.5, "...##..#."), (0.76, 0.1, "..###...."),
                         (1.0, 0.0, ".####....")):
        times = torch.where(answer == 1, u, t)
        assert "".join(".#"[hidden] for hidden in corrupt_suffix(answer, times).int().tolist()) == masked
    assert not corrupt_suffix(torch.full((3,), -1), torch.rand(3)).any()
