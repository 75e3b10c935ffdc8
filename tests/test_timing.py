"""Timing at any size: the floor against a decoding run's actual multiplications, the clock, and the records."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import DenoiserSize, load_preset, to_dict
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.measure import PeakMemory, seconds_of
from omnidiff_lite.plan import PlanError, denoiser_config, denoiser_parameters
from omnidiff_lite.plan.device import device_of, measure_rates
from omnidiff_lite.plan.floor import decoding_work
from omnidiff_lite.plan.timing import bench, bench_name, beside_paper, timing_size
from omnidiff_lite.vocabulary import Vocabulary

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
V = Vocabulary.small(text=200, speech_codes=300, image_codes=400)
SIZE = DenoiserSize(hidden_size=96, intermediate_size=192, layers=3, heads=4, kv_heads=2, rope_theta=1e4)


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(DenoiserConfig.from_size(SIZE, V, speech_dim=16)).eval()


# --- the floor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unconditional", [None, 7])
@pytest.mark.parametrize("steps", [64, 10])
def test_multiplications_are_those_of_a_real_run(steps, unconditional):
    """Within 1 %; torch counts the products of attention where they are done one by one."""
    model = denoiser()
    config = DecodingConfig(length=64, steps=steps)
    if unconditional:
        config = config.replace(guidance_scale=3.0, guidance_prompt_ids=[1] * unconditional)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decode(model, torch.arange(20), config)
    # The kit pads the shorter side of a guided pair; the floor does not.
    planned = decoding_work(model.config, 20, 64, steps, unconditional and 20)
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert decoding_work(model.config, 20, 64, steps, unconditional).flops <= planned.flops


def test_bytes_are_all_weights_but_the_embedding_and_the_adapter():
    model = denoiser()
    read = sum(p.nbytes for name, p in model.named_parameters() if "embed_tokens" not in name and "audio" not in name)
    assert decoding_work(model.config, 20, 64, 10, number_bytes=4).bytes == 10 * read
    assert decoding_work(model.config, 20, 64, 10, 7, number_bytes=4).bytes == 10 * read, "guidance shares the reading"


def test_of_the_head_only_allowed_rows_count():
    """Bytes and multiplications of an unrestricted run, less those of the head's other rows."""
    model = denoiser()
    whole, some = (decoding_work(model.config, 20, 64, 1, number_bytes=4, allowed=n) for n in (None, 100))
    others = (model.config.vocab_size - 100) * SIZE.hidden_size
    assert whole.bytes - some.bytes == 4 * others and whole.flops - some.flops == 64 * 2 * others
    assert decoding_work(model.config, 20, 64, 1, number_bytes=4, allowed=V.size) == whole


def test_the_released_model_reads_14_gigabytes_a_step():
    work = decoding_work(denoiser_config(load_preset("full")), prompt=78, length=256, steps=256)
    assert work.bytes / 256 == pytest.approx(14.3e9, rel=0.01)


# --- the clock ------------------------------------------------------------------------------------------------------


def test_rates_are_measured_with_their_spread():
    rates = measure_rates(CPU, torch.float32, repeats=3)
    for rate in (rates.bandwidth, rates.matmul):
        assert 1e8 < rate.low <= rate.value <= rate.high < 1e14 and rate.n == 3


def test_on_the_cpu_memory_is_seen_while_it_is_held():
    with PeakMemory(CPU) as before:
        pass
    with PeakMemory(CPU) as during:
        held = torch.ones(2**26)  # 256 MiB
        seconds_of(held.sum, CPU, 3)
    assert 200 < (during.peak - before.peak) / 2**20 < 400


def test_children_count_where_asked_for():
    program = "import time; held = bytearray(2**28); print(flush=True); time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with PeakMemory() as alone:
            pass
        with PeakMemory(children=True) as both:
            pass
        child.kill()
    assert both.peak - alone.peak > 2**28


