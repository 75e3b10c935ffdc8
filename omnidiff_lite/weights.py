"""Weights on disk: safetensors (one file or shards with an index), released .pt/.bin files, strict loading."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Iterable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnidiff_lite.config import from_dict, to_dict

FILES = ("model.safetensors", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors",
         "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt")


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message lists the names and the mend."""


def read_weights(directory: str | Path, names: Iterable[str] = FILES,
                 prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint directory (or of one file) whose names begin with `prefix`.

    Shards and safetensors entries without it are not read. Pickled files are read with `weights_only=True`.
    """
    directory = Path(directory)
    if directory.is_file():
        return _read_file(directory, prefix)
    for name in names:
        if (directory / f"{name}.index.json").exists():
            shards = json.loads((directory / f"{name}.index.json").read_text())["weight_map"]
            state: dict[str, Tensor] = {}
            for shard in sorted({file for name, file in shards.items() if name.startswith(prefix)}):
                state |= _read_file(directory / shard, prefix)
            return state
        if (directory / name).exists():
            return _read_file(directory / name, prefix)
    raise CheckpointError(f"{directory}: no weights found; expected one of {', '.join(names)}")


def _read_file(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: named by the index but missing; fetch it again") from None
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error}); "
                              "it may be half-written, fetch or write it again") from None


def strict_load(module: nn.Module, state: dict[str, Tensor], where: str | Path = "checkpoint",
                derivable: Callable[[str], bool] = lambda name: False) -> None:
    """Load `state` into `module`; missing, unexpected or misshapen names raise `CheckpointError`.

    `derivable(name)`: tensors that may be absent on either side (buffers computed from the configuration).
    """
    own = module.state_dict()
    missing = [n for n in own if n not in state and not derivable(n)]
    unexpected = [n for n in state if n not in own and not derivable(n)]
    misshapen = [f"{n} (file {tuple(state[n].shape)}, model {tuple(own[n].shape)})"
                 for n in own if n in state and state[n].shape != own[n].shape]
    if missing or unexpected or misshapen:
        raise CheckpointError(f"{where} does not fit {type(module).__name__}: " + "; ".join(
            f"{kind} {len(names)}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)) if names))
    module.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)


def write_json(path: Path, value: Any) -> None:
    """Atomic: a reader sees the old file or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def save_part(module: nn.Module, config: Any, directory: str | Path, dtype: torch.dtype | None = None) -> None:
    """`config.json` and `model.safetensors` of one part, each written atomically, the weights first."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {n: (t.to(dtype) if dtype and t.is_floating_point() else t).contiguous().clone()
             for n, t in module.state_dict().items()}
    partial = directory / "model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    os.replace(partial, directory / "model.safetensors")
    write_json(directory / "config.json", {"part": type(module).__name__, **to_dict(config)})


def read_part_config(config_class: type, directory: str | Path) -> Any:
    """The kit's own `config.json` as a dataclass; None where the directory holds none of the kit's."""
    path = Path(directory) / "config.json"
    if not path.exists():
        return None
    tree = json.loads(path.read_text())
    return from_dict(config_class, {k: v for k, v in tree.items() if k != "part"}) if "part" in tree else None
