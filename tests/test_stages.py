"""The three stages, one after the other, on toy tokenizers and the embedded world."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import TASKS
from omnidiff_lite.config import load_preset, preset_names
from omnidiff_lite.plan.data import sources
from omnidiff_lite.processes import TogetherError
from omnidiff_lite.training import stages
from omnidiff_lite.training.stages import new_denoiser, run_stage, world_data
from omnidiff_lite.training.step import TrainingError
from omnidiff_lite.weights import CheckpointError

TINY = {"training.checkpoint_every": 2, "evaluation.items": 2, "training.length": 320,
        "denoiser.hidden_size": 16, "denoiser.intermediate_size": 32, "denoiser.layers": 1,
        **{f"training.samples.{task}": 3 for task in TASKS},
        **{f"training.stage{stage}.{key}": 2 for stage in (1, 2, 3) for key in ("steps", "rows")}}


def run(stage, init, folder, overrides=None, **options):
    preset = load_preset("smoke", TINY | (overrides or {}))
    return run_stage(preset, stage, toys.ToyParts(), init, folder / f"stage{stage}", folder / "cache",
                     progress=False, **options)


def test_each_stage_starts_from_the_one_before(tmp_path):
    preset = load_preset("smoke")
    denoiser, init = None, None
    for stage in (1, 2, 3):
        denoiser, log = run(stage, init, tmp_path)
        assert len(log) == 2
        validation = pd.read_csv(tmp_path / f"stage{stage}" / "validation.csv")
        assert set(validation["task"]) == set(getattr(preset.training, f"stage{stage}").mix)
        init = tmp_path / f"stage{stage}" / "denoiser"
        saved = Denoiser.from_pretrained(init)
        assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), denoiser.state_dict().values()))


@pytest.mark.parametrize("name", preset_names())
def test_a_stage_mixes_the_tasks_that_table_4_gives_it(name):
    """Small presets go on with captioning in stage 3, which the paper drops."""
    for number in (1, 2, 3):
        mix, printed = set(getattr(load_preset(name).training, f"stage{number}").mix), {s.task for s in sources(number)}
        assert mix - printed <= ({"captioning"} if number == 3 and name != "full" else set()) and printed <= mix


def test_own_data_train_without_the_world(tmp_path):
    """Encoded samples of any origin take the place of the world's."""
    data = {"text_qa": toys.copying(8)}
    denoiser, _ = run(1, None, tmp_path, {"training.stage1.mix": {"text_qa": 1.0}}, datasets=data)
    assert not (tmp_path / "stage1" / "validation.csv").exists() and not (tmp_path / "cache").exists()


def test_of_two_processes_one_writes(tmp_path):
    """Each notes which process writes the weights and the table, and reads the saved weights once the stage is over."""
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent("""
        import os, sys
        from pathlib import Path

        import pandas as pd
        import torch
        from test_stages import run
        from omnidiff_lite.backbone import Denoiser

        out, rank = Path(sys.argv[1]), os.environ["RANK"]

        def noted(kind, name):
            real = getattr(kind, name)
            def call(self, path, *args, **kwargs):
                Path(out, f"{Path(path).name} by {rank}").touch()
                return real(self, path, *args, **kwargs)
            setattr(kind, name, call)

        noted(Denoiser, "save_pretrained")
        noted(pd.DataFrame, "to_csv")
        denoiser, _ = run(1, None, out)
        saved = Denoiser.from_pretrained(out / "stage1" / "denoiser").state_dict()
        assert all(torch.equal(saved[name], tensor) for name, tensor in denoiser.state_dict().items())
    """))
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, str(script), str(tmp_path)], env=environment, check=True, timeout=180)
    assert {path.name for path in tmp_path.glob("* by *")} == {"denoiser by 0", "data.csv by 0", "validation.csv by 0"}


