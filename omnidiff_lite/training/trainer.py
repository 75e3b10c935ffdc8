"""One training stage of the denoiser (section 3.3 of the paper): packed rows, masked, scored where masked.

Everything random follows from (seed, stage, step), so a run that was killed and resumed repeats the losses of an
uninterrupted one: to the last bit on a CPU, on a GPU as far as its kernels are deterministic. The speech encoder is
frozen: its frames come with the data. Its adapter trains.

A causal denoiser (`config.is_causal`) is the autoregressive twin: same data, rows and steps, but nothing is masked and
every answer token is a target. A stage may begin like that (`left_to_right`), as the paper's backbone did: the
diffusion model Dream-7B started as an autoregressive Qwen2.5.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import Preset, StageConfig, TrainingConfig, to_dict
from omnidiff_lite.data.packing import PackedStream, pack_all
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.samples import Given, as_samples
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.provenance import source_hash
from omnidiff_lite.training.batches import choose_scored, collate
from omnidiff_lite.training.checkpoint import Checkpoints, Optimizers
from omnidiff_lite.training.feed import feeding, save_position
from omnidiff_lite.training.launch import Expected, begin
from omnidiff_lite.training.log import StepLog, read_log
from omnidiff_lite.training.optimizers import make_optimizers
from omnidiff_lite.processes import gathered
from omnidiff_lite.training.step import AnswerLoss, Stepper, TrainingError

FIGURES = ["loss", "learning_rate", "gradient_norm", "tokens", "scored", "efficiency", "tokens_per_second",
           "data_seconds", "data_share", "seconds"]
HOW = ("compile", "recompute", "processes", "micro_rows", "checkpoint_every")  # may change when a run is resumed
# The code that decides what a step does.
SOURCES = ("adapters.py", "backbone.py", "diffusion/corruption.py", "diffusion/loss.py", "data/packing.py",
           "precision.py", "training/batches.py", "training/engine.py", "training/feed.py", "training/launch.py",
           "training/muon.py", "training/optimizers.py", "training/step.py", "training/trainer.py")
NOTES = ("transformers_version", "architectures", "dtype", "_name_or_path")  # added to a config when it is saved
VALIDATION = 4  # replaces the stage number when masks are drawn
Resume = Literal[True, False, "auto"]
Datasets = dict[str, Given]  # by task: lists of `EncodedSample`, or samples on disk (data/samples.py)


def stage_config(preset: Preset, stage: int) -> StageConfig:
    """The settings of stage 1, 2 or 3."""
    if stage not in (1, 2, 3):
        raise TrainingError(f"stage {stage}: the paper has stages 1, 2 and 3")
    return getattr(preset.training, f"stage{stage}")


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to the share `final` of the rate; a function of the step alone."""
    warmup = max(1, int(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    fall = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    return config.learning_rate * (config.final + (1 - config.final) * fall)


def train_stage(preset: Preset, stage: int, denoiser: Denoiser, datasets: Datasets, out_dir: str | Path, seed: int = 0,
                resume: Resume = True, progress: bool = True, stop_after: int | None = None,
                expected: Expected = Expected()) -> pd.DataFrame:
    """Train `denoiser` in place; returns one row per step, as in `out_dir/log.csv`. Leaves it in eval mode.

    `datasets`: encoded samples by task, at least those of the stage's mix. `resume`: True continues from the newest
    good checkpoint under `out_dir` and refuses another run's (other settings, data, weights or training code); "auto"
    starts afresh in that case; False always does. `stop_after`: end, with a checkpoint, after this many steps of the
    stage. Several processes (`accelerate launch`, `torchrun`) share the rows and, under FSDP2, the weights, which then
    stay sharded; `expected`: what these processes should be. Raises `TrainingError`, `PackingError`, `CheckpointError`.
    """
    config, plan = preset.training, stage_config(preset, stage)
    accelerator = begin(config, plan.rows, expected)
    twin = denoiser.config.is_causal
    stream = PackedStream(datasets, plan.mix, config.length, plan.rows, seed, **_packing(config, denoiser.config))
    checkpoints = Checkpoints(Path(out_dir) / "checkpoints",
                              fingerprint(preset, stage, denoiser, stream, accelerator.device))
    _same_everywhere(checkpoints.fingerprint)
    module, *optimizers = accelerator.prepare(AnswerLoss(denoiser, config.precision),
                                              *make_optimizers(denoiser, config.optimizer, plan.learning_rate,
                                                               config.weight_decay))
    bare = [optimizer.optimizer for optimizer in optimizers]
    start = _resume(checkpoints, denoiser, bare, resume, accelerator)
    last = plan.steps if stop_after is None else min(stop_after, plan.steps)
    own = range(accelerator.process_index, plan.rows, accelerator.num_processes)
    with _log(out_dir, stream, start, accelerator) as log, prepared(denoiser, config), \
            feeding(stream, own, start, last, out_dir) as feed, \
            tqdm(total=plan.steps, initial=start, desc=f"stage {stage}", unit="step", mininterval=5.0,
                 disable=not (progress and accelerator.is_main_process)) as bar:
        stepper = Stepper(accelerator, module, optimizers, feed, config, plan, (seed, stage),
                          log.seconds if log else 0.0)
        for step in range(start, last):
            denoiser.set_causal(twin or step < plan.left_to_right * plan.steps)
            figures = stepper.step(step, learning_rate(plan, step))
            if log:
                log.write(step, figures)
            bar.set_postfix_str("loss {loss:.3f}, {tokens_per_second:.0f} tokens/s, {data_share:.0%} waiting for data"
                                .format_map(figures), refresh=False)
            bar.update()
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == last:
                if log:
                    save_position(out_dir, step + 1, feed.position(step + 1))
                checkpoints.save(step + 1, denoiser, bare)
        stepper.engine.close()
    if accelerator.is_main_process:
        _data_table(stream, last).to_csv(Path(out_dir) / "data.csv", index=False)
    accelerator.wait_for_everyone()
    return read_log(Path(out_dir) / "log.csv")


def _data_table(stream: PackedStream, steps: int) -> pd.DataFrame:
    """The training data of the steps: task, samples, and how often each was seen."""
    return pd.DataFrame([{"task": task, "samples": len(stream.data[task]), "repeats": times}
                         for task, times in stream.repeats(steps).items()])


@torch.no_grad()
def validate(preset: Preset, denoiser: Denoiser, datasets: Datasets, seed: int = 0, rows: int = 8) -> pd.DataFrame:
    """Loss by task, with the same masks at every call: columns task, loss, scored (tokens), samples.

    `rows`: packed rows per forward pass. The denoiser is left in eval mode. Samples that are broken, or too long for a
    row, are left out, as in training.
    """
    module, device = AnswerLoss(denoiser.eval(), preset.training.precision), denoiser.device
    # The paper's masks, so that the losses of all runs are comparable.
    config = replace(preset.training, schedule="linear", suffix={}, time="sequence", gamma=TrainingConfig.gamma)
    records = []
    for task, given in datasets.items():
        samples = [s for s in as_samples(given).fetch(range(len(given))) if s and _fits(s, config)]
        packed = pack_all(samples, config.length, seed, **_packing(config, denoiser.config))
        scored = [choose_scored(row, config, denoiser.config, (seed, VALIDATION, n))
                  for n, row in enumerate(packed)]
        losses = torch.cat([module(collate(packed[i:i + rows], scored[i:i + rows], (task,), denoiser.config).to(device))
                            .cpu() for i in range(0, len(packed), rows)])
        records.append({"task": task, "loss": losses.mean().item(), "scored": len(losses), "samples": len(samples)})
    return pd.DataFrame(records)


def _fits(sample: EncodedSample, config: TrainingConfig) -> bool:
    return len(sample.ids) + config.max_tail_pads <= config.length


def _packing(config: TrainingConfig, denoiser: DenoiserConfig) -> dict[str, int]:
    return {"pad": denoiser.pad_token_id, "context_of_audio": denoiser.context_of_audio_token_id,
            "max_tail_pads": config.max_tail_pads}


def fingerprint(preset: Preset, stage: int, denoiser: Denoiser, stream: PackedStream, device: torch.device
                ) -> dict[str, Any]:
    """What identifies a run: code, settings, data, the dtype of its matrix products and the weights it starts from, as
    flat, plain JSON."""
    training = {key: value for key, value in to_dict(preset.training).items()
                if not isinstance(value, dict) and key not in HOW}
    plan = {key: value for key, value in to_dict(stage_config(preset, stage)).items() if key not in ("mix", "weights")}
    start = _digest(tensor for _, tensor in sorted(denoiser.state_dict().items()))
    products = str(matrix_dtype(preset.training.precision, device)).removeprefix("torch.")
    return ({"stage": stage, "seed": stream.seed, "start": start, "source": source_hash(*SOURCES), "products": products}
            | {f"training.{key}": value for key, value in training.items()}
            | {f"training.stage{stage}.{key}": value for key, value in plan.items()}
            | {f"training.suffix.{task}": share for task, share in preset.training.suffix.items()}
            | {f"mix.{task}": share for task, share in stream.shares.items()}
            | {f"weights.{task}": weight for task, weight in stage_config(preset, stage).weights.items()}
            | {f"data.{task}": f"{len(stream.data[task])} samples, {stream.data[task].fingerprint()}"
               for task in stream.tasks}
            | {f"denoiser.{key}": value for key, value in denoiser.config.to_dict().items() if key not in NOTES})


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _same_everywhere(run: dict[str, Any]) -> None:
    """Refuse processes with different data or weights: they would silently average unrelated gradients."""
    differ = sorted({key for other in gathered(run) for key in run if other.get(key) != run[key]})
    if differ:
        raise TrainingError(f"the processes do not train the same run: {', '.join(differ[:5])} differ among them; give "
                            "every machine the same files and settings")


def _resume(checkpoints: Checkpoints, denoiser: Denoiser, optimizers: Optimizers, resume: Resume,
            accelerator: Accelerator) -> int:
    """The step to start from."""
    if resume == "auto" and not checkpoints.same_run():
        warnings.warn(f"{checkpoints.directory} holds another run: starting afresh", stacklevel=3)
        resume = False
    if resume:
        return checkpoints.load(denoiser, optimizers)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoints.clear()
    accelerator.wait_for_everyone()
    return 0


@contextlib.contextmanager
def _log(out_dir: str | Path, stream: PackedStream, start: int, accelerator: Accelerator) -> Iterator[StepLog | None]:
    """The log, on the first process only."""
    log = (StepLog(out_dir, FIGURES + [f"loss_{task}" for task in stream.tasks], start)
           if accelerator.is_main_process else None)
    try:
        yield log
    finally:
        if log:
            log.close()


@contextlib.contextmanager
def prepared(denoiser: Denoiser, config: TrainingConfig) -> Iterator[None]:
    """In training mode, except for frozen parts; compiled for the fixed shape of training rows and recomputing
    activations, if so configured.

    Afterwards the denoiser is in eval mode, is causal or not as before, and runs as before, at any length.
    """
    denoiser.train()
    for part in denoiser.modules():
        if not any([parameter.requires_grad for parameter in part.parameters()] or [True]):
            part.eval()
    attention, causal = denoiser.config._attn_implementation, denoiser.config.is_causal
    compiled = config.compile and _compiler_found()
    if config.recompute:
        denoiser.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        denoiser.model.forward = torch.compile(denoiser.model.forward)
    if compiled and denoiser.device.type == "cpu":
        denoiser.set_attn_implementation("eager")  # the compiler fuses it: 0.8 of a pass with sdpa, in rows of 208
    try:
        yield
    finally:
        denoiser.set_attn_implementation(attention)
        denoiser.set_causal(causal)
        if compiled:
            del denoiser.model.forward
        if config.recompute:
            denoiser.gradient_checkpointing_disable()
        denoiser.eval()


def _compiler_found() -> bool:
    """Whether there is a C++ compiler; without one, torch.compile fails at the first step."""
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))
    if not found:
        warnings.warn("training.compile: no C++ compiler (g++ or clang++) on this machine; training goes on without, "
                      "and takes longer", stacklevel=4)
    return found
