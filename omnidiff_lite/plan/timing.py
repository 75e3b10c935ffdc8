"""How long one picture and one spoken sentence take at any size, with random weights, beside the paper and the floor.

    bench(load_preset("full"), device="cuda")          # records of table `bench`
    beside_paper(records)                               # the same as a table

Random weights cost what trained ones cost: the time depends only on sizes, steps and settings. Answers are decoded one
at a time, like the paper's latencies. What comes before the denoiser (the prompt's encoding) is left out; what comes
after it, pixels from codes and the wave from speech tokens, is included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import Preset, load_preset
from omnidiff_lite.diffusion.decoding import DecodingConfig, decode
from omnidiff_lite.evaluation.records import Record, measured, paper_records, with_provenance
from omnidiff_lite.evaluation.statistics import Estimate, median_interval
from omnidiff_lite.measure import PeakMemory, seconds_of
from omnidiff_lite.pipeline.settings import AnswerLengths
from omnidiff_lite.plan.data import ASSUMED, FRAME_RATE
from omnidiff_lite.plan.device import Rates, device_name, device_of, measure_rates, seconds_at
from omnidiff_lite.plan.floor import DecodingWork, decoding_work
from omnidiff_lite.plan.memory import GIB
from omnidiff_lite.plan.parts import PlanError, denoiser_config, denoiser_parameters, vocabulary_of
from omnidiff_lite.provenance import provenance
from omnidiff_lite.sizes import QUERY_FRAMES, TOKENS_PER_SECOND
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.vocabulary import Vocabulary

TABLE = "bench"
MIDDLE = "middle"  # 167 M parameters: half a minute on two CPU cores
MIDDLE_SIZES = {f"denoiser.{name}": size for name, size in {
    "hidden_size": 1024, "intermediate_size": 3072, "layers": 12, "heads": 16, "kv_heads": 4}.items()}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Job:
    """One row: `name` as table 3 of the paper has it, what to decode after `prompt` random tokens, and what is then
    made of the answer. `spoken`: seconds of speech in it, 0 of a picture."""

    name: str
    prompt: int
    decoding: DecodingConfig
    render: Callable[[Tensor], object]
    spoken: float = 0.0

    @property
    def unconditional(self) -> int | None:
        """Tokens of guidance's other prompt; None without guidance."""
        return len(self.decoding.guidance_prompt_ids) if self.decoding.guided() else None


def timing_size(name: str, overrides: Mapping[str, Any] = {}) -> tuple[Preset, dict[str, Any]]:
    """What to time, and further arguments for `bench`: a preset, or "middle", between `gpu` and `full`, with few
    steps."""
    if name != MIDDLE:
        return load_preset(name, dict(overrides)), {}
    preset = load_preset("gpu", MIDDLE_SIZES | dict(overrides))
    return replace(preset, name=MIDDLE), {"steps": (4, 2), "ratios": (0.125,)}


def bench_name(size: str, device: str | torch.device, dtype: str, compiled: bool = False) -> str:
    """"bench_full_cuda_bfloat16": the name of the records file, so that no other timing overwrites it."""
    return "_".join([TABLE, size, torch.device(device).type, dtype, *["compiled"] * compiled])


