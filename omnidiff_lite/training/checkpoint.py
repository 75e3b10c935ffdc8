"""Checkpoints that survive a kill at any moment: complete or absent, checked by hash, safetensors and JSON only.

    checkpoints/step-00000040/model.safetensors      weights by name
                              optimizer.safetensors  `<weight>.exp_avg` and so on
                              state.json             step, fingerprint of the configuration, hash of each file

With sharded weights (FSDP2) each of the first two is a folder (`training.shards`). Either form can be resumed by any
number of processes, and so can what DeepSpeed keeps in parts (`training.zero`).
A checkpoint is written under a temporary name, flushed to disk, then renamed. Batches, masks and learning rate follow
from the step, so no sampler, scheduler or random generator state is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict)

from omnidiff_lite.processes import TogetherError, agreed, gathered, is_first, share
from omnidiff_lite.training import zero
from omnidiff_lite.training.shards import MODEL, OPTIMIZER, is_sharded, read_shards, write_shards
from omnidiff_lite.weights import CheckpointError

KEEP = 2
Optimizers = Sequence[torch.optim.Optimizer]
GATHERED = StateDictOptions(full_state_dict=True, cpu_offload=True)  # sharded (FSDP2) states made whole


class Checkpoints:
    """The checkpoints of one training run: `save` after a step, `load` the newest good one."""

    def __init__(self, directory: str | Path, fingerprint: dict[str, Any]) -> None:
        """`fingerprint`: flat, plain JSON; everything that tells two runs apart."""
        self.directory = Path(directory)
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def save(self, step: int, model: nn.Module, optimizers: Optimizers) -> None:
        """Write the state after `step` steps and keep the last two. All processes call it: the first writes, or, if
        weights are sharded, each writes its part.

        Raises `CheckpointError` on all of them if one cannot write (a full disk, say); the half-written checkpoint is
        then removed, and the previous one stays.
        """
        final = self.directory / f"step-{step:08d}"
        partial = final.with_name(final.name + ".partial")
        try:
            with agreed():
                self._begin(partial)
            with agreed():
                self._write(partial, model, optimizers)
            hashes = _hashes(partial)
            with agreed():
                self._finish(step, partial, final, hashes)
        except TogetherError as error:
            if is_first():
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"step {step} could not be saved under {self.directory}: {error}. Make room or mend "
                                  "it; the same command goes on from the checkpoint before") from error

    def _begin(self, partial: Path) -> None:
        if is_first():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _write(self, partial: Path, model: nn.Module, optimizers: Optimizers) -> None:
        if is_sharded(model):
            return write_shards(partial, model, optimizers)
        state, moments = tensors(model, optimizers) if is_first() or zero.is_partitioned(optimizers) else ({}, {})
        if is_first():
            save_file(state, partial / "model.safetensors")
            save_file(moments, partial / "optimizer.safetensors")

    def _finish(self, step: int, partial: Path, final: Path, hashes: dict[str, str]) -> None:
        if is_first():
            (partial / "state.json").write_text(json.dumps(
                {"step": step, "fingerprint": self.fingerprint, "files": hashes}, indent=2))
            _flush(partial / "state.json")
            _flush(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _flush(self.directory)
            self._forget()

    def load(self, model: nn.Module, optimizers: Optimizers) -> int:
        """Load the newest good checkpoint in place; returns its step, or 0 if there is none.

        It may come from any number of processes, sharded or not. A damaged one is skipped with a warning, by all
        processes alike. Raises `CheckpointError` if all are damaged, or if the run had another configuration; the
        message names what differs.
        """
        found = self._found()
        for path in found:
            try:
                with agreed():
                    state = _checked(path)
            except TogetherError as error:
                if is_first():
                    warnings.warn(f"{path} is damaged ({error}); using an earlier checkpoint", stacklevel=2)
                continue
            self._same_run(state["fingerprint"], path)
            if (path / MODEL).is_dir():
                read_shards(path, model, optimizers)
            else:
                restore(model, optimizers, *(load_file(path / f"{name}.safetensors") for name in (MODEL, OPTIMIZER)))
            return state["step"]
        if found:
            raise CheckpointError(f"{self.directory}: all of its {len(found)} checkpoints are damaged; delete the "
                                  "folder to start afresh")
        return 0

    def same_run(self) -> bool:
        """Whether there is nothing here, or the newest readable checkpoint is from this run."""
        for path in self._found():
            with contextlib.suppress(OSError, ValueError, KeyError):
                return json.loads((path / "state.json").read_text())["fingerprint"] == self.fingerprint
        return not self._found()

    def clear(self) -> None:
        """Delete the run's checkpoints."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted(self.directory.glob("step-*[0-9]"), reverse=True)

    def _forget(self) -> None:
        for path in self._found()[KEEP:]:
            shutil.rmtree(path)
        for leftover in self.directory.glob("*.partial"):
            shutil.rmtree(leftover)

    def _same_run(self, saved: dict[str, Any], path: Path) -> None:
        keys = sorted(k for k in saved.keys() | self.fingerprint.keys() if saved.get(k) != self.fingerprint.get(k))
        if keys:
            differ = "; ".join(f"{k} was {saved.get(k)!r}, is {self.fingerprint.get(k)!r}" for k in keys[:5])
            raise CheckpointError(f"{path} belongs to a run of another configuration: {differ}"
                                  f"{f'; and {len(keys) - 5} more' if len(keys) > 5 else ''}. Restore these, give "
                                  "another output folder, or start afresh with resume=False")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, on the CPU; gathered if they are sharded.

    With several processes, all must call it, and only the first gets them.
    """
    return _plain(get_model_state_dict(model, options=GATHERED))


def tensors(model: nn.Module, optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`weights`, and likewise the moments of all optimizers as `<weight>.<moment>`; with several processes, only the
    first gets tensors that others hold parts of."""
    if zero.is_partitioned(optimizers):
        return weights(model) if is_first() else {}, zero.moments(model, optimizers)
    moments = get_optimizer_state_dict(model, list(optimizers), options=GATHERED).get("state", {})
    return (weights(model),
            _plain({f"{name}.{key}": value for name, kept in moments.items() for key, value in kept.items()}))


