"""A training stage: it learns, it logs, and a run cut off anywhere resumes as if it had not been."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError, StageConfig
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import PackedStream, pack_row
from omnidiff_lite.provenance import PACKAGE
from omnidiff_lite.training import trainer
from omnidiff_lite.training.batches import answer_weights, choose_scored, collate, derive_seed
from omnidiff_lite.training.feed import save_position
from omnidiff_lite.training.log import StepLog, read_log
from omnidiff_lite.training.step import AnswerLoss, Stepper, TrainingError
from omnidiff_lite.training.trainer import learning_rate, train_stage, validate
from omnidiff_lite.weights import CheckpointError

LOSSES = ["step", "loss", "loss_text_qa", "loss_asr", "gradient_norm", "learning_rate", "tokens", "scored"]


def run(out_dir: Path, *, preset=None, model=None, **options) -> tuple[pd.DataFrame, torch.nn.Module]:
    model = model or toys.denoiser()
    log = train_stage(preset or toys.preset(), 1, model, toys.datasets(), out_dir, progress=False, **options)
    return log, model


def child_environment() -> dict[str, str]:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    threads = str(torch.get_num_threads())  # as here: in float32 another number of threads sums in another order
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads}


def assert_same(ours, theirs) -> None:
    """Logs and weights, to the last bit; on a GPU, whose kernels add up in any order, nearly."""
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if torch.cuda.is_available() else {"rtol": 0, "atol": 0}
    pd.testing.assert_frame_equal(ours[0][LOSSES], theirs[0][LOSSES], **tolerance)
    torch.testing.assert_close(ours[1].state_dict(), theirs[1].state_dict(), equal_nan=True, **tolerance)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An unbroken run of six steps."""
    return run(tmp_path_factory.mktemp("straight"))


# --- it learns ------------------------------------------------------------------------------------------------------

def test_a_toy_denoiser_learns_both_tasks(tmp_path):
    """Copying a prompt and reading frames. Who reads neither can know the end of turn, and guess among 12 words."""
    preset = toys.preset(training__stage1__steps=150, training__stage1__rows=8, training__checkpoint_every=1000,
                         training__max_tail_pads=0)
    model = toys.denoiser()
    data = {"text_qa": toys.copying(256, longest=2), "asr": toys.hearing(256)}
    log = train_stage(preset, 1, model, data, tmp_path, progress=False)
    assert log["loss"].iloc[0] > 3 and log["loss"].iloc[-10:].mean() < 1.2
    held_out = {"text_qa": toys.copying(64, seed=1, longest=2), "asr": toys.hearing(64, seed=1)}
    losses = validate(preset, model, held_out, seed=3).set_index("task")["loss"]
    assert losses["text_qa"] < 0.7 * 2 / 3 * np.log(toys.WORDS), "the prompt is not read"
    assert losses["asr"] < 0.7 * 3 / 4 * np.log(toys.WORDS), "the frames are not read: does the speech adapter train?"


def test_the_gradient_reaches_the_speech_adapter_through_the_frames():
    model = toys.denoiser()
    AnswerLoss(model, "fp32")(batch(model, toys.hearing(2))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.model.audio_projection.parameters())
    model.zero_grad()
    AnswerLoss(model, "fp32")(batch(model, toys.copying(2))).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.model.audio_projection.parameters())


def batch(model, samples):
    """One row whose whole answers are to be predicted."""
    row = pack_row(samples, [1] * len(samples), 64, pad=toys.VOCABULARY.pad,
                   context_of_audio=toys.VOCABULARY.context_of_audio)
    return collate([row], [torch.from_numpy(row.labels >= 0)], sorted({s.task for s in samples}), model.config)


def test_the_step_loss_is_the_mean_over_scored_tokens_shifted_by_one():
    """Logits at i score token i+1; computed here the long way round, from all logits."""
    model = toys.denoiser().eval()
    rows = batch(model, toys.copying(3))
    logits = model(rows.input_ids, segment_ids=rows.segment_ids, position_ids=rows.position_ids).logits
    targets = rows.targets[0]
    expected = [torch.nn.functional.cross_entropy(logits[0, i - 1], targets[i])
                for i in range(1, len(targets)) if targets[i] != -100]
    torch.testing.assert_close(AnswerLoss(model, "fp32")(rows), torch.stack(expected))


