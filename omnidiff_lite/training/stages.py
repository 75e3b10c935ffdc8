"""The three stages of section 3.3: one call runs one stage, on the tasks that the preset mixes in it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from accelerate import PartialState

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import Preset
from omnidiff_lite.data.encode import EncodedSample, build_dataset
from omnidiff_lite.training.batches import derive_seed
from omnidiff_lite.training.checkpoint import weights
from omnidiff_lite.training.launch import Expected, begin
from omnidiff_lite.training.log import read_log
from omnidiff_lite.processes import together, usable
from omnidiff_lite.training.step import TrainingError
from omnidiff_lite.training.trainer import Datasets, Resume, stage_config, train_stage, validate

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers.bundle import Tokenizers


SCRATCH = "scratch"  # in place of a denoiser to start from; a folder of that name is Path("scratch")


def run_stage(preset: Preset, stage: int, tokenizers: Tokenizers, init: Denoiser | str | Path | None,
              out_dir: str | Path, cache_dir: str | Path, seed: int = 0, *, datasets: Datasets | None = None,
              held_out: Datasets | None = None, workers: int = 0, resume: Resume = True, progress: bool = True,
              stop_after: int | None = None, causal: bool = False, expected: Expected = Expected()
              ) -> tuple[Denoiser, pd.DataFrame]:
    """Build the data of a stage, train, validate, and save `out_dir/denoiser`; returns the denoiser and its log.

    `init`: what training starts from (changed in place if it is a Denoiser and one process trains). None draws fresh
    weights, allowed only in stage 1; "scratch" draws them at any stage, to train a stage without those before it, or
    all tasks at once. `causal`: the autoregressive twin, which sees only earlier tokens; without it, a causal `init`
    continues bidirectionally. On a CPU, `training.processes` processes share each step's rows.
    `datasets`: training samples by task in place of the embedded world's, and `held_out` those to validate on (none: no
    validation). Under `out_dir`: denoiser/, log.csv, data.csv, validation.csv, tensorboard/, checkpoints/. The rest is
    as in `train_stage`. Under FSDP2 the denoiser is returned sharded; the saved one is whole.
    Raises `TrainingError` for a missing `init`, an `init` or data that do not fit the preset's switches, or a task
    without a number of samples.
    """
    mix, processes = stage_config(preset, stage).mix, usable(preset.training.processes)
    if processes == 1:
        begin(preset.training, stage_config(preset, stage).rows, expected)  # before hours of work on data
    denoiser = _start(preset, stage, tokenizers, init, seed, causal)
    again = partial(run_stage, preset, stage, tokenizers, init, out_dir, cache_dir, seed, datasets=datasets,
                    held_out=held_out, resume=resume, progress=progress, stop_after=stop_after, causal=causal,
                    expected=expected)
    if datasets is None:
        datasets, held_out = (world_data(preset, tokenizers, mix, split, seed, cache_dir, workers, progress)
                               for split in ("train", "validation"))
    _same_hearing(preset, datasets)
    if processes > 1:  # each reads the world's data from the cache, where it is by now
        del datasets, held_out
        together(processes, again)
        return Denoiser.from_pretrained(Path(out_dir) / "denoiser"), read_log(Path(out_dir) / "log.csv")
    log = train_stage(preset, stage, denoiser, datasets, out_dir, seed, resume, progress, stop_after, expected)
    _save(denoiser, Path(out_dir))
    if held_out:
        validation = validate(preset, denoiser, held_out)
        if PartialState().is_main_process:
            validation.to_csv(Path(out_dir) / "validation.csv", index=False)
    PartialState().wait_for_everyone()
    return denoiser, log


def _save(denoiser: Denoiser, out_dir: Path) -> None:
    """Save a stage's result from the first process; all must call it, as sharded weights are gathered from all."""
    processes, state = PartialState(), weights(denoiser)
    if processes.is_main_process:
        denoiser.save_pretrained(out_dir / "denoiser", state_dict=state)
    processes.wait_for_everyone()


def new_denoiser(preset: Preset, tokenizers: Tokenizers, seed: int = 0, **fields: object) -> Denoiser:
    """A denoiser of the preset's size with fresh weights; `fields` go into its configuration (`is_causal=True`: the
    autoregressive twin)."""
    torch.manual_seed(derive_seed(seed))
    return Denoiser(DenoiserConfig.from_size(preset.denoiser, tokenizers.vocabulary,
                                             speech_dim=tokenizers.speech_encoder.config.dim, **fields))


def _start(preset: Preset, stage: int, tokenizers: Tokenizers, init: Denoiser | str | Path | None, seed: int,
           causal: bool) -> Denoiser:
    if init is None or init == SCRATCH:
        if stage > 1 and init is None:
            raise TrainingError(f"stage {stage} starts from the denoiser of stage {stage - 1}: give it, or the folder "
                                f"stage{stage - 1}/denoiser where run_stage saved it, as init; or {SCRATCH!r} for "
                                "fresh weights")
        return new_denoiser(preset, tokenizers, seed, is_causal=causal)
    denoiser = init if isinstance(init, Denoiser) else Denoiser.from_pretrained(init)
    if causal and not denoiser.config.is_causal:
        raise TrainingError(f"stage {stage} of the autoregressive twin starts from a causal denoiser; this one sees "
                            "both ways")
    denoiser.set_causal(causal)
    if denoiser.config.vocab_size != tokenizers.vocabulary.size:
        raise TrainingError(f"the denoiser has {denoiser.config.vocab_size} ids, the tokenizers "
                            f"{tokenizers.vocabulary.size}: they are not of one system; use those it was trained with")
    return _as_preset(denoiser, DenoiserConfig.from_size(preset.denoiser, tokenizers.vocabulary))


def _as_preset(denoiser: Denoiser, wanted: DenoiserConfig) -> Denoiser:
    """The denoiser itself, if its speech input, step embedding and heads match the preset's."""
    for name in ("speech_input", "step_embedding", "head_starts"):
        own, other = getattr(denoiser.config, name), getattr(wanted, name)
        if own != other:
            raise TrainingError(f"the denoiser to start from has {name} {own!r}, the preset asks for {other!r}: train "
                                f"both with one setting, or start from {SCRATCH!r}")
    return denoiser


def _same_hearing(preset: Preset, datasets: Datasets) -> None:
    """Refuse data that was encoded for a different speech input."""
    held = {task: samples if isinstance(samples, list) else samples.fetch([0]) for task, samples in datasets.items()}
    framed = [task for task, samples in held.items() if any(sample and len(sample.frames) for sample in samples)]
    if framed and preset.denoiser.speech_input == "discrete":
        raise TrainingError(f"the samples of {', '.join(framed)} hold speech frames, but denoiser.speech_input is "
                            "'discrete': encode them again with this setting")


def world_data(preset: Preset, tokenizers: Tokenizers, tasks: Iterable[str], split: str, seed: int,
               cache_dir: str | Path, workers: int = 0, progress: bool = False) -> dict[str, list[EncodedSample]]:
    """Encoded samples of the embedded world by task: `training.samples` of each for training, else `evaluation.items`.

    Raises `TrainingError` for a task without a number of samples.
    """
    counts = {task: preset.training.samples.get(task, 0) if split == "train" else preset.evaluation.items
              for task in tasks}
    for task, count in counts.items():
        if count < 1:
            raise TrainingError(f"task {task!r} is in the mix but training.samples.{task} gives no number of samples")
    return {task: build_dataset(preset, tokenizers, task, split, count, seed, cache_dir, workers, progress)
            for task, count in counts.items()}
