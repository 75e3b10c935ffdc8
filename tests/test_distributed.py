"""Two processes over gloo: the losses of one, checkpoints that either resumes, and failures that cost no sample."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import members
import numpy as np
import pandas as pd
import pytest
import torch
import toys
from members import KINDS, OTHERWISE, STEPS

from omnidiff_lite.artifacts import CLONE
from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import build_messages
from omnidiff_lite.cli import main
from omnidiff_lite.data.shards import write_index, write_shard
from omnidiff_lite.evaluation.records import read_records
from omnidiff_lite.media import Waveform
from omnidiff_lite.provenance import PACKAGE
from omnidiff_lite.training.launch import Expected
from omnidiff_lite.training.log import read_log
from omnidiff_lite.processes import TogetherError, over_processes, together
from omnidiff_lite.training.shards import denoiser_of
from omnidiff_lite.training.step import TrainingError

FIGURES = ["loss", "loss_text_qa", "loss_asr", "gradient_norm"]
SAMPLES = ["step", "tokens", "scored", "efficiency"]  # what was drawn, and how much of it was masked


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, fifty steps; and its checkpoint after 20."""
    out = tmp_path_factory.mktemp("alone")
    members.train(out, stop=20)
    shutil.copytree(out, out.with_name("twenty"))
    log = members.train(out)
    return log, denoiser_of(out / "checkpoints" / f"step-{STEPS:08d}").state_dict()


@pytest.fixture(scope="module")
def many(alone, tmp_path_factory):
    """Everything that two processes train, in one start of them."""
    out = tmp_path_factory.mktemp("many")
    for kind in KINDS:
        shutil.copytree(out.with_name("twenty"), out / kind / "from one")
    together(2, partial(members.many, out))
    return out


def assert_close(log: pd.DataFrame, expected: pd.DataFrame, rel: float = 1e-5) -> None:
    """The same samples and masks to the last one; losses as far as the order of sums leaves them."""
    assert log[SAMPLES].equals(expected[SAMPLES])
    for name in FIGURES:
        assert log[name].tolist() == pytest.approx(expected[name].tolist(), rel=rel), name


def assert_same(log: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(log[SAMPLES + FIGURES], expected[SAMPLES + FIGURES], check_exact=True)


# --- the same result --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_of_one(many, alone, kind):
    log, weights = alone
    assert (log["gradient_norm"] > 0.5).mean() > 0.5, "clipping is not put to the test"
    assert_close(read_log(many / kind / "straight" / "log.csv"), log)
    final = denoiser_of(many / kind / "straight" / "checkpoints" / f"step-{STEPS:08d}").state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(final[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_between_changes_no_bit(many, kind):
    assert_same(read_log(many / kind / "parts" / "log.csv"), read_log(many / kind / "straight" / "log.csv"))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_pass_between_one_process_and_two(many, alone, kind):
    assert_close(read_log(many / kind / "from one" / "log.csv"), alone[0])
    assert_close(members.train(many / kind / "to one"), alone[0])


@pytest.mark.parametrize("name, rel", [("micro", 1e-5), ("muon", 2e-2), ("muon, ddp", 2e-2), ("bf16", 2e-2)])
def test_the_same_steps_are_taken_however_it_is_done(many, tmp_path, name, rel):
    """Sharded: rows one by one with recomputed activations; Muon, whose matrices are gathered (in bfloat16: its own
    sums round); gathered in bfloat16, where the stream between layers is bfloat16 as well. Whole: Muon, whose updates
    are shared, with a stop in between."""
    expected = members.train(tmp_path, settings=OTHERWISE[name.partition(",")[0]], stop=10)
    assert_close(read_log(many / "otherwise" / name / "log.csv"), expected, rel)


def test_sharded_checkpoints_hold_a_part_a_process_and_no_pickle(many):
    folder = many / "fsdp2" / "straight" / "checkpoints" / f"step-{STEPS:08d}"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [f"{part}/shard-0000{rank}-model-00001-of-00001.safetensors"
                     for part in ("model", "optimizer") for rank in (1, 2)] + ["state.json"]
    sizes = [path.stat().st_size for path in (folder / "model").iterdir()]
    assert max(sizes) < 1.1 * min(sizes), "the weights are not shared out"
    assert (many / "ddp" / "straight" / "checkpoints" / folder.name / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["fsdp2", "ddp"])
def test_one_command_makes_a_denoiser_of_a_checkpoint(many, tmp_path, kind, capsys):
    folder = many / kind / "straight" / "checkpoints" / f"step-{STEPS:08d}"
    assert main(["convert", "--checkpoint", str(folder), "--out", str(tmp_path / "denoiser")]) == 0
    whole = Denoiser.from_pretrained(tmp_path / "denoiser")
    assert whole.config.vocab_size == toys.VOCABULARY.size and whole.config.mask_token_id == toys.VOCABULARY.mask
    expected = denoiser_of(folder).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in whole.state_dict().items())
    assert main(["convert", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "none")]) == 1
    assert "no checkpoint of a run" in capsys.readouterr().err


# --- failure ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    out = tmp_path_factory.mktemp("failed")
    for kind, failures in members.FAILURES.items():
        (out / kind).mkdir()
        together(2, partial(members.failing, out / kind, kind, failures))
    return out


TOLD = {"no number": "TrainingError: step 15: the loss is nan (.*); nothing was updated",
        "full disk": "CheckpointError: step 20 could not be saved under .*: process {which}: .*File too large"}


@pytest.mark.parametrize("kind", members.FAILURES)
@pytest.mark.parametrize("name", TOLD)
def test_a_failure_is_named_to_all_and_costs_no_sample(failed, many, kind, name):
    for rank in (0, 1):
        text = (failed / kind / f"{name} told {rank}.txt").read_text()
        assert re.match(TOLD[name].format(which=int(kind == "fsdp2")), text), text
    assert not list((failed / kind).rglob("*.partial"))
    assert_same(read_log(failed / kind / name / "log.csv"), read_log(many / kind / "straight" / "log.csv"))


def test_a_killed_process_ends_the_run_which_goes_on_from_its_checkpoint(many, tmp_path):
    for_good = partial(members.failing, tmp_path, "fsdp2", {"killed": members.killed})
    with pytest.raises(TogetherError, match=r"process 1 of 2 was killed \(SIGKILL; .*goes on from the last checkpoint"):
        together(2, for_good)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000010"]
    together(2, partial(members.failing, tmp_path, "fsdp2", {"killed": int}))
    assert_same(read_log(tmp_path / "killed" / "log.csv"), read_log(many / "fsdp2" / "straight" / "log.csv"))


def test_a_vanished_shard_ends_the_run_which_goes_on_once_it_is_back(many, tmp_path):
    """To the log of samples in memory."""
    samples = [sample for of_task in toys.datasets().values() for sample in of_task]
    shards = [tmp_path / f"shard-{n}.safetensors" for n in range(4)]
    for path, part in zip(shards, np.array_split(np.arange(len(samples)), 4)):
        write_shard(path, [samples[n] for n in part], toys.VOCABULARY.pad, {})
    write_index(tmp_path, shards, {})
    kept = shards[1].read_bytes()
    with pytest.raises(TogetherError, match="process . of 2: "):
        together(2, partial(members.from_shards, tmp_path / "run", tmp_path, shards[1]))
    told = [path.read_text() for path in (tmp_path / "run").glob("told *.txt")]
    assert told and all("shard-1.safetensors: the file is gone" in text for text in told)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]
    shards[1].write_bytes(kept)
    together(2, partial(members.from_shards, tmp_path / "run", tmp_path))
    assert_same(read_log(tmp_path / "run" / "log.csv"), read_log(many / "ddp" / "straight" / "log.csv"))


