"""How fast a stage trained: measured on toy rows, as training takes them, and reported with its numbers."""

import pandas as pd
import pytest
import torch
import toys

from omnidiff_lite.data.packing import PackedStream
from omnidiff_lite.plan.training_speed import TrainingSpeed, training_speed
from omnidiff_lite.training.step import AnswerLoss

LOG = pd.DataFrame({"seconds": [1.0, 1.5, 2.0, 2.5], "data_seconds": 0.125, "tokens_per_second": 640.0})


def measured(repeats=2, **overrides):
    preset, denoiser = toys.preset(**overrides), toys.denoiser()
    stream = PackedStream(toys.datasets(), {"text_qa": 0.5, "asr": 0.5}, 64, 4, 0, pad=toys.VOCABULARY.pad,
                          context_of_audio=toys.VOCABULARY.context_of_audio, max_tail_pads=4)
    before = [p.clone() for p in denoiser.parameters()]
    speed = training_speed(preset, denoiser, stream.batch(0), stream.tasks, LOG, repeats)
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(denoiser.parameters(), before))
    assert not denoiser.training
    return speed


def test_a_step_is_the_logs_and_a_bare_pass_is_timed():
    speed = measured(repeats=3)
    assert (speed.step, speed.data, speed.tokens_per_second) == (0.5, 0.125, 640) and speed.bare > 0 < speed.flops
    assert (speed.steps, speed.repeats) == (4, 3)
    assert "medians of 4 steps, of the bare pass 3" in str(speed)


@pytest.mark.parametrize("micro_rows, sizes", [(0, [4]), (1, [1, 1, 1, 1]), (3, [3, 1])])
def test_rows_go_through_as_many_at_a_time_as_in_training(monkeypatch, micro_rows, sizes):
    seen, real = [], AnswerLoss.forward
    monkeypatch.setattr(AnswerLoss, "forward",
                        lambda self, batch: seen.append(len(batch.input_ids)) or real(self, batch))
    measured(repeats=1, training__micro_rows=micro_rows)
    assert seen == sizes * 3, "two passes to warm up, one timed"


def test_a_bare_pass_slower_than_the_step_leaves_nothing_for_the_rest():
    speed = TrainingSpeed(100.0, step=0.1, data=0.02, bare=0.3, flops=1e6, peak=1e9, dtype="float32", device="CPU",
                          steps=4, repeats=3)
    table = speed.table().set_index("part")
    assert table.loc["update, log, unlike batches", "ms"] == 0 and table.loc["forward and backward", "ms"] == 300
