"""A sharded state on disk: each process writes its own part, and any number of processes can read them back.

torch's distributed checkpointing, in safetensors: no pickle, and a part is an ordinary file of tensors whose metadata
says where in the whole tensor each belongs.

    step-00000040/model/shard-00001-model-00001-of-00001.safetensors       one per process
                  optimizer/shard-00001-model-00001-of-00001.safetensors   `<weight>.exp_avg` and so on
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict)
from torch.distributed.tensor import DTensor

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.training import zero
from omnidiff_lite.weights import CheckpointError

MODEL, OPTIMIZER = "model", "optimizer"
State = dict[str, Tensor]


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def write_shards(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """All processes call it; each writes what it holds. Raises `OSError` on those that cannot."""
    for name, state in ((MODEL, get_model_state_dict(model)), (OPTIMIZER, _flat(_moments(model, optimizers)))):
        try:
            dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(folder / name), save_distributed=True))
        except CheckpointException as error:  # not an Exception, and a page long
            own = error.failures.get(torch.distributed.get_rank())
            if own is not None:
                raise OSError(str(own[0])) from None
            return


def read_shards(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load what `write_shards` wrote, whatever the number of processes then and now, sharded or not."""
    state = get_model_state_dict(model)
    _read(folder / MODEL, state)
    set_model_state_dict(model, state)
    if zero.is_partitioned(optimizers):
        return zero.restore(model, optimizers, partial(_moments_in, folder / OPTIMIZER))
    kept = _moments(model, optimizers)
    moments = _flat(kept)
    _read(folder / OPTIMIZER, moments)
    for name, values in kept["state"].items():
        values |= {key: moments[f"{name}.{key}"].view(value.shape) for key, value in values.items()}
    set_optimizer_state_dict(model, list(optimizers), optim_state_dict=kept)


def denoiser_of(folder: str | Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """The denoiser in one checkpoint of a run, sharded or whole, with its sizes from the run's fingerprint.

    Raises `CheckpointError` for a folder that is not a checkpoint.
    """
    folder = Path(folder)
    try:
        saved = json.loads((folder / "state.json").read_text())["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no checkpoint of a run ({error}); give a folder such as "
                              "stage1/checkpoints/step-00000600") from None
    fields = {key.removeprefix("denoiser."): value for key, value in saved.items() if key.startswith("denoiser.")}
    denoiser = Denoiser(DenoiserConfig(**fields))
    _read(folder / MODEL if (folder / MODEL).is_dir() else folder, denoiser.state_dict())
    return denoiser.to(dtype)


def _read(folder: Path, state: State) -> None:
    """Fill the tensors of `state`, or the parts of them that this process holds."""
    if not folder.is_dir():
        raise OSError(f"{folder} is missing")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is what no_dist asks for
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


def _moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """`state` by weight and `param_groups`; an optimizer that has not stepped gets moments of 0."""
    return get_optimizer_state_dict(model, list(optimizers))


def _moments_in(folder: Path, name: str, parameter: nn.Parameter) -> State:
    """The moments of one weight, whole."""
    found = {f"{name}.step": torch.zeros(1)} | {f"{name}.{key}": torch.empty(parameter.shape) for key in zero.MOMENTS}
    _read(folder, found)
    return {key.removeprefix(f"{name}."): value for key, value in found.items()}


def _flat(moments: dict[str, Any]) -> State:
    """`<weight>.<moment>`; a single number (the step) becomes a vector of one, which can be sharded like any tensor."""
    return {f"{name}.{key}": value if value.ndim else value.view(1)
            for name, values in moments["state"].items() for key, value in values.items()}