def test_a_killed_worker_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path):
    """Two processes, each with two workers that decode recordings; of the second process's, one is killed."""
    (tmp_path / "clips").mkdir()
    rows = []
    for number in range(24):
        Waveform(np.tile(np.float32([(number + 1) / 25, -(number + 1) / 25]), 1600), 16000).save(
            tmp_path / f"clips/{number}.wav")
        rows.append({"messages": build_messages("asr", answer=f"a {number}"), "audios": [f"clips/{number}.wav"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    together(2, partial(members.from_recordings, tmp_path / "whole", tmp_path / "rows.jsonl"))
    with pytest.raises(TogetherError, match="process 1 of 2: .*DataError: a worker .*was killed .*fewer workers"):
        together(2, partial(members.from_recordings, tmp_path / "run", tmp_path / "rows.jsonl", kill=True))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000010"]
    together(2, partial(members.from_recordings, tmp_path / "run", tmp_path / "rows.jsonl"))
    log, whole = (read_log(tmp_path / name / "log.csv") for name in ("run", "whole"))
    names = ["step", "tokens", "scored", "efficiency", "loss", "gradient_norm"]
    pd.testing.assert_frame_equal(log[names], whole[names], check_exact=True)


def test_a_damaged_part_is_passed_over_by_all(many, tmp_path):
    """One process alone sees it."""
    shutil.copytree(many / "fsdp2" / "straight", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}" / "model"
    part = folder / "shard-00002-model-00001-of-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    together(2, partial(members.failing, tmp_path, "fsdp2", {"run": int}))
    assert_same(read_log(tmp_path / "run" / "log.csv"), read_log(many / "fsdp2" / "straight" / "log.csv"))


# --- evaluation -------------------------------------------------------------------------------------------------------

def test_two_processes_score_as_one_does(tmp_path):
    """Answers, and the transcripts of a learned judge."""
    together(2, partial(members.scores, tmp_path))
    alone = members.scores(tmp_path / "alone")
    assert {record.column for record in alone} >= {"tts_wer", "tts_silent"} and alone[0].n == 5
    assert read_records(tmp_path / "records.json") == alone


def test_an_error_of_one_process_is_told_to_all(tmp_path):
    with pytest.raises(TogetherError, match="process . of 2: .*TogetherError: process 1: no answer to 4"):
        together(2, partial(members.refusing, tmp_path))
    assert over_processes(lambda part: [2 * n for n in part], range(3)) == [0, 2, 4]


# --- the launch -------------------------------------------------------------------------------------------------------

ACCELERATE, TORCHRUN = (["accelerate.commands.launch", "--num_processes", "2"],
                        ["torch.distributed.run", "--nproc_per_node", "2"])
COMMANDS = {  # the README's, by kind
    "ddp": [*ACCELERATE, "--config_file", PACKAGE / "configs" / "ddp.yaml"],
    "fsdp2": [*ACCELERATE, "--config_file", PACKAGE / "configs" / "fsdp2.yaml"],
    "zero2": [*ACCELERATE, "--config_file", PACKAGE / "configs" / "zero2.yaml"],
    "deepspeed": [*ACCELERATE, "--config_file", PACKAGE / "configs" / "deepspeed.yaml"],
    "torchrun": [*TORCHRUN, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]}


def launch(out: Path, command: str, *expect: str, **environment: str) -> subprocess.CompletedProcess:
    """One of `COMMANDS` on two processes, with little to train; results beside `out`."""
    results = out.with_name("results")
    (results / "smoke").mkdir(parents=True)
    (results / "smoke" / "checkpoint").symlink_to(CLONE / "results" / "smoke" / "checkpoint")
    quick = ["--set", "training.samples.text_qa=16", "--set", "training.stage1.mix.captioning=0",
             "--set", "training.stage1.mix.t2i=0", "--set", "training.stage1.steps=2", "--set", "evaluation.items=2"]
    return subprocess.run(
        [sys.executable, "-m", *COMMANDS[command], "-m", "omnidiff_lite", "train", "--stage", "1", "--out", out, *quick,
         "--expect", *expect], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
                          "OMNIDIFF_RESULTS": str(results), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        | environment)


@pytest.mark.parametrize("command, kind, environment", [
    ("ddp", "ddp", {}), ("fsdp2", "fsdp2", {}), ("zero2", "zero2", {}),
    ("torchrun", "fsdp2", {"ACCELERATE_USE_FSDP": "true"})])
def test_a_launcher_trains_a_stage_on_two_processes(tmp_path, command, kind, environment):
    run = launch(tmp_path / "run", command, "2", kind, "cpu", **environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("stage 1: last loss") == 1
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer").is_dir() == (kind != "ddp")
    assert (tmp_path / "run" / "validation.csv").exists() and Denoiser.from_pretrained(tmp_path / "run" / "denoiser")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the launcher finds what it looks for")
def test_processes_that_would_train_alone_are_stopped(tmp_path):
    run = launch(tmp_path / "run", "fsdp2", "2", "fsdp2", ACCELERATE_USE_CPU="false")
    assert run.returncode != 0 and not (tmp_path / "run").exists()
    assert "they found no GPU and would each work alone" in run.stderr and "ACCELERATE_USE_CPU=true" in run.stderr


def test_another_run_than_the_expected_one_is_stopped_with_the_mend(tmp_path):
    with pytest.raises(TrainingError, match="processes 8 expected, 1 found; kind 'fsdp2' expected, 'single' found; "
                                            "device 'cuda' expected, 'cpu' found. Start it .*configs/fsdp2.yaml"):
        members.train(tmp_path, expected=Expected(8, "fsdp2", "cuda"))
    assert Expected.of(["cuda", "8", "zero2"]) == Expected(8, "zero2", "cuda") and Expected.of([]) == Expected()
    with pytest.raises(ValueError, match="--expect 8 9: give at most one number"):
        Expected.of(["8", "9"])
    with pytest.raises(ValueError, match="--expect fsdp: give"):
        Expected.of(["fsdp"])


def test_the_configurations_are_what_their_names_say():
    import yaml

    config = yaml.safe_load((PACKAGE / "configs" / "deepspeed.yaml").read_text())
    assert config["distributed_type"] == "DEEPSPEED" and config["deepspeed_config"]["zero_stage"] == 2
    assert config["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard", "else pdsh is asked for"

    for kind in KINDS:
        config = yaml.safe_load((PACKAGE / "configs" / f"{kind}.yaml").read_text())
        sharding = config.get("fsdp_config", {})
        assert config["distributed_type"] == ("FSDP" if sharding else "MULTI_GPU") and bool(sharding) == (kind != "ddp")
        assert sharding.get("fsdp_reshard_after_forward") == {"fsdp2": True, "zero2": False}.get(kind)


def test_megatron_is_refused_with_what_does_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(TrainingError, match="configs/zero2.yaml shares them"):
        members.train(tmp_path)


def test_frozen_parts_stay_in_eval_mode():
    from omnidiff_lite.training.trainer import prepared

    denoiser = toys.denoiser()
    denoiser.model.audio_projection.requires_grad_(False)
    with prepared(denoiser, members.preset().training):
        assert not any(part.training for part in denoiser.model.audio_projection.modules())
        assert denoiser.training and denoiser.model.layers[0].training and denoiser.model.rotary_emb.training