def bench(preset: Preset, device: str | torch.device = "cpu", dtype: str = "bfloat16", *,
          tasks: Sequence[str] = ("t2i", "s2i", "tts"), steps: Sequence[int] = (256, 50, 10),
          ratios: Sequence[float] = (0.5, 0.125), image_tokens: int = 256, text_tokens: int = 40, repeats: int = 3,
          compiled: bool = False, seed: int = 0) -> list[Record]:
    """Time the denoiser of `preset`, with random weights, on `device`.

    Rows "diffusion 7.8B bfloat16: text-to-image, 256 steps" for each of `steps`, and "text-to-speech, 0.5L steps" for
    each of `ratios`. Columns: `latency_s` (of a picture), `rtf` (of speech: seconds per second of it), split into
    `denoise_s` and `render_s`; `peak_gib`; `floor_bytes_s`, `floor_flops_s` (see `plan.floor`) at the device's
    own rates, given in the row "device". Values are medians of `repeats`, with bootstrap intervals.

    Decoding is `DecodingConfig.paper`: pictures from text without guidance, pictures from speech with scale 3.
    A picture has `image_tokens`, a square number; the sentence has `text_tokens`, and 3.5 times as many speech tokens
    (adaptive length, section 3.4), all of which are spoken. Prompts have the lengths that `omnidiff plan --assumptions`
    lists. `compiled`: torch.compile of the transformer; compilation is not timed. The parts that render compute in
    float32, as the kit loads them. Raises `PlanError` for a device that does not exist or is too small.
    """
    if dtype not in DTYPES:
        raise PlanError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if math.isqrt(image_tokens)**2 != image_tokens:
        raise PlanError(f"image_tokens {image_tokens}: give a square number, such as 256")
    started, config = time.time(), denoiser_config(preset)
    number_bytes, parameters = DTYPES[dtype].itemsize, denoiser_parameters(config).total
    device = device_of(device, parameters * number_bytes)
    rates = measure_rates(device, DTYPES[dtype])
    torch.manual_seed(seed)
    denoiser = random_denoiser(preset, device, DTYPES[dtype])
    if compiled:
        denoiser.model.compile(dynamic=False)
    label = f"diffusion {_count(parameters)} {dtype}{', compiled' if compiled else ''}"
    records = _rate_records(f"{label}: device", rates, seed)
    for job in _jobs(preset, device, tasks, steps, ratios, image_tokens, text_tokens):
        floor = decoding_work(config, job.prompt, job.decoding.length, job.decoding.step_count(job.decoding.length),
                              job.unconditional, number_bytes, len(job.decoding.allowed_ids))
        columns = time_job(denoiser, job, repeats, seed) | _floor_seconds(floor, rates)
        records += measured(TABLE, f"{label}: {job.name}", seed, columns)
    return with_provenance(records, provenance(
        preset, seed, started, on=device.type, device=device_name(device), dtype=dtype, compiled=compiled,
        parameters=parameters, weights="random", image_tokens=image_tokens, text_tokens=text_tokens))


