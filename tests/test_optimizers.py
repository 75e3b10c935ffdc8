"""Muon takes the matrices inside a network, AdamW the rest; both train. Muon's updates equal torch's, however many
processes share them."""

from functools import partial

import pytest
import toys
import torch
from accelerate import PartialState
from torch import nn

from omnidiff_lite import precision
from omnidiff_lite.config import Budget
from omnidiff_lite.processes import together
from omnidiff_lite.training import muon
from omnidiff_lite.training.fit import fit
from omnidiff_lite.training.muon import Muon, orthogonal
from omnidiff_lite.training.optimizers import make_optimizers


def names(optimizer, module):
    known = {id(p): name for name, p in module.named_parameters()}
    return {known[id(p)] for group in optimizer.param_groups for p in group["params"]}


def test_muon_gets_the_matrices_of_the_layers_and_nothing_else():
    denoiser = toys.denoiser()
    adamw, muon = make_optimizers(denoiser, "muon", 1e-3)
    inner, outer = names(muon, denoiser), names(adamw, denoiser)
    assert inner and all(".layers." in name and name.endswith("proj.weight") for name in inner)
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= outer
    assert any("audio_projection" in name for name in outer)
    assert inner | outer == {name for name, _ in denoiser.named_parameters()} and not inner & outer


def test_frozen_parameters_are_left_alone():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    adamw, muon = make_optimizers(module, "muon", 1e-3)
    assert names(muon, module) == {"1.weight"} and names(adamw, module) == {"1.bias"}


@pytest.mark.parametrize("optimizer, rate", [("adamw", 2e-2), ("muon", 1e-1)])
def test_a_part_learns_with_either(optimizer, rate):
    module, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), torch.randn(
        64, 8, generator=torch.Generator().manual_seed(0))
    history = fit(module, lambda step: ((module(x) - x).square().mean(), {}),
                  Budget(steps=60, learning_rate=rate, optimizer=optimizer), name="copy", progress=False)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 3 and not module.training


def matrices():
    """Tall, wide and square ones, of which one shape has an odd number."""
    made = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=made)) for shape in [(8, 24), (24, 8), (16, 16)] * 3 + [(8, 24)]]


def stepped(optimizer, steps=4):
    noise = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.randn(p.shape, generator=noise)
        optimizer.step()
    return [p.detach().clone() for p in optimizer.param_groups[0]["params"]]


def test_stacked_updates_are_those_of_torch_and_so_is_the_state(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)  # torch's own always rounds to bfloat16
    ours, plain = Muon(matrices(), 0.02, 0.1), torch.optim.Muon(matrices(), 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    before = matrices()
    for new, expected, old in zip(stepped(ours), stepped(plain), before, strict=True):
        moved = (expected - old).norm()
        assert moved > 0.1 and (new - expected).norm() < 0.01 * moved  # bfloat16 rounds inside
    theirs = torch.optim.Muon(matrices(), 0.02, adjust_lr_fn="match_rms_adamw")
    theirs.load_state_dict(ours.state_dict())
    for p, q in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(ours.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"])


def test_singular_values_come_near_one():
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(0))).float())
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_matrix_without_a_gradient_stays():
    kept, moved = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    moved.grad = torch.eye(4)
    Muon([kept, moved], 0.1).step()
    assert torch.equal(kept, torch.ones(4, 4)) and not torch.equal(moved, torch.ones(4, 4))


def step_and_save(out):
    rank = PartialState(cpu=True).process_index
    torch.save(stepped(Muon(matrices(), 0.02)), out / f"{rank}.pt")


def test_processes_that_share_the_updates_make_the_same(tmp_path):
    together(2, partial(step_and_save, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(map(torch.equal, first, second))
    for shared, alone, old in zip(first, stepped(Muon(matrices(), 0.02)), matrices(), strict=True):
        assert (shared - alone).norm() < 0.01 * (alone - old).norm()


def test_large_matrices_are_updated_one_by_one(monkeypatch):
    together_, alone = stepped(Muon(matrices(), 0.02)), Muon(matrices(), 0.02)
    monkeypatch.setattr(muon, "AT_ONCE", 1)
    sizes, real = [], muon.orthogonal
    monkeypatch.setattr(muon, "orthogonal", lambda stack: (sizes.append(len(stack)), real(stack))[1])
    for one, all_ in zip(stepped(alone), together_, strict=True):
        torch.testing.assert_close(one, all_, rtol=0, atol=1e-3)
    assert set(sizes) == {1}
