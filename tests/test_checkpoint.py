"""Checkpoints: exact, whole or absent, from one run, and replaced by the previous one if damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnidiff_lite.training.checkpoint import Checkpoints, Optimizers, tensors
from omnidiff_lite.weights import CheckpointError

RUN = {"stage": 1, "seed": 0, "training.gamma": 0.6, "training.stage1.learning_rate": 1e-3}


def network(seed: int = 0) -> tuple[torch.nn.Module, Optimizers]:
    """Two layers; the first one's matrix with Muon, the rest with AdamW."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    matrix, *rest = model.parameters()
    return model, [torch.optim.AdamW(rest, lr=1e-2), torch.optim.Muon([matrix], lr=1e-2)]


def train(model: torch.nn.Module, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(5, 3)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def saved(directory: Path, *steps: int) -> Checkpoints:
    """A run that was checkpointed after these steps."""
    checkpoints, (model, optimizers), done = Checkpoints(directory, RUN), network(), 0
    for step in steps:
        train(model, optimizers, range(done, step))
        checkpoints.save(step, model, optimizers)
        done = step
    return checkpoints


def test_a_resumed_optimizer_goes_on_to_the_last_bit(tmp_path):
    straight = network()
    train(*straight, range(6))
    checkpoints = saved(tmp_path, 3)
    resumed = network(seed=1)
    assert checkpoints.load(*resumed) == 3
    train(*resumed, range(3, 6))
    for ours, theirs in zip(tensors(*resumed), tensors(*straight)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_empty_folder_starts_at_step_0(tmp_path):
    model, optimizers = network()
    before = tensors(model, optimizers)[0]
    assert Checkpoints(tmp_path / "none", RUN).load(model, optimizers) == 0
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_the_last_two_are_kept_as_safetensors_and_json(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {
        "model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, name, damage):
    checkpoints = saved(tmp_path, 2, 4)
    path = tmp_path / "step-00000004" / name
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 0xFF]) + content[41:])
    else:
        path.unlink()
    with pytest.warns(UserWarning, match="step-00000004 is damaged .*; using an earlier checkpoint"):
        assert checkpoints.load(*network(seed=1)) == 2


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="delete the folder"):
        checkpoints.load(*network())


def test_a_half_written_checkpoint_is_not_seen_and_later_swept_away(tmp_path):
    checkpoints = saved(tmp_path, 2)
    partial = tmp_path / "step-00000004.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoints.load(*network()) == 2
    checkpoints.save(6, *network())
    assert not partial.exists()


def test_another_configuration_is_refused_by_name(tmp_path):
    saved(tmp_path, 2)
    other = Checkpoints(tmp_path, RUN | {"training.gamma": 1.0})
    assert not other.same_run()
    with pytest.raises(CheckpointError, match=r"training.gamma was 0.6, is 1.0\..*resume=False"):
        other.load(*network())
    other.clear()
    assert other.same_run() and other.load(*network()) == 0