def test_on_a_gpu_the_queue_is_drained_and_the_allocator_asked(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("drain"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    with PeakMemory(CUDA) as memory:
        assert len(seconds_of(lambda: calls.append("work"), CUDA, 2)) == 2
    assert calls == ["reset", *["drain", "work", "drain"] * 2] and memory.peak == 123


@pytest.mark.parametrize("name, needed, message", [
    ("abacus", 0, "give cpu, cuda"), ("meta", 0, "on cpu or cuda"), ("cpu", 10**15, "the weights take 931322.6 GiB")])
def test_a_device_that_cannot_be_used_is_named(name, needed, message):
    with pytest.raises(PlanError, match=message):
        device_of(name, needed)


# --- the records ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tiny_preset):
    return bench(tiny_preset, steps=(4, 2), ratios=(0.5,), image_tokens=16, text_tokens=4, repeats=2)


def test_every_row_has_time_memory_and_floor(records, tiny_preset):
    rows = {record.row.partition(": ")[2]: {} for record in records}
    for record in records:
        rows[record.row.partition(": ")[2]][record.column] = record
    assert list(rows) == ["device", "text-to-image, 4 steps", "text-to-image, 2 steps", "speech-to-image, 4 steps",
                          "speech-to-image, 2 steps", "text-to-speech, 0.5L steps"]
    assert set(rows.pop("device")) == {"bandwidth_gb_s", "matmul_tflops"}
    for name, found in rows.items():
        assert set(found) - {"rtf"} == {"latency_s", "denoise_s", "render_s", "peak_gib", "floor_bytes_s",
                                        "floor_flops_s"}
        assert found["latency_s"].value > found["denoise_s"].value > found["floor_flops_s"].value > 0
        assert ("rtf" in found) == name.startswith("text-to-speech")
    spoken = rows["text-to-speech, 0.5L steps"]
    assert spoken["latency_s"].value / spoken["rtf"].value == pytest.approx(14 / 12.5)  # 3.5 x 4 tokens at 12.5 Hz
    allowed = decoding_work(denoiser_config(tiny_preset), 78, 16, 4, allowed=tiny_preset.image_tokenizer.codes)
    rate = next(r.value for r in records if r.column == "bandwidth_gb_s")
    assert rows["text-to-image, 4 steps"]["floor_bytes_s"].value == pytest.approx(allowed.bytes / rate / 1e9)
    assert rows["text-to-image, 4 steps"]["floor_bytes_s"].value == pytest.approx(
        2 * rows["text-to-image, 2 steps"]["floor_bytes_s"].value)


def test_records_say_how_they_came_about(records):
    for record in records:
        assert record.table == "bench" and record.source == "ours" and record.n and record.row.startswith("diffusion ")
        assert {"hardware", "device", "dtype", "compiled", "parameters"} <= set(record.provenance)
    assert records[-1].provenance["weights"] == "random" and "bfloat16" in records[0].row


def test_the_papers_seconds_stand_beside_pictures_of_the_same_size_only(records):
    table = beside_paper(records)
    assert table.loc["text-to-speech, 0.5L steps", "paper (ICML)"] == 0.427
    assert table["paper (ICML)"].notna().sum() == 1 and (table["low"] <= table["ours"]).all()


@pytest.mark.parametrize("wrong, message", [
    ({"dtype": "int8"}, "choose one of bfloat16"), ({"image_tokens": 200}, "a square number"),
    ({"device": "meta"}, "on cpu or cuda")])
def test_what_cannot_be_timed_is_told_at_once(tiny_preset, wrong, message):
    with pytest.raises(PlanError, match=message):
        bench(tiny_preset, **wrong)


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_the_middle_size_is_one_and_times_few_steps(tiny_preset):
    preset, options = timing_size("middle")
    assert 100e6 < denoiser_parameters(denoiser_config(preset)).total < 200e6 and max(options["steps"]) < 10
    small = {f"{part}.{key}": value for part in ("denoiser", "image_tokenizer", "speech_decoder")
             for key, value in to_dict(getattr(tiny_preset, part)).items()}
    tiny, options = timing_size("middle", small | {"speech_tokenizer.codes": 32})
    records = bench(tiny, tasks=("t2i", "tts"), image_tokens=16, text_tokens=4, repeats=1, **options)
    assert {r.row.split(": ")[1] for r in records} == {
        "device", "text-to-image, 4 steps", "text-to-image, 2 steps", "text-to-speech, 0.125L steps"}
    assert {r.provenance["preset"] for r in records} == {"middle"}
    assert timing_size("smoke") == (load_preset("smoke"), {})


def test_each_timing_has_its_own_file():
    names = [bench_name(size, device, dtype, compiled) for size in ("full", "smoke") for device in ("cpu", "cuda:1")
             for dtype in ("bfloat16", "float32") for compiled in (False, True)]
    assert len(set(names)) == 16 and bench_name("full", "cuda", "bfloat16") == "bench_full_cuda_bfloat16"
