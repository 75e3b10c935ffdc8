"""Matrix products in bfloat16 only where the hardware supports them: elsewhere they take fifty times as long."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import torch
import toys

from omnidiff_lite import precision
from omnidiff_lite.data.packing import PackedStream
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.batches import choose_scored, collate
from omnidiff_lite.training.muon import orthogonal
from omnidiff_lite.training.step import AnswerLoss


def batch():
    config, denoiser = toys.preset().training, toys.denoiser().config
    stream = PackedStream(toys.datasets(), {"text_qa": 1.0}, 64, 2, 0, pad=toys.VOCABULARY.pad,
                          context_of_audio=toys.VOCABULARY.context_of_audio, max_tail_pads=4)
    rows = stream.batch(0)
    scored = [choose_scored(row, config, denoiser, (0, n)) for n, row in enumerate(rows)]
    return collate(rows, scored, ["text_qa"], denoiser)


def test_a_cpu_that_does_not_multiply_bfloat16_trains_in_float32(monkeypatch):
    denoiser, given = toys.denoiser().eval(), batch()
    matrices = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    losses, updates = {}, {}
    for able in (True, False):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, able=able: able)
        losses[able] = {name: AnswerLoss(denoiser, name)(given) for name in ("fp32", "bf16")}
        updates[able] = orthogonal(matrices)
    assert torch.equal(losses[False]["bf16"], losses[False]["fp32"])
    assert not torch.equal(losses[True]["bf16"], losses[True]["fp32"])
    assert (updates[True].dtype, updates[False].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(updates[True].float(), updates[False], rtol=0, atol=0.03)


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(),
                    reason="what this processor has is read from Linux's /proc/cpuinfo on x86")
def test_the_processors_own_flags_decide():
    flags = set(re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text())[1].split())
    if "avx512_bf16" in flags:
        assert matrix_dtype("bf16", "cpu") is torch.bfloat16
    if not any(flag.startswith(("avx512", "amx")) for flag in flags):
        assert matrix_dtype("bf16", "cpu") is torch.float32
    assert matrix_dtype("fp32", "cpu") is torch.float32
