"""One cell of a training study: the variant's stages trained with one seed, then scored.

A stage trains in a folder named by all that decides it: configuration, seed, tokenizers and the weights that it starts
from. So variants that differ only in a later stage share the earlier ones, a killed run resumes from its checkpoint,
and encoded data come from the run's own cache.

Metrics: `loss` and `loss_<task>` at the paper's random masking levels; `masked_loss` and `masked_loss_<task>` of fully
masked answers, where decoding starts; `<task>.<metric>` of decoded answers, as in a decoding study.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from omnidiff_lite.ablation.measures import check_metric, measure
from omnidiff_lite.ablation.study import Budget, Study, Variant
from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import IGNORE, ChatEncoder
from omnidiff_lite.config import ConfigError, Preset, load_preset, to_dict
from omnidiff_lite.data import encode
from omnidiff_lite.data.packing import pack_all
from omnidiff_lite.evaluation.judges import load_judges
from omnidiff_lite.pipeline import AnswerLengths, OmniDiffusion, settings_of
from omnidiff_lite.provenance import digest, source_hash, tree_hash
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.training.batches import collate
from omnidiff_lite.training.log import read_log
from omnidiff_lite.training.stages import run_stage, world_data
from omnidiff_lite.training.step import AnswerLoss
from omnidiff_lite.training.trainer import HOW, SOURCES, Datasets, validate
from omnidiff_lite.weights import write_json

LOSSES = ("loss", "masked_loss")
DECIDES = ("world", "text_tokenizer", "image_tokenizer", "speech_encoder", "speech_tokenizer", "denoiser")
DONE = "done.json"
MADE_BY = (*SOURCES, *encode.SOURCES)  # the code behind a stage and its data


def preset_of(variant: Variant, preset: str | Path, overrides: dict[str, Any]) -> Preset:
    """The preset with the study's budget, the user's overrides and the variant's changes; later ones win.

    Raises `ConfigError`.
    """
    budget, last = variant.budget, overrides | variant.settings
    changes = {f"training.stage{stage}.{key}": value for stage in budget.stages for key in ("steps", "rows")
               if (value := getattr(budget, key))}
    changes |= {"evaluation.items": budget.items} if budget.items else {}
    mixed = load_preset(preset, changes | last)
    tasks = {task for stage in budget.stages for task in _mix(mixed, stage)}
    changes |= {f"training.samples.{task}": budget.samples for task in tasks if budget.samples}
    return load_preset(preset, changes | last)


def check(study: Study, variant: Variant, preset: Preset) -> None:
    """Raises `ConfigError` for a metric that does not exist, or of a task that no stage trains."""
    trained = {task for stage in variant.budget.stages for task in _mix(preset, stage)}
    for metric in study.metrics:
        task, dot, column = metric.partition(".")
        kind = next((kind for kind in LOSSES if metric == kind or metric.startswith(f"{kind}_")), None)
        if dot:
            check_metric(task, column)
        elif kind is None:
            raise ConfigError(f"metric {metric!r}: expected loss, masked_loss, one of them with _<task> behind it, or "
                              "<task>.<metric> of decoded answers")
        named = task if dot else metric.removeprefix(kind).removeprefix("_")
        if named and named not in trained:
            raise ConfigError(f"metric {metric!r}: no stage trains {named!r}; in the mix: {', '.join(sorted(trained))}")
        if kind == "masked_loss" and variant.budget.causal:
            raise ConfigError(f"metric {metric!r}: a causal denoiser knows no masks")


@dataclass(frozen=True)
class Trainer:
    """What the cells of a study share."""

    artifacts: Artifacts
    tokenizers: Tokenizers
    workers: int = 2
    progress: bool = True

    @classmethod
    def of(cls, artifacts: Artifacts, progress: bool = True) -> Trainer:
        """A trainer with the run's own tokenizers, or the checkpoint's. Raises `MissingArtifact`, also for a run
        without a checkpoint, by which a study's numbers are identified (`standing`)."""
        artifacts.require(artifacts.checkpoint, "02_training_the_tokenizers and on")
        return cls(artifacts, Tokenizers.from_pretrained(artifacts.finished_tokenizers()), progress=progress)

    def train(self, budget: Budget, preset: Preset, seed: int) -> list[Path]:
        """Train those of a cell's stages that are not trained yet; returns all their folders, in order."""
        init: Denoiser | Path | str | None = None
        key, folders = self._origin(budget), []
        for stage in budget.stages:
            key = stage_key(preset, stage, seed, budget.causal, self.fingerprint, key)
            folder = self.artifacts.work / "ablation" / "stages" / key
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):  # another study, running alongside, may share the stage
                if not _finished(folder):
                    init = init or self._start(budget, stage)
                    run_stage(preset, stage, self.tokenizers, init, folder, self.artifacts.cache, seed,
                              workers=self.workers, resume="auto", progress=self.progress, causal=budget.causal)
                    _finish(folder)
            init = folder / "denoiser"
            folders.append(folder)
        return folders

    def score(self, study: Study, budget: Budget, preset: Preset, seed: int, folder: Path) -> dict[str, float]:
        """Every metric of the denoiser that a cell's last stage left in `folder`."""
        denoiser = Denoiser.from_pretrained(folder / "denoiser", dtype=torch.float32).to(self.tokenizers.device)
        tasks = list(dict.fromkeys(task for stage in budget.stages for task in _mix(preset, stage)))
        held_out = self._data(preset, tasks, "validation", seed)
        found: dict[str, float] = {}
        if any(metric.startswith("loss") for metric in study.metrics):
            table = validate(preset, denoiser, held_out)
            found |= _named("loss", dict(zip(table["task"], table["loss"])))
        if any(metric.startswith("masked_loss") for metric in study.metrics):
            found |= _named("masked_loss", masked_losses(preset, denoiser, held_out))
        decoded: dict[str, list[str]] = {}
        for task, dot, column in (metric.partition(".") for metric in study.metrics):
            if dot:
                decoded.setdefault(task, []).append(column)
        if decoded:
            found |= self._decoded(decoded, denoiser, preset, tasks, seed)
        return {metric: found[metric] for metric in study.metrics}

    def _origin(self, budget: Budget) -> str:
        """What the first stage starts from: nothing, or the checkpoint's denoiser as it is now."""
        if budget.start == "checkpoint":
            return f"checkpoint {digest(self.artifacts.checkpoint / 'denoiser')}"
        return budget.start

    def _start(self, budget: Budget, stage: int) -> Denoiser | str | None:
        if budget.start == "checkpoint":
            return Denoiser.from_pretrained(self.artifacts.checkpoint / "denoiser", dtype=torch.float32)
        return None if stage == 1 else "scratch"

    def _decoded(self, metrics: dict[str, list[str]], denoiser: Denoiser, preset: Preset, tasks: list[str],
                 seed: int) -> dict[str, float]:
        chat = ChatEncoder(self.tokenizers.vocabulary, self.tokenizers.text)
        lengths = AnswerLengths.fit(self._data(preset, tasks, "train", seed), chat)
        model = OmniDiffusion(denoiser, self.tokenizers, settings_of(preset, lengths=lengths))
        judges = load_judges(preset, self.artifacts.require(self.artifacts.judges, "02_training_the_tokenizers"))
        found = {}
        for task, columns in metrics.items():
            sums = measure(task, columns, model, judges.to(model.device), preset, seed, preset.evaluation.items, None)
            found |= {f"{task}.{column}": float(np.divide(*rows.sum(0))) for column, rows in sums.items()}
        return found

    def _data(self, preset: Preset, tasks: list[str], split: str, seed: int) -> Datasets:
        return world_data(preset, self.tokenizers, tasks, split, seed, self.artifacts.cache, self.workers)

    @cached_property
    def fingerprint(self) -> str:
        return self.tokenizers.fingerprint()


