"""Commands that say what a model size costs, planned and timed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from omnidiff_lite.cli_registry import arguments, at_least, command, load, overrides, preset_arguments

if TYPE_CHECKING:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import Preset


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--gpus", type=int, default=8, help="how many, all alike (default 8)")
    parser.add_argument("--gpu-memory", type=float, default=80, help="GiB of each (default 80)")
    parser.add_argument("--gpu-tflops", type=float, default=990, help="bfloat16 peak of each (default 990, an H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="model FLOPs utilisation, 0..1 (default 0.4)")
    parser.add_argument("--assumptions", action="store_true", help="list what the paper leaves open and is assumed")


@command("plan", "What training a preset takes: memory of a GPU, FLOPs, days and disk.",
         "omnidiff plan --preset full --gpus 8 --gpu-memory 80")
@arguments(_plan_arguments)
def _plan(options: argparse.Namespace) -> None:
    from omnidiff_lite.plan import make_plan
    from omnidiff_lite.plan.packing import filled_text

    preset = load(options)
    plan = make_plan(preset, options.gpus, options.gpu_memory, options.mfu, options.gpu_tflops)
    print(f"{plan.report(options.assumptions)}\n\n{filled_text(preset)}")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default cpu)")
    parser.add_argument("--dtype", help="of the denoiser: bfloat16, float16 or float32 (default: bfloat16; of a "
                        "checkpoint on a CPU as stored)")
    parser.add_argument("--tasks", nargs="+", choices=("t2i", "s2i", "tts"), help="default: t2i tts; of random weights "
                        "all")
    parser.add_argument("--repeats", type=at_least(1), default=3, help="of each timing with random weights (default 3)")
    parser.add_argument("--items", type=at_least(1), default=16, help="answers of each way, 8 at a time (default 16; "
                        "more make quality surer)")
    parser.add_argument("--random", action="store_true", help="time random weights of the preset's size beside the "
                        "paper's seconds, without quality; without a checkpoint of the preset this is done anyway")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the denoiser with random weights")


@command("bench", "Ways to decode against the plain one and the autoregressive twin: quality, time, memory.",
         "omnidiff bench --preset cpu\n         omnidiff bench --preset full --device cuda --tasks t2i tts")
@arguments(_bench_arguments)
def _bench(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.plan.timing import timing_size

    preset, few = timing_size(options.preset, overrides(options))
    artifacts = Artifacts.of(preset.name)
    if options.random or options.compiled or not (artifacts.checkpoint / "system.json").exists():
        _time_random_weights(options, preset, artifacts, few)
    else:
        _compare_decoders(options, preset, artifacts)


def _time_random_weights(options: argparse.Namespace, preset: Preset, artifacts: Artifacts, few: dict[str, Any]
                         ) -> None:
    from omnidiff_lite.evaluation.records import write_records
    from omnidiff_lite.plan.timing import bench, bench_name, beside_paper

    dtype = options.dtype or "bfloat16"
    records = bench(preset, options.device, dtype, tasks=options.tasks or ["t2i", "s2i", "tts"],
                    repeats=options.repeats, compiled=options.compiled, **few)
    print(f"random weights of the size of {preset.name}:\n{beside_paper(records).round(4).to_string()}")
    name = bench_name(preset.name, options.device, dtype, options.compiled)
    print(write_records(artifacts.metrics / f"{name}.json", records))


def _compare_decoders(options: argparse.Namespace, preset: Preset, artifacts: Artifacts) -> None:
    from omnidiff_lite.plan.bench import bench, bench_file, bench_report
    from omnidiff_lite.evaluation.records import write_records

    items = {1: -(-options.items // 3), 8: options.items}
    records = bench(preset, artifacts, options.device, tasks=options.tasks or ["t2i", "tts"], items=items,
                    repeats=options.repeats, dtype=options.dtype or "auto")
    print(bench_report(records))
    print(write_records(artifacts.metrics / bench_file(options.device), records))
