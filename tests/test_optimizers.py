"""Muon takes the matrices inside a network, AdamW the rest; both train."""

import pytest
import toys
import torch
from torch import nn

from omnidiff_lite.config import Budget
from omnidiff_lite.training.fit import fit
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