def random_denoiser(preset: Preset, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """Random weights, drawn on the device in the dtype, so that nothing is held twice."""
    with torch.device(device):
        return Denoiser._from_config(denoiser_config(preset), dtype=dtype).eval().requires_grad_(False)


def time_job(denoiser: Denoiser, job: Job, repeats: int, seed: int = 0) -> dict[str, Estimate]:
    """Decode and render `repeats` times, after a short warm-up run."""
    device = denoiser.device
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(min(256, denoiser.config.pad_token_id), (job.prompt,), generator=generator)
    answers: list[Tensor] = []

    def answer() -> None:
        answers[:] = [decode(denoiser, prompt, job.decoding).ids[0]]

    decode(denoiser, prompt, job.decoding.replace(steps=2))
    with PeakMemory(device) as memory:
        denoise = seconds_of(answer, device, repeats)
        job.render(answers[0])  # to warm up
        render = seconds_of(lambda: job.render(answers[0]), device, repeats)
    whole = [a + b for a, b in zip(denoise, render)]
    spoken = {"rtf": [s / job.spoken for s in whole]} if job.spoken else {}
    times = {"latency_s": whole, **spoken, "denoise_s": denoise, "render_s": render}
    return {name: median_interval(values) for name, values in times.items()} | {
        "peak_gib": Estimate(memory.peak / GIB, None, None, repeats, "the most of all repeats")}


# --- what is timed --------------------------------------------------------------------------------------------------


def _jobs(preset: Preset, device: torch.device, tasks: Sequence[str], steps: Sequence[int], ratios: Sequence[float],
          image_tokens: int, text_tokens: int) -> list[Job]:
    vocabulary, jobs = vocabulary_of(preset), []
    chat = int(ASSUMED["chat"])
    heard = 2 + round(ASSUMED["spoken_prompt"] * FRAME_RATE) + QUERY_FRAMES
    prompts = {"t2i": ("text-to-image", chat + int(ASSUMED["image_prompt"])), "s2i": ("speech-to-image", chat + heard)}
    draw = _drawing(preset, device, vocabulary, image_tokens)
    for task, (name, prompt) in prompts.items():
        if task in tasks:
            config = DecodingConfig.paper(task, vocabulary).replace(
                length=image_tokens, allowed_ids=vocabulary.image_range, guidance_prompt_ids=list(range(chat)))
            jobs += [Job(f"{name}, {n} steps", prompt, config.replace(steps=n), draw) for n in steps]
    if "tts" in tasks:
        length = round(AnswerLengths().speech_per_text * text_tokens)
        config = DecodingConfig.paper("tts", vocabulary).replace(length=length, allowed_ids=vocabulary.speech_range)
        speak = _speaking(preset, device, vocabulary)
        jobs += [Job(f"text-to-speech, {share:g}L steps", chat + text_tokens, config.replace(steps=share), speak,
                     length / TOKENS_PER_SECOND) for share in ratios]
    return jobs


def _drawing(preset: Preset, device: torch.device, vocabulary: Vocabulary, tokens: int) -> Callable[[Tensor], object]:
    tokenizer, side = _random(ImageTokenizer, preset.image_tokenizer, device), math.isqrt(tokens)
    first = vocabulary.image_range.start
    return lambda ids: tokenizer.decode((ids - first).view(1, side, side).to(device)).cpu()


def _speaking(preset: Preset, device: torch.device, vocabulary: Vocabulary) -> Callable[[Tensor], object]:
    decoder = _random(SpeechDecoder, preset.speech_decoder, device)
    return lambda ids: decoder.decode(ids - vocabulary.speech_range.start)


def _random(kind: Callable[..., nn.Module], config: object, device: torch.device) -> nn.Module:
    return kind(config).eval().requires_grad_(False).to(device)


# --- records --------------------------------------------------------------------------------------------------------


def _floor_seconds(work: DecodingWork, rates: Rates) -> dict[str, Estimate]:
    return {"floor_bytes_s": seconds_at(work.bytes, rates.bandwidth),
            "floor_flops_s": seconds_at(work.flops, rates.matmul)}


def _rate_records(row: str, rates: Rates, seed: int) -> list[Record]:
    return measured(TABLE, row, seed, {"bandwidth_gb_s": rates.bandwidth.scaled(1e-9),
                                       "matmul_tflops": rates.matmul.scaled(1e-12)})


def _count(parameters: int) -> str:
    """7.8B, 240M, 0.5M."""
    scale, unit = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / scale:.{1 if parameters / scale < 10 else 0}f}{unit}"


def beside_paper(records: Sequence[Record]) -> pd.DataFrame:
    """One row per job: the paper's seconds (ICML version, hardware not stated), ours with interval and n, the floor.

    Speech rows count seconds per second of speech (real-time factor), floors included. The paper's numbers are for 7.8B
    parameters, whatever was timed here, and for pictures of 256 tokens: they are not set beside other picture sizes.
    """
    paper = {(r.row, r.column): r.value for r in paper_records("table3_sampling") if r.source == "paper-icml"}
    cells: dict[str, dict[str, Record]] = {}
    for record in records:
        cells.setdefault(record.row, {})[record.column] = record
    rows = [_beside(row.split(": ")[1], found, paper) for row, found in cells.items() if "latency_s" in found]
    return pd.DataFrame(rows).set_index("row").astype({"paper (ICML)": float})


def _beside(row: str, found: dict[str, Record], paper: dict[tuple[str, str], float | None]) -> dict[str, object]:
    column = "rtf" if "rtf" in found else "latency_s"
    ours, latency = found[column], found["latency_s"].value
    unit = ours.value / latency  # 1, or 1 / seconds spoken
    alike = column == "rtf" or ours.provenance["image_tokens"] == 256
    return {"row": row, "unit": {"rtf": "s per s of speech"}.get(column, "s"),
            "paper (ICML)": paper.get((row, column)) if alike else None,
            "ours": ours.value, "low": ours.low, "high": ours.high, "n": ours.n,
            "of it denoising": found["denoise_s"].value * unit, "floor: bytes": found["floor_bytes_s"].value * unit,
            "floor: FLOPs": found["floor_flops_s"].value * unit, "peak GiB": found["peak_gib"].value}
