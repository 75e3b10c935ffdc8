"""DeepSpeed's ZeRO-2 on two processes: the same losses as one process, checkpoints that either can resume. Skipped
where it is not installed."""

from __future__ import annotations

import re
import shutil
from functools import partial

import members
import pytest
import torch
from accelerate.utils import is_deepspeed_available
from members import OTHERWISE, STEPS
from test_distributed import assert_close, assert_same, launch

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.processes import together
from omnidiff_lite.training import launch as launching
from omnidiff_lite.training.log import read_log
from omnidiff_lite.training.shards import denoiser_of
from omnidiff_lite.training.step import TrainingError

installed = pytest.mark.skipif(not is_deepspeed_available(),
                               reason="DeepSpeed is not installed (pip install 'deepspeed<0.20'); "
                               "configs/zero2.yaml, which shares alike by torch alone, is tested in any case")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, fifty steps; and its checkpoint after 20."""
    out = tmp_path_factory.mktemp("alone")
    members.train(out, stop=20)
    shutil.copytree(out, out.with_name("twenty"))
    return members.train(out), out


@pytest.fixture(scope="module")
def run(alone, tmp_path_factory):
    out = tmp_path_factory.mktemp("deepspeed")
    shutil.copytree(out.with_name("twenty"), out / "from one")
    together(2, partial(members.sharded, out / "from shards"))
    together(2, partial(members.by_deepspeed, out))
    together(2, partial(members.failing, out, "deepspeed", {"no number": members.no_number}))
    return out


@installed
def test_two_processes_give_the_losses_and_weights_of_one(run, alone):
    log, folder = alone
    assert_close(read_log(run / "straight" / "log.csv"), log)
    found, expected = (denoiser_of(out / "checkpoints" / f"step-{STEPS:08d}").state_dict()
                       for out in (run / "straight", folder))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4, msg=name)


@installed
def test_a_stop_between_changes_no_bit(run):
    assert_same(read_log(run / "parts" / "log.csv"), read_log(run / "straight" / "log.csv"))


@installed
@pytest.mark.parametrize("begun", ["from one", "from shards"])
def test_it_goes_on_from_any_checkpoint(run, alone, begun):
    """Of one process, and of two whose weights were sharded."""
    assert_close(read_log(run / begun / "log.csv"), alone[0])


@installed
def test_one_process_goes_on_from_its_checkpoint(run, alone):
    assert_close(members.train(run / "to one"), alone[0])


@installed
@pytest.mark.parametrize("name, rel", [("micro", 1e-5), ("bf16", 2e-2)])
def test_the_same_steps_are_taken_row_by_row_and_in_bfloat16(run, tmp_path, name, rel):
    expected = members.train(tmp_path, settings=OTHERWISE[name], stop=10)
    assert_close(read_log(run / "otherwise" / name / "log.csv"), expected, rel)


@installed
def test_a_loss_that_is_no_number_is_named_and_costs_no_sample(run):
    for rank in (0, 1):
        text = (run / f"no number told {rank}.txt").read_text()
        assert re.match("TrainingError: step 15: the loss is nan .*; nothing was updated", text), text
    assert_same(read_log(run / "no number" / "log.csv"), read_log(run / "straight" / "log.csv"))


@installed
def test_its_launcher_trains_a_stage(tmp_path):
    done = launch(tmp_path / "run", "deepspeed", "2", "deepspeed", "cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer.safetensors").exists()
    assert (tmp_path / "run" / "validation.csv").exists() and Denoiser.from_pretrained(tmp_path / "run" / "denoiser")


@pytest.mark.parametrize("settings, environment, why", [
    ({"training__optimizer": "muon"}, {}, "DeepSpeed takes one optimizer.*training.optimizer=adamw"),
    ({}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "asks for {'ZERO_STAGE': '3'}: use .*configs/deepspeed.yaml"),
    ({}, {"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "OFFLOAD_OPTIMIZER_DEVICE"),
    ({}, {"ACCELERATE_USE_FSDP": "true"}, "are both set: choose one")])
def test_what_was_not_tried_is_refused_with_the_mend(tmp_path, monkeypatch, settings, environment, why):
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: True)
    for name, value in ({"ACCELERATE_USE_DEEPSPEED": "true"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=why):
        members.train(tmp_path, settings=settings)


def test_without_it_the_run_stops_and_names_what_does_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "is_deepspeed_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TrainingError, match="DeepSpeed is not installed .*configs/zero2.yaml"):
        members.train(tmp_path)