def restore(model: nn.Module, optimizers: Optimizers, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Put back what `tensors` returned; optimizers keep their settings.

    Raises `CheckpointError` if names differ.
    """
    state: dict[str, dict[str, Tensor]] = {name: {} for name, _ in model.named_parameters()}
    kept = {tuple(name.rsplit(".", 1)): value for name, value in moments.items()}
    wrong = {name for name, _ in kept} ^ state.keys()
    if wrong:
        raise CheckpointError(f"the optimizer's moments do not fit the model: {len(wrong)} names on one side only, "
                              f"{', '.join(sorted(wrong)[:3])}")
    for (name, key), value in kept.items():
        state[name][key] = value
    set_model_state_dict(model, weights, options=GATHERED)
    if zero.is_partitioned(optimizers):
        return zero.restore(model, optimizers, lambda name, _: state[name])
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group | {"params": [names[parameter] for parameter in group["params"]]}
              for optimizer in optimizers for group in optimizer.param_groups]
    set_optimizer_state_dict(model, list(optimizers), options=GATHERED,
                             optim_state_dict={"state": state, "param_groups": groups})


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _checked(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files are as they were written; each process checks its share of them."""
    state = json.loads((path / "state.json").read_text())
    for name, digest in share(sorted(state["files"].items())):
        if _hash(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    return state


def _hashes(folder: Path) -> dict[str, str]:
    """Hashes of all files, by path in the folder, once they are on disk; each process handles its share."""
    files = share(sorted(path for path in folder.rglob("*") if path.is_file()))
    own = {path.relative_to(folder).as_posix(): _flushed_hash(path) for path in files}
    return {name: digest for part in gathered(own) for name, digest in part.items()}


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flushed_hash(path: Path) -> str:
    _flush(path)
    return _hash(path)


def _flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
