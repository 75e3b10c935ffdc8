"""Commands that say what a size costs: planned, and timed."""

from __future__ import annotations

import argparse

from omnidiff_lite.cli_registry import arguments, command, load, overrides, preset_arguments


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

    plan = make_plan(load(options), options.gpus, options.gpu_memory, options.mfu, options.gpu_tflops)
    print(plan.report(options.assumptions))


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default cpu)")
    parser.add_argument("--dtype", default="bfloat16", help="of the denoiser: bfloat16, float16 or float32")
    parser.add_argument("--tasks", nargs="+", choices=("t2i", "s2i", "tts"), default=["t2i", "s2i", "tts"])
    parser.add_argument("--repeats", type=int, default=3, help="of each timing (default 3)")
    parser.add_argument("--compiled", action="store_true", help="torch.compile of the denoiser")


@command("bench", "Time pictures and speech at a preset's size, or at a size between ('middle'), with random weights.",
         "omnidiff bench --preset full --device cuda --tasks t2i tts")
@arguments(_bench_arguments)
def _bench(options: argparse.Namespace) -> None:
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.evaluation.records import write_records
    from omnidiff_lite.plan.timing import bench, bench_name, beside_paper, timing_size

    preset, how = timing_size(options.preset, overrides(options))
    records = bench(preset, options.device, options.dtype, tasks=options.tasks, repeats=options.repeats,
                    compiled=options.compiled, **how)
    name = bench_name(preset.name, options.device, options.dtype, options.compiled)
    print(beside_paper(records).round(4).to_string())
    print(write_records(Artifacts.of(preset.name).metrics / f"{name}.json", records))