def test_two_processes_of_its_own_train_as_one_does(tmp_path, monkeypatch):
    """`training.processes` on a CPU: the same samples and masks, the gradient of the whole step, one log."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    started, real = [], stages.together
    monkeypatch.setattr(stages, "together", lambda n, function: started.append(n) or real(n, function))
    (_, alone), (denoiser, shared) = (run(1, None, tmp_path / str(n), {"training.processes": n}) for n in (1, 2))
    assert started == [2], "one process needs no other"
    assert shared["tokens"].tolist() == alone["tokens"].tolist()
    assert shared["loss"].to_numpy() == pytest.approx(alone["loss"].to_numpy(), abs=1e-4)
    assert not denoiser.training and (tmp_path / "2" / "stage1" / "validation.csv").exists()


def test_a_failure_in_one_of_the_processes_is_the_run_s(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(TogetherError, match="3 rows a step do not divide among 2 processes"):
        run(1, None, tmp_path, {"training.processes": 2, "training.stage1.rows": 3})


def test_a_missing_start_or_number_of_samples_is_named(tmp_path):
    with pytest.raises(TrainingError, match="stage 2 starts from the denoiser of stage 1: give it"):
        run(2, None, tmp_path)
    with pytest.raises(TrainingError, match="'captioning' is in the mix but training.samples.captioning"):
        run(1, None, tmp_path, {"training.samples.captioning": 0, "training.stage1.mix": {"captioning": 1.0}})
    with pytest.raises(TrainingError, match="the denoiser has .* ids, the tokenizers"):
        run(1, toys.denoiser(), tmp_path)


def test_any_stage_starts_from_scratch_when_asked(tmp_path):
    """Stage 3 alone, or all tasks at once: its mix, for as many steps as it is given, from the weights of the seed."""
    steps = {"training.stage3.steps": 6}
    denoiser, log = run(3, "scratch", tmp_path, steps, seed=5, stop_after=1)
    assert len(log) == 1
    denoiser, log = run(3, "scratch", tmp_path, steps, seed=5)
    whole, _ = run(3, new_denoiser(load_preset("smoke", TINY), toys.ToyParts(), 5), tmp_path / "other", steps, seed=5)
    assert len(log) == 6 and {"loss_svqa", "loss_t2i"} <= set(log.columns)
    assert all(torch.equal(a, b) for a, b in zip(denoiser.state_dict().values(), whole.state_dict().values()))
    with pytest.raises(CheckpointError, match="no such directory"):
        run(3, Path("scratch"), tmp_path / "folder")
    twin, _ = run(3, "scratch", tmp_path / "twin", causal=True)
    assert twin.config.is_causal


def test_switches_hold_through_the_stages(tmp_path):
    on = {"denoiser.step_embedding": True, "denoiser.output_heads": "modality", "denoiser.speech_input": "discrete"}
    denoiser, _ = run(1, None, tmp_path, on)
    denoiser, _ = run(2, tmp_path / "stage1" / "denoiser", tmp_path, on)
    assert denoiser.step_embedding is not None and len(denoiser.lm_head.adapters) == 3
    assert denoiser.config.speech_input == "discrete"
    for key, words in (("step_embedding", "step_embedding True"), ("speech_input", "speech_input 'discrete'"),
                       ("output_heads", r"head_starts \[")):
        off = {name: value for name, value in on.items() if not name.endswith(key)}
        with pytest.raises(TrainingError, match=f"to start from has {words}"):
            run(3, denoiser, tmp_path, off)
    with pytest.raises(TrainingError, match="samples of asr hold speech frames"):
        run(1, None, tmp_path / "own", on | {"training.stage1.mix": {"asr": 1.0}}, datasets={"asr": toys.hearing(4)})


def test_a_smaller_number_of_samples_is_the_first_of_a_larger_and_comes_again_more_often(tmp_path):
    """Equal steps on less data: what the twin's comparison over data sizes rests on."""
    mix, repeats = {"training.stage1.mix": {"text_qa": 1.0}, "training.stage1.steps": 4}, {}
    for count in (8, 32):
        preset = load_preset("smoke", TINY | {"training.samples.text_qa": count})
        repeats[count] = world_data(preset, toys.ToyParts(), ["text_qa"], "train", 0, tmp_path / "cache")["text_qa"]
        for causal in (False, True):
            folder = tmp_path / f"{count}{causal}"
            run(1, None, folder, mix | {"training.samples.text_qa": count}, causal=causal)
            table = pd.read_csv(folder / "stage1" / "data.csv").set_index("task")
            assert table.loc["text_qa", "samples"] == count
            repeats[count, causal] = table.loc["text_qa", "repeats"]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(repeats[8], repeats[32][:8], strict=True))
    assert repeats[8, False] == repeats[8, True] > 1 > repeats[32, False] / 4
    assert repeats[8, False] * 8 == pytest.approx(repeats[32, False] * 32, rel=0.25), "as many draws"


def test_fresh_weights_follow_the_seed():
    first, again, other = (new_denoiser(load_preset("smoke", TINY), toys.ToyParts(), seed) for seed in (0, 0, 1))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_stage_may_begin_from_left_to_right_and_ends_both_ways(tmp_path):
    """The road of the paper's backbone: Qwen2.5, then Dream-7B. Nothing is masked in the first half of the steps, so
    all of an answer is scored; then about half of it."""
    half = {"training.stage1.steps": 4, "training.stage1.left_to_right": 0.5}
    denoiser, log = run(1, None, tmp_path, half)
    plain, without = run(1, None, tmp_path / "plain", half | {"training.stage1.left_to_right": 0.0})
    assert (log["tokens"] == without["tokens"]).all(), "the same rows"
    assert (log["scored"][:2] > without["scored"][:2]).all() and (log["scored"][2:] == without["scored"][2:]).all()
    for model in (denoiser, plain, Denoiser.from_pretrained(tmp_path / "stage1" / "denoiser")):
        assert not model.config.is_causal
        assert [pos for pos in range(6) if changes(model, 3, pos)] == list(range(6))


def test_a_stage_that_begins_from_left_to_right_resumes_in_either_part(tmp_path):
    half = {"training.stage1.steps": 4, "training.stage1.left_to_right": 0.5}
    _, straight = run(1, None, tmp_path / "straight", half)
    for stop in (1, 3):
        folder = tmp_path / f"stopped at {stop}"
        run(1, None, folder, half, stop_after=stop)
        _, resumed = run(1, None, folder, half)
        assert resumed["loss"].tolist() == straight["loss"].tolist()


def test_left_to_right_throughout_is_the_twins_training(tmp_path):
    """One switch less: the twin's losses are those of a stage whose whole is from left to right."""
    few = {"training.stage1.steps": 2}
    _, whole = run(1, None, tmp_path / "whole", few | {"training.stage1.left_to_right": 1.0})
    twin, log = run(1, None, tmp_path / "twin", few, causal=True)
    assert whole["loss"].tolist() == log["loss"].tolist() and twin.config.is_causal


def changes(denoiser, changed, position):
    """Whether the output at `position` of six tokens changes with the token at `changed`."""
    ids = torch.arange(20, 26)[None]
    other = ids.index_fill(1, torch.tensor([changed]), 40)
    with torch.no_grad():
        return not torch.allclose(denoiser(ids).logits[0, position], denoiser(other).logits[0, position], atol=1e-6)