@pytest.mark.parametrize("evenness, share", [(0.0, 6 / 9), (1.0, 1 / 2)])
def test_evenness_weighs_a_short_answer_like_a_long_one(evenness, share):
    """Answers of 6 and of 3 tokens, end and tail pad included, in one row."""
    samples = [toys.sample("text_qa", [1], [2, 3, 4, 5]), toys.sample("text_qa", [1], [2])]
    row = pack_row(samples, [1, 1], 64, pad=toys.VOCABULARY.pad, context_of_audio=toys.VOCABULARY.context_of_audio)
    weights = answer_weights(row, evenness)
    assert ((weights > 0) == torch.from_numpy(row.labels >= 0)).all()
    long = torch.from_numpy(row.segment_ids == 0)
    assert (weights[long].sum() / weights.sum()).item() == pytest.approx(share)


def test_each_answer_of_a_conversation_weighs_by_its_own_length():
    first, second = toys.sample("text_qa", [1], [2, 3, 4, 5]), toys.sample("text_qa", [6], [7])
    both = EncodedSample(*(np.concatenate([getattr(s, name) for s in (first, second)])
                           for name in ("ids", "labels", "frames")), "text_qa")
    ids = {"pad": toys.VOCABULARY.pad, "context_of_audio": toys.VOCABULARY.context_of_audio}
    apart = answer_weights(pack_row([first, second], [0, 2], 64, **ids), 0.6)
    together = answer_weights(pack_row([both], [2], 64, **ids), 0.6)
    assert torch.equal(apart, together) and len(apart.unique()) == 3, "no weight, the long one's, the short one's"


def test_a_task_may_weigh_more_than_another():
    """A word that answers a question about a picture is one token among the hundreds of the other tasks'."""
    question, reading = toys.sample("text_qa", [1], [2]), toys.sample("asr", [1], [2, 3])
    row = pack_row([question, reading], [1, 1], 64, pad=toys.VOCABULARY.pad,
                   context_of_audio=toys.VOCABULARY.context_of_audio)
    plain, weighed = answer_weights(row, 0.5), answer_weights(row, 0.5, {"text_qa": 6.0})
    first = torch.from_numpy(row.segment_ids == 0)
    assert torch.allclose(weighed[first], 6 * plain[first]) and torch.equal(weighed[~first], plain[~first])
    assert (plain[first] > 0).any() and not weighed[torch.from_numpy(row.segment_ids < 0)].any()


def test_task_weights_reach_the_gradient_and_the_fingerprint(tmp_path):
    losses, weights = {}, {}
    for name, own in (("plain", {}), ("without", {"training__stage1__weights__asr": 0.0})):
        log, model = run(tmp_path / name, preset=toys.preset(**own))
        losses[name], weights[name] = log, model.state_dict()
    first = [losses[name]["loss"][0] for name in ("plain", "without")]
    assert first[0] == pytest.approx(first[1], rel=1e-6), "the figures logged are not weighed"
    assert any(not torch.equal(a, b) for a, b in zip(weights["plain"].values(), weights["without"].values()))
    with pytest.raises(CheckpointError, match="weights.asr"):
        run(tmp_path / "plain", preset=toys.preset(training__stage1__weights__asr=0.0))


def test_masks_take_answers_only_and_fewer_tail_pads():
    stream = PackedStream(toys.datasets(), {"text_qa": 1.0}, 64, 300, 0, pad=toys.VOCABULARY.pad,
                          context_of_audio=toys.VOCABULARY.context_of_audio, max_tail_pads=4)
    rows, denoiser = stream.batch(0), toys.denoiser().config
    labels = torch.stack([torch.from_numpy(row.labels) for row in rows])
    pads = labels == toys.VOCABULARY.pad
    spread = {}
    for how in ("sequence", "token"):
        config = toys.preset(training__time=how).training
        masks = torch.stack([choose_scored(row, config, denoiser, (0, n)) for n, row in enumerate(rows)])
        assert not masks[labels == -100].any()
        assert masks[(labels >= 0) & ~pads].float().mean() == pytest.approx(0.5, abs=0.04)
        assert masks[pads].float().mean() == pytest.approx(0.3, abs=0.04)
        spread[how] = shares_masked(rows, masks).var()
    assert spread["sequence"] > 1.5 * spread["token"]  # one t per sample leaves whole answers masked, or bare


