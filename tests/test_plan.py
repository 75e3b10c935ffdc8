"""The plan's formulas against measured runs: the denoiser's training step, counted as it happens on the CPU."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from omnidiff_lite import precision
from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.chat import IGNORE
from omnidiff_lite.cli import main
from omnidiff_lite.config import DenoiserSize, load_preset
from omnidiff_lite.plan import (
    PlanError, activations, denoiser_config, denoiser_parameters, flops, largest_micro_batch, make_plan, memory, parts,
    usable)
from omnidiff_lite.plan.compute import most_scored
from omnidiff_lite.plan.data import TABLE_4, packing_efficiency, sample_tokens, total_tokens
from omnidiff_lite.training.batches import Batch
from omnidiff_lite.training.step import AnswerLoss
from omnidiff_lite.vocabulary import Vocabulary

VOCABULARY = Vocabulary.small(text=200, speech_codes=400, image_codes=400)
# (size, rows, length): narrow and short, middle, wide and long
SIZES = [(DenoiserSize(64, 192, 2, 4, 2, 1e4, 512), 2, 64), (DenoiserSize(128, 384, 4, 4, 2, 1e4, 512), 2, 128),
         (DenoiserSize(192, 768, 6, 6, 2, 1e4, 512), 1, 256)]
SWITCHED = DenoiserSize(64, 192, 2, 4, 2, 1e4, 512, step_embedding=True, output_heads="modality")
FULL = denoiser_config(load_preset("full"))
LENGTH, SCORED = 3072, 2500


@pytest.fixture(autouse=True)
def multiplies_bf16(monkeypatch):
    """Memory is planned for devices that multiply bfloat16; a CPU that does not would train in float32."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: True)


def case(size: DenoiserSize, rows: int, length: int, numbers: str = "fp32", recompute: bool = False,
         vocabulary: Vocabulary = VOCABULARY):
    """A training module, a batch of four segments a row with half of the positions scored, and how many those are."""
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig.from_size(size, vocabulary, speech_dim=16)).train()
    if numbers == "bf16":
        denoiser.to(torch.bfloat16)
    if recompute:
        denoiser.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 200, (rows, length))
    targets = torch.where(torch.arange(length) % 2 == 0, IGNORE, ids)
    positions = torch.arange(length).expand(rows, -1)
    ones = torch.ones(rows, length)
    batch = Batch(ids, targets, positions // (length // 4), positions, torch.zeros(rows, length, 16), ids, ones, ones,
                  ones)
    return AnswerLoss(denoiser, "fp32" if numbers == "fp32" else "bf16"), batch, int((targets[:, 1:] != IGNORE).sum())


def saved_bytes(module: AnswerLoss, batch: Batch) -> int:
    """Storages that autograd keeps for the backward pass, each once, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def peak_bytes(module: AnswerLoss, batch: Batch) -> int:
    """The most that forward and backward hold at once beyond weights and gradients, from the allocator's events.

    Without oneDNN, whose matrix products take scratch space of their own, more or less of it by the processor.
    """
    with torch.backends.mkldnn.flags(enabled=False):
        module(batch).sum().backward()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            module(batch).sum().backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    return int(held.max())


# --- parameters -----------------------------------------------------------------------------------------------------


def test_full_has_the_released_parameters():
    counted = {part.name: part for part in parts(load_preset("full"))}
    language, adapter = counted["language model"], counted["speech adapter"]
    assert (language.tensors, language.parameters) == (339, 7_789_082_112)
    assert (adapter.tensors, adapter.parameters) == (4, 14_681_088)
    assert (counted["speech encoder"].tensors, counted["speech encoder"].parameters) == (917, 233_999_167)
    assert [part.name for part in counted.values() if part.trained] == ["language model", "speech adapter"]
    assert denoiser_parameters(FULL).total == language.parameters + adapter.parameters


@pytest.mark.parametrize("size, rows, length", [*SIZES, (SWITCHED, 1, 64)])
def test_parameters_by_arithmetic_are_those_of_the_module(size, rows, length):
    module, _, _ = case(size, rows, length)
    count = denoiser_parameters(module.denoiser.config)
    assert count.total == sum(p.numel() for p in module.parameters())
    assert count.layer == sum(p.numel() for p in module.denoiser.model.layers[0].parameters())
    assert count.multiplied == sum(m.weight.numel() for m in module.modules() if isinstance(m, torch.nn.Linear))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, rows, length", SIZES)
def test_weights_gradients_and_moments_are_exact(size, rows, length):
    """One GPU, as the kit trains: float32 throughout. AdamW also counts its steps, 4 bytes a tensor."""
    module, batch, scored = case(size, rows, length, "autocast")
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    (module(batch).sum() + module.denoiser.project_speech(torch.ones(1, 16)).sum()).backward()
    optimizer.step()
    plan = memory(module.denoiser.config, "ddp", 1, rows, length, scored // rows)
    measured = [sum(t.nbytes for t in tensors) for tensors in (
        module.parameters(), (p.grad for p in module.parameters()),
        (t for state in optimizer.state.values() for name, t in state.items() if name != "step"))]
    assert measured == [plan.weights, plan.gradients, plan.optimizer] and plan.working == 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("numbers", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("size, rows, length", SIZES)
def test_activations_are_as_measured(size, rows, length, numbers, recompute):
    """What autograd keeps within 5 %, the peak of the whole pass within 10 %."""
    module, batch, scored = case(size, rows, length, numbers, recompute)
    planned = activations(module.denoiser.config, rows, length, scored, numbers, recompute)
    assert planned.saved == pytest.approx(saved_bytes(module, batch), rel=0.05)
    assert planned.peak == pytest.approx(peak_bytes(module, batch), rel=0.10)


@pytest.mark.parametrize("numbers", ["fp32", "autocast", "bf16"])
def test_peak_where_the_head_is_most_of_the_model(numbers):
    """As at 176,264 ids and few positions: the gradient of the head's weight is the fullest moment."""
    size, rows, length = DenoiserSize(192, 768, 2, 6, 2, 1e4, 512), 1, 64
    module, batch, scored = case(size, rows, length, numbers, True, Vocabulary.small(200, 6000, 6000))
    planned = activations(module.denoiser.config, rows, length, scored, numbers, recompute=True)
    assert planned.peak == pytest.approx(peak_bytes(module, batch), rel=0.10)


