"""Matrix products in bfloat16 only where the hardware multiplies it: elsewhere they take fifty times as long."""

from __future__ import annotations

import torch
import toys

from omnidiff_lite import precision
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.muon import orthogonal
from omnidiff_lite.training.step import AnswerLoss
from omnidiff_lite.training.batches import choose_scored, collate
from omnidiff_lite.data.packing import PackedStream


def batch():
    config, denoiser = toys.preset().training, toys.denoiser().config
    stream = PackedStream(toys.datasets(), {"text_qa": 1.0}, 64, 2, 0, pad=toys.VOCABULARY.pad,
                          context_of_audio=toys.VOCABULARY.context_of_audio, max_tail_pads=4)
    rows = stream.batch(0)
    return collate(rows, [choose_scored(row, config, denoiser, (0, n)) for n, row in enumerate(rows)], ["text_qa"], denoiser)


def test_a_cpu_that_does_not_multiply_bfloat16_trains_in_float32(monkeypatch):
    denoiser, given, matrices = toys.denoiser().eval(), batch(), torch.randn(3, 8, 5)
    losses, updates = {}, {}
    for able in (True, False):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, able=able: able)
        losses[able] = {name: AnswerLoss(denoiser, name)(given) for name in ("fp32", "bf16")}
        updates[able] = orthogonal(matrices)
    assert torch.equal(losses[False]["bf16"], losses[False]["fp32"])
    assert not torch.equal(losses[True]["bf16"], losses[True]["fp32"])
    assert (updates[True].dtype, updates[False].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(updates[True].float(), updates[False], rtol=0, atol=0.03)


def test_what_is_asked_for_and_what_there_is_decide():
    assert matrix_dtype("fp32", "cuda") is torch.float32 and matrix_dtype("bf16", "cuda:1") is torch.bfloat16
    assert matrix_dtype("bf16", "cpu") is (torch.bfloat16 if precision.multiplies_bf16("cpu") else torch.float32)
    assert isinstance(precision.multiplies_bf16("cpu"), bool)