@torch.no_grad()
def masked_losses(preset: Preset, denoiser: Denoiser, datasets: Datasets, rows: int = 8) -> dict[str, float]:
    """Mean loss by task on fully masked answers, in nats per token: the first step of decoding.

    Without tail pads, so that a denoiser's opinion of pads does not count. `rows`: packed rows per forward pass.
    """
    module, config = AnswerLoss(denoiser.eval(), preset.training.precision), denoiser.config
    found = {}
    for task, samples in datasets.items():
        packed = pack_all(samples, preset.training.length, 0, pad=config.pad_token_id, max_tail_pads=0,
                          context_of_audio=config.context_of_audio_token_id)
        parts = (packed[i:i + rows] for i in range(0, len(packed), rows))
        losses = [module(collate(part, [torch.from_numpy(row.labels) != IGNORE for row in part], (task,), config)
                         .to(denoiser.device)).cpu() for part in parts]
        found[task] = torch.cat(losses).mean().item()
    return found


def stage_key(preset: Preset, stage: int, seed: int, causal: bool, tokenizers: str, before: str) -> str:
    """Name of the folder in which a stage trains: a hash of what decides its outcome, `before` being that of the stage
    it starts from. Settings of other stages do not count, nor do those that a resumed run may change."""
    tree = to_dict(preset)
    training = {key: value for key, value in tree["training"].items()
                if not key.startswith(("stage", "samples")) and key not in HOW}
    mix = tree["training"][f"stage{stage}"]["mix"]
    training |= {"stage": tree["training"][f"stage{stage}"],
                 "samples": {task: tree["training"]["samples"].get(task) for task in mix}}
    return tree_hash({"number": stage, "seed": seed, "causal": causal, "tokenizers": tokenizers, "before": before,
                      "training": training, **{key: tree[key] for key in DECIDES}})


def training_seconds(folder: Path) -> float:
    """Seconds that a stage's training took, over all of its runs."""
    return float(read_log(folder / "log.csv")["seconds"].iloc[-1])


def _finished(folder: Path) -> bool:
    """Whether a stage was trained to its end, by the present code."""
    note = folder / DONE
    return note.exists() and json.loads(note.read_text())["source"] == source_hash(*MADE_BY)


def _finish(folder: Path) -> None:
    """Mark the stage as done; its optimizer states are no longer needed."""
    write_json(folder / DONE, {"source": source_hash(*MADE_BY)})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _mix(preset: Preset, stage: int) -> list[str]:
    return [task for task, share in getattr(preset.training, f"stage{stage}").mix.items() if share > 0]


def _named(kind: str, by_task: dict[str, float]) -> dict[str, float]:
    """Each task's loss, and their mean, with equal weight per task."""
    return {kind: float(np.mean(list(by_task.values()))), **{f"{kind}_{task}": loss for task, loss in by_task.items()}}