@pytest.mark.parametrize("recompute", [False, True])
def test_more_gpus_need_less_of_each(recompute):
    def total(strategy: str, gpus: int) -> int:
        return memory(FULL, strategy, gpus, 1, LENGTH, SCORED, recompute).total

    for strategy in ("fsdp2", "zero2"):
        totals = [total(strategy, gpus) for gpus in (1, 2, 4, 8, 64)]
        assert totals == sorted(totals, reverse=True) and len(set(totals)) == 5
    assert total("ddp", 8) == total("ddp", 64)


def test_recomputation_longer_rows_and_what_stays_gathered_pull_their_ways():
    def total(strategy: str = "fsdp2", length: int = LENGTH, **how: bool) -> int:
        return memory(FULL, strategy, 8, 1, length, SCORED, **how).total

    assert total(recompute=True) < total() < total(length=2 * LENGTH)
    count = denoiser_parameters(FULL)
    assert total("zero2") - total() == 2 * (count.total - count.ends - 2 * count.layer)


def test_largest_micro_batch_is_the_largest():
    def best(gpu_memory: float):
        return largest_micro_batch(FULL, "fsdp2", 8, gpu_memory, 128, LENGTH, SCORED, recompute=True)

    found = best(80)
    larger = memory(FULL, "fsdp2", 8, 2 * found.rows, LENGTH, SCORED, True)
    assert found.total <= usable(80) < larger.total
    assert best(10) is None and best(1000).rows == 16


# --- FLOPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size, rows, length", SIZES)
def test_flops_are_as_counted(size, rows, length, recompute):
    """Within 1 %; torch counts the products of attention where they are done one by one."""
    module, batch, scored = case(size, rows, length, recompute=recompute)
    batch.input_ids[:, :5] = module.denoiser.config.context_of_audio_token_id
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(batch).sum().backward()
    planned = flops(module.denoiser.config, rows, length, scored, frames=5 * rows)
    total = planned.recomputing if recompute else planned.training
    assert total == pytest.approx(counter.get_total_flops(), rel=0.01)


# --- data and days --------------------------------------------------------------------------------------------------


def test_table_4_sums_as_the_paper_prints():
    hours = {task: sum(s.hours for s in TABLE_4 if s.task == task) for task in ("asr", "tts")}
    assert hours == {"asr": 1354, "tts": 5108}
    in_stage = {stage: sum(s.samples for s in TABLE_4 if stage in s.stages) for stage in (1, 2, 3)}
    assert in_stage == {1: 14_670_000, 2: 17_920_000, 3: 7_980_000}


