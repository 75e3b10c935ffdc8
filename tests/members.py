"""What each of two processes does in the tests of distributed training; started by `processes.together`."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import toys
import torch
from accelerate.state import AcceleratorState

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.data import media
from omnidiff_lite.data.broken import BrokenLog
from omnidiff_lite.data.errors import GoneError
from omnidiff_lite.data.raw import Encoder, raw_samples
from omnidiff_lite.data.shards import read_shards
from omnidiff_lite.training import trainer
from omnidiff_lite.training.launch import Expected
from omnidiff_lite.training.step import AnswerLoss, Stepper

STEPS = 50
KINDS = {"ddp": {"ACCELERATE_USE_FSDP": "false"},
         "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "true"},
         "zero2": {"ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"}}

DEEPSPEED = {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "true"}  # if it is installed


def preset(**settings):
    """Fifty steps in float32, so that only the order of sums differs; gradients are clipped in most of them."""
    return toys.preset(**{"training__precision": "fp32", "training__stage1__steps": STEPS, "training__clip": 0.5,
                          "training__checkpoint_every": 10, "training__stage1__learning_rate": 3e-3} | settings)


def train(out: Path, *, settings: dict = {}, stop: int | None = None, expected: Expected = Expected(), data=None,
          **options):
    return trainer.train_stage(preset(**settings), 1, toys.denoiser(), data or toys.datasets(), out, progress=False,
                               stop_after=stop, expected=expected, **options)


def as_kind(kind: str) -> None:
    """As another launcher would have begun: accelerate keeps what it was told first."""
    os.environ.update(DEEPSPEED if kind == "deepspeed" else KINDS[kind])
    AcceleratorState._reset_state()


def many(out: Path) -> None:
    """Every kind: a straight run, one with a stop between, one that goes on from one process; and how else to step."""
    for kind in reversed(KINDS):  # ddp is the last
        as_kind(kind)
        device = Expected(2, kind, "cpu")
        train(out / kind / "straight", expected=device)
        for stop in (20, None):
            train(out / kind / "parts", stop=stop)
        train(out / kind / "from one")
        train(out / kind / "to one", stop=20)
    for stop in (5, 10):
        train(out / "otherwise" / "muon, ddp", settings=OTHERWISE["muon"], stop=stop)
    as_kind("fsdp2")
    for name, settings in OTHERWISE.items():
        train(out / "otherwise" / name, settings=settings, stop=10)


def by_deepspeed(out: Path) -> None:
    """As `many`, and from a checkpoint in shards."""
    as_kind("deepspeed")
    train(out / "straight", expected=Expected(2, "deepspeed", "cpu"))
    for stop in (20, None):
        train(out / "parts", stop=stop)
    for begun in ("from one", "from shards"):
        train(out / begun)
    train(out / "to one", stop=20)
    for name in ("micro", "bf16"):
        train(out / "otherwise" / name, settings=OTHERWISE[name], stop=10)


def sharded(out: Path) -> None:
    """Twenty steps under FSDP2."""
    as_kind("fsdp2")
    train(out, stop=20)


OTHERWISE = {"micro": {"training__micro_rows": 1, "training__recompute": True}, "muon": {"training__optimizer": "muon"},
             "bf16": {"training__precision": "bf16"}}


# --- failure ----------------------------------------------------------------------------------------------------------

def failing(out: Path, kind: str, failures: dict[str, Callable[[int], None]]) -> None:
    """At step 15 something happens to the second process; each notes what it was told, and then goes on."""
    as_kind(kind)
    real = Stepper.step
    for name, happens in failures.items():
        def step(self, number, rate, happens=happens):
            if number == 15:
                happens(self.accelerator.process_index)
            return real(self, number, rate)
        Stepper.step = step
        try:
            train(out / name)
        except Exception as error:
            (out / f"{name} told {os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
        Stepper.step, AnswerLoss.forward = real, forward
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        train(out / name)


forward = AnswerLoss.forward


def no_number(rank: int) -> None:
    """The loss of one of the rows is no number."""
    if rank == 1:
        AnswerLoss.forward = lambda self, batch: forward(self, batch) * float("nan")


def full_disk(rank: int, which: int) -> None:
    """The process `which` can write no file of more than 30 kB: enough for the log, too little for a checkpoint."""
    if rank == which:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))


def killed(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def from_shards(out: Path, shards: Path, lost: Path | None = None) -> None:
    """Both train from shards, of which `lost` vanishes at step 15; who misses it first notes what it was told."""
    as_kind("ddp")
    real = Stepper.step

    def step(self, number, rate):
        if lost and number == 15:
            lost.unlink(missing_ok=True)
        return real(self, number, rate)

    Stepper.step = step
    try:
        train(out, data=read_shards([shards]))
    except GoneError as error:
        (out / f"told {os.environ['RANK']}.txt").write_text(str(error))
        raise


def from_recordings(out: Path, rows: Path, kill: bool = False) -> None:
    """Both train from recordings in files, decoded by two workers each; at step 15 one of the second process's dies."""
    as_kind("ddp")
    real, parts = Stepper.step, toys.ToyParts()

    def step(self, number, rate):
        if kill and number == 15 and self.accelerator.process_index == 1:
            media._pool(2)[0].submit(signal.raise_signal, signal.SIGKILL)
        return real(self, number, rate)

    Stepper.step = step
    size = preset(training__stage1__mix={"asr": 1.0}, training__length=96, training__stage1__steps=30)
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig.from_size(toys.SIZE, parts.vocabulary, speech_dim=toys.SPEECH_DIM))
    trainer.train_stage(size, 1, denoiser, raw_samples([rows], Encoder(parts, (32, 16), workers=2), BrokenLog()), out,
                        progress=False)


FAILURES = {"ddp": {"no number": no_number, "full disk": partial(full_disk, which=0)},
            "fsdp2": {"no number": no_number, "full disk": partial(full_disk, which=1)}}


# --- evaluation -------------------------------------------------------------------------------------------------------

def scores(out: Path, items: int = 5) -> list[dict]:
    """Records of two tasks by the shipped smoke system in float32; five items do not divide among two processes."""
    from omnidiff_lite.artifacts import Artifacts
    from omnidiff_lite.config import load_preset
    from omnidiff_lite.evaluation.records import write_records
    from omnidiff_lite.evaluation.suite import evaluate_task, finished_system
    from omnidiff_lite.training.launch import join
    from omnidiff_lite.processes import is_first
    from omnidiff_lite.world.dataset import samples

    join()
    preset = load_preset("smoke", {"evaluation.batch": 2, "decoding.tts.steps": 4, "decoding.captioning.steps": 4})
    model, judges = finished_system(preset, Artifacts.of("smoke"))
    model.denoiser.float()
    records = [record for task in ("captioning", "tts")
               for record in evaluate_task(task, model, judges, samples(task, "test", items, 0, preset.world), preset)]
    if is_first():
        write_records(out / "records.json", records)
    return records


def refusing(out: Path) -> None:
    """Of five items each process takes its own; the second one's last has no answer."""
    from omnidiff_lite.training.launch import join
    from omnidiff_lite.processes import over_processes

    def double(numbers: range) -> list[int]:
        if 4 in numbers:
            raise ValueError("no answer to 4")
        return [2 * n for n in numbers]

    join()
    assert over_processes(double, range(4)) == [0, 2, 4, 6] and over_processes(double, range(1)) == [0]
    over_processes(double, range(5))