def test_a_share_of_a_tasks_answers_is_masked_from_some_point_on():
    """Text questions, not recognition: no token, pads included, is shown after a masked one, whatever the row holds."""
    stream = PackedStream(toys.datasets(), {"text_qa": 0.5, "asr": 0.5}, 64, 200, 0, pad=toys.VOCABULARY.pad,
                          context_of_audio=toys.VOCABULARY.context_of_audio, max_tail_pads=4)
    rows, denoiser, share = stream.batch(0), toys.denoiser().config, {}
    for suffix in (0.0, 0.5, 1.0):
        config = toys.preset(training__suffix={"text_qa": suffix}).training
        found = {"text_qa": [], "asr": []}
        for n, row in enumerate(rows):
            mask = choose_scored(row, config, denoiser, (0, n))
            for segment, task in enumerate(row.tasks):
                answer = mask[torch.from_numpy((row.segment_ids == segment) & (row.labels >= 0))]
                found[task].append(bool((answer.int().diff() >= 0).all()))
        share[suffix] = {task: np.mean(values) for task, values in found.items()}
    assert share[1.0]["text_qa"] == 1 and share[1.0]["asr"] == pytest.approx(share[0.0]["asr"], abs=0.1) and \
        share[0.0]["asr"] < 0.9
    chance = share[0.0]["text_qa"]
    assert share[0.5]["text_qa"] == pytest.approx((1 + chance) / 2, abs=0.08) and chance < 0.8
    with pytest.raises(ConfigError, match="suffix.asr: expected 0 to 1"):
        toys.preset(training__suffix={"asr": 2.0})
    for other, why in (({"time": "token"}, "needs time 'sequence'"),
                       ({"loss_weight": "bound"}, "masks are of one order")):
        with pytest.raises(ConfigError, match=why):
            toys.preset(training__suffix={"asr": 0.5}, **{f"training__{key}": value for key, value in other.items()})


def shares_masked(rows, masks) -> torch.Tensor:
    """Of each sample's answer, tail pads included."""
    return torch.stack([mask[(torch.from_numpy(r.segment_ids) == n) & (torch.from_numpy(r.labels) >= 0)].float().mean()
                        for r, mask in zip(rows, masks) for n in range(len(r.tasks))])


def test_the_rate_warms_up_and_follows_half_a_cosine():
    plan = StageConfig(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3
    kept = replace(plan, final=0.2)
    assert learning_rate(kept, 55) == pytest.approx(0.6) and learning_rate(kept, 99) == pytest.approx(0.2, abs=1e-3)


# --- the log --------------------------------------------------------------------------------------------------------

def test_the_log_has_a_row_a_step_and_a_loss_a_task(straight):
    log, _ = straight
    assert log["step"].tolist() == list(range(6))
    assert {"tokens_per_second", "data_seconds", "efficiency", "loss_text_qa", "loss_asr"} <= set(log.columns)
    assert (log["tokens_per_second"] > 0).all() and log["seconds"].is_monotonic_increasing
    assert (log["loss"].between(log[["loss_text_qa", "loss_asr"]].min(axis=1),
                                log[["loss_text_qa", "loss_asr"]].max(axis=1))).all()


def test_tensorboard_holds_the_same_losses(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, _ = run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(log["loss"].tolist(), rel=1e-6)


# --- it resumes -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{"precision": "fp32"}, {"precision": "bf16"}, {"optimizer": "muon"},
                                      {"compile": True}], ids=str)
def test_stop_and_resume_equals_a_straight_run(tmp_path, settings):
    preset = toys.preset(**{f"training__{key}": value for key, value in settings.items()})
    whole = run(tmp_path / "whole", preset=preset)
    run(tmp_path / "parts", preset=preset, stop_after=3)
    assert_same(run(tmp_path / "parts", preset=preset), whole)


def test_without_a_compiler_training_goes_on_uncompiled(tmp_path, straight, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(UserWarning, match="no C.. compiler .g.. or clang...*goes on without"):
        assert_same(run(tmp_path, preset=toys.preset(training__compile=True)), straight)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, straight):
    """SIGKILL in the middle of step 4: the checkpoint after step 3 stands, the log's last rows are dropped."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import toys
        from omnidiff_lite.training import trainer

        real = trainer.Stepper.step
        def slow(self, step, rate):
            if step == 5:
                Path(sys.argv[1], "reached").touch()
                time.sleep(600)
            return real(self, step, rate)
        trainer.Stepper.step = slow
        trainer.train_stage(toys.preset(), 1, toys.denoiser(), toys.datasets(), sys.argv[1], progress=False)
    """)
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=child_environment())
    try:
        waited = time.monotonic()
        while not (tmp_path / "reached").exists():
            assert child.poll() is None and time.monotonic() - waited < 120, "the child did not reach step 5"
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    logged = (tmp_path / "log.csv").read_text()
    assert logged.count("\n") == 6  # header and steps 0 to 4; the last checkpoint is after step 3
    (tmp_path / "log.csv").write_text(logged[:-20])  # and the last line was only half on the disk
    assert_same(run(tmp_path), straight)