def test_sample_tokens_follow_the_released_sizes_and_rates():
    full = load_preset("full")
    assert sample_tokens("captioning", full).seen == 1024 + 2
    assert sample_tokens("t2i", full).answer == 256 + 2 + 2
    asr, tts = sample_tokens("asr", full, clip_seconds=6.0), sample_tokens("tts", full, clip_seconds=8.0)
    assert asr.frames == pytest.approx(100 + 4) and tts.answer == 100 + 2 + 2
    discrete = sample_tokens("asr", load_preset("full", {"denoiser.speech_input": "discrete"}), clip_seconds=6.0)
    assert discrete.frames == 0 and discrete.prompt == asr.prompt + 75
    assert total_tokens(TABLE_4, full).seconds > 6462 * 3600


def test_packing_efficiency_is_of_the_rows_that_training_packs():
    assert packing_efficiency([1000], [1], 3000) == pytest.approx(1024 / 342 / 3)
    assert packing_efficiency([1001], [1], 3000) == pytest.approx(2 * 1001 / 3000)
    assert packing_efficiency([1001, 100], [1, 10], 3000) > 0.95
    assert packing_efficiency([5000], [1], 3000) == 1


def test_days_scale_with_the_machine_and_not_with_recomputation():
    full = load_preset("full")
    one, two = make_plan(full, gpus=8, mfu=0.4).stages, make_plan(full, gpus=16, mfu=0.2).stages
    assert one["days"].tolist() == pytest.approx(two["days"].tolist())
    assert make_plan(full, gpus=16).stages["days"].tolist() == pytest.approx((one["days"] / 2).tolist())
    six_n_d = 6 * 7.8e9 * one["own G tokens"] * 1e9
    # The familiar 6 N D counts the embedding, and a head at every position, but no attention.
    assert (one["own ZFLOP"] * 1e21 / six_n_d).between(0.75, 1.3).all()
    assert 0 < most_scored(full) < full.training.length


# --- the command ----------------------------------------------------------------------------------------------------


def test_command_prints_tables_that_fit_a_screen(capsys):
    assert main(["plan", "--preset", "full", "--gpus", "8", "--gpu-memory", "80", "--assumptions"]) == 0
    text = capsys.readouterr().out
    assert "7,789,082,112" in text and re.search(r"fsdp2 +yes", text) and "LibriTTS" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert max(len(table.splitlines()) for table in text.split("\n\n")) <= 24


@pytest.mark.parametrize("arguments, words", [
    (["--gpus", "0"], "--gpus 0"), (["--gpus", "-3"], "--gpus -3"), (["--gpu-memory", "0"], "--gpu-memory 0"),
    (["--mfu", "1.5"], "--mfu 1.5"), (["--gpu-tflops", "nan"], "--gpu-tflops nan"), (["--gpus", "7"], "128 rows"),
])
def test_impossible_requests_are_told_in_one_line(arguments, words, capsys):
    assert main(["plan", "--preset", "full", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_errors_are_of_the_plan():
    with pytest.raises(PlanError, match="above 0"):
        make_plan(load_preset("smoke"), gpus=0)


# --- scaling --------------------------------------------------------------------------------------------------------


def test_the_scaling_curve_counts_what_each_way_trained(tmp_path, monkeypatch):
    """The runs themselves are those of test_distributed.py; here their logs are made up."""
    from omnidiff_lite.plan import scaling

    speeds = {1: [9.0, 9.0, 100.0, 100.0], 2: [9.0, 9.0, 150.0, 150.0]}
    losses = {1: [4.0, 3.0, 2.0, 1.0], 2: [4.0, 3.0, 2.1, 1.0]}
    calls = []

    def run(processes, function):
        calls.append(processes)
        tmp_path.joinpath("runs").mkdir()
        pd.DataFrame({"tokens_per_second": speeds[processes], "loss": losses[processes]}).to_csv(
            tmp_path / "runs" / "log.csv", index=False)

    monkeypatch.setattr(scaling, "together", run)
    records = scaling.measure_scaling(load_preset("smoke"), tmp_path / "runs", steps=2, rounds=2)
    assert calls == [1, 2, 2, 1, 2, 2] and not (tmp_path / "runs").exists()
    table = {(r.row, r.column): r for r in records}
    assert table["1 x single", "tokens_per_second"].value == 100 and table["1 x single", "tokens_per_second"].n == 4
    assert table["2 x ddp", "speedup"].value == 1.5 and table["2 x fsdp2", "speedup"].n == 2
    assert table["1 x single", "loss_difference"].value == 0
    assert table["2 x ddp", "loss_difference"].value == pytest.approx(0.05) and "0.05" in scaling.scaling_table(
        records).loc["2 x ddp", "loss_difference"]
    once = scaling.measure_scaling(load_preset("smoke"), tmp_path / "runs", steps=2, rounds=1)
    assert {r.reason for r in once if r.column == "speedup"} == {"one round has no spread"}
    assert scaling.scaling_table(once).loc["2 x ddp", "speedup"] == "one round has no spread"