@contextlib.contextmanager
def full_disk(room: int):
    """No file grows beyond `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


UNWRITTEN = (r"log\.csv, or tensorboard/ beside it, cannot be written \(.*File too large.*\); make room .*goes on from "
             "the last checkpoint")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard
@pytest.mark.parametrize("room", [100, 500])
def test_a_full_disk_is_named_where_the_log_meets_it_first(tmp_path, straight, room):
    """At its head, or at a row of it."""
    run(tmp_path, stop_after=2)
    before = (tmp_path / "log.csv").read_text()
    with full_disk(room), pytest.raises(TrainingError, match=UNWRITTEN):
        run(tmp_path)
    assert (tmp_path / "log.csv").read_text().startswith(before)
    assert_same(run(tmp_path), straight)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_figures_beside_the_log_that_cannot_be_written_are_named(tmp_path):
    """They are larger than its rows, and written by a thread: noticed some steps later, and again at the end."""
    log = StepLog(tmp_path, ["loss"], 0)
    with full_disk(4000):
        with pytest.raises(TrainingError, match=UNWRITTEN):
            for step in range(300):
                log.write(step, {"loss": 1.0})
        with pytest.raises(TrainingError, match=UNWRITTEN):
            log.close()
    assert len(read_log(tmp_path / "log.csv")) == step + 1 < 300


def test_a_position_that_cannot_be_written_names_its_file(tmp_path):
    save_position(tmp_path, 2, {"window": 0, "row": 3})
    with full_disk(10), pytest.raises(CheckpointError, match=r"stream\.json: cannot be written .*make room"):
        save_position(tmp_path, 4, {"window": 1, "row": 5})
    assert [path.name for path in tmp_path.iterdir()] == ["stream.json"]


def test_a_damaged_last_checkpoint_costs_two_steps_and_nothing_else(tmp_path, straight):
    run(tmp_path, stop_after=4)
    (tmp_path / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        resumed = run(tmp_path)
    assert_same(resumed, straight)


def test_a_finished_stage_only_loads(tmp_path, straight):
    run(tmp_path)
    model = toys.denoiser()
    log = train_stage(toys.preset(), 1, model, toys.datasets(), tmp_path, progress=False)
    assert_same((log, model), straight)


def test_another_run_is_refused_or_started_afresh(tmp_path):
    run(tmp_path, stop_after=2)
    other = toys.preset(training__gamma=1.0)
    with pytest.raises(CheckpointError, match="training.gamma was 0.6, is 1.0"):
        run(tmp_path, preset=other)
    with pytest.raises(CheckpointError, match="start was"):
        run(tmp_path, model=toys.denoiser(seed=5))
    with pytest.warns(UserWarning, match="another run: starting afresh"):
        fresh = run(tmp_path, preset=other, resume="auto")
    assert_same(fresh, run(tmp_path / "clean", preset=other))
    assert_same(run(tmp_path, preset=other, resume=False), fresh)


def test_a_finished_stage_trains_again_when_the_code_has_changed(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(trainer, "source_hash", lambda *patterns: "edited")
    with pytest.raises(CheckpointError, match="source was .*, is 'edited'"):
        run(tmp_path)
    steps = []
    monkeypatch.setattr(Stepper, "step", lambda self, step, rate, real=Stepper.step: steps.append(step)
                        or real(self, step, rate))
    with pytest.warns(UserWarning, match="another run: starting afresh"):
        run(tmp_path, resume="auto")
    run(tmp_path, resume="auto")
    assert steps == list(range(6)), "trained again once, then loaded"


def test_every_field_of_the_denoiser_makes_another_run(tmp_path):
    """Rotary positions leave no trace in the weights."""
    run(tmp_path, stop_after=2)
    model = toys.denoiser()
    model.config.rope_parameters["rope_theta"] = 1e6
    with pytest.raises(CheckpointError, match="denoiser.rope_parameters was"):
        run(tmp_path, model=model)
    saved = toys.denoiser()
    saved.save_pretrained(tmp_path / "saved")
    run(tmp_path, model=Denoiser.from_pretrained(tmp_path / "saved"))  # the source of the weights makes no difference


def test_the_fingerprint_reads_the_sources_that_it_names():
    assert all((PACKAGE / name).is_file() for name in trainer.SOURCES)


# --- the same step, cut differently ---------------------------------------------------------------------------------

def test_micro_batches_do_not_change_the_step(tmp_path, straight):
    log, _ = run(tmp_path, preset=toys.preset(training__micro_rows=1, training__precision="fp32"))
    whole, _ = run(tmp_path / "whole", preset=toys.preset(training__precision="fp32"))
    assert log["scored"].tolist() == whole["scored"].tolist()
    assert log["loss"].tolist() == pytest.approx(whole["loss"].tolist(), rel=1e-4)
    assert log["gradient_norm"].tolist() == pytest.approx(whole["gradient_norm"].tolist(), rel=1e-3)


def test_recomputing_activations_does_not_change_the_step(tmp_path):
    plain, recomputed = (run(tmp_path / str(on), preset=toys.preset(training__recompute=on, training__precision="fp32"))
                         for on in (False, True))
    assert_same(plain, recomputed)
    assert not recomputed[1].is_gradient_checkpointing


def test_the_causal_twin_predicts_every_answer_token_and_hides_none(tmp_path, straight):
    model = toys.denoiser(is_causal=True)
    log, _ = run(tmp_path, model=model)
    assert log["tokens"].tolist() == straight[0]["tokens"].tolist()  # the same rows
    assert (log["scored"] > straight[0]["scored"]).all()
    assert not (batch(model, toys.copying(2)).input_ids == toys.VOCABULARY.mask).any()


def test_validation_leaves_out_what_training_does():
    model, short = toys.denoiser(), toys.copying(9)
    long = toys.sample("text_qa", [1] * 70, [2])
    table = validate(toys.preset(), model, {"text_qa": [*short, long]})
    assert table.equals(validate(toys.preset(), model, {"text_qa": short})) and table["samples"].tolist() == [9]


def test_validation_uses_the_same_masks_every_time():
    model, data = toys.denoiser(), {"asr": toys.hearing(9), "text_qa": toys.copying(9)}
    first, again = (validate(toys.preset(), model, data, rows=rows) for rows in (8, 8))
    assert first.equals(again) and first["samples"].tolist() == [9, 9]
    assert not first["loss"].equals(validate(toys.preset(), model, data, seed=1)["loss"])


def test_two_processes_share_the_rows_and_take_the_same_steps(tmp_path):
    """Two CPU processes, with a stop and a resume between: gradients are averaged over all scored tokens."""
    whole, _ = run(tmp_path / "alone", preset=toys.preset(training__precision="fp32"))
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent("""
        import sys
        import toys
        from omnidiff_lite.training.trainer import train_stage

        for stop in (3, None):
            train_stage(toys.preset(training__precision="fp32"), 1, toys.denoiser(), toys.datasets(), sys.argv[1],
                        progress=False, stop_after=stop)
    """))
    environment = child_environment() | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                                         "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*command, str(script), str(tmp_path / "two")], env=environment, check=True, timeout=180)
    log = pd.read_csv(tmp_path / "two" / "log.csv")
    assert log["scored"].tolist() == whole["scored"].tolist()
    for name in ("loss", "loss_asr", "gradient_norm"):
        assert log[name].tolist() == pytest.approx(whole[name].tolist(), rel=1e-4)


# --- what cannot be trained -----------------------------------------------------------------------------------------

def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = toys.denoiser()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(TrainingError, match="step 0: the loss is nan.*start afresh .--fresh, or resume=False. with"):
        run(tmp_path, model=model)


def test_there_are_three_stages(tmp_path):
    with pytest.raises(TrainingError, match="stage 4: the paper has stages 1, 2 and 3"):
        train_stage(toys.preset(), 4, toys.denoiser(), toys.datasets(), tmp_path)


def test_seeds_are_well_mixed():
    assert len({derive_seed(a, b, c) for a in range(10) for b in range(4) for c in range(100)}) == 4000


def test_a_row_whose_samples_are_all_broken_teaches_nothing_and_breaks_nothing():
    config = toys.denoiser().config
    row = pack_row([], [], 16, pad=toys.VOCABULARY.pad, context_of_audio=toys.VOCABULARY.context_of_audio)
    found = collate([row], [torch.zeros(16, dtype=torch.bool)], ("text_qa",), config)
    assert found.speech_frames.shape == (1, 16, config.speech_dim) and (found.targets == -100).all()


def test_from_left_to_right_nothing_counts_as_masked():
    model, sample = toys.denoiser(), toys.sample("text_qa", [1], [2, 3])
    row = pack_row([sample], [0], 16, pad=toys.VOCABULARY.pad, context_of_audio=toys.VOCABULARY.context_of_audio)
    chosen = torch.from_numpy(row.labels) != -100
    shares = []
    for causal in (False, True):
        model.set_causal(causal)
        shares.append(collate([row], [chosen], ("text_qa",), model.config).masked_share[0][chosen])
    assert (shares[0] == 1).all() and (shares[1] == 0).all()
