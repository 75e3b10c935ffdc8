"""Weights on disk: safetensors (one file or shards with an index), released .pt/.bin files, strict loading."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, Callable, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omnidiff_lite.config import from_dict, to_dict
from omnidiff_lite.files import written_whole

FILES = ("model.safetensors", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors",
         "pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt")
Module = TypeVar("Module", bound=nn.Module)


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message lists the names and the remedy."""


def read_weights(directory: str | Path, prefix: str = "", without: str | None = None,
                 dtype: torch.dtype | None = torch.float32) -> dict[str, Tensor]:
    """The tensors of a checkpoint directory (or of one file) whose names begin with `prefix` and not with `without`.

    Floating-point tensors come as `dtype`; None: as stored. Those that need no conversion stay on disk until used:
    they are views of the mapped file. Unwanted shards and safetensors entries are not read. Pickled files are read
    with `weights_only=True`. Raises `CheckpointError` for a missing or unreadable file.
    """
    state: dict[str, Tensor] = {}
    for path, listed in _files(Path(directory)):
        if listed is None or any(_wanted(name, prefix, without) for name in listed):
            state |= _read_file(path, prefix, without, dtype)
    return state


def weight_names(directory: str | Path) -> list[str]:
    """Names of all tensors in a checkpoint directory, read from its index or its file's header."""
    names: list[str] = []
    for path, listed in _files(Path(directory)):
        names += list(_read_file(path, "", None, None)) if listed is None else listed
    return names


def _files(directory: Path) -> list[tuple[Path, list[str] | None]]:
    """The files of a checkpoint, each with the tensors that the index lists for it (None: there is no index)."""
    if directory.is_file():
        return [(directory, None)]
    for name in FILES:
        if (directory / f"{name}.index.json").exists():
            places = read_json(directory / f"{name}.index.json")["weight_map"]
            return [(directory / shard, [n for n, at in places.items() if at == shard])
                    for shard in sorted(set(places.values()))]
        if (directory / name).exists():
            return [(directory / name, None)]
    raise CheckpointError(f"{directory}: no weights found; expected one of {', '.join(FILES)}")


def _wanted(name: str, prefix: str, without: str | None) -> bool:
    return name.startswith(prefix) and not (without and name.startswith(without))


def _read_file(path: Path, prefix: str, without: str | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys() if _wanted(name, prefix, without)}
            return {name: _tensor(path, name, dtype) if _differs(tensor, dtype) else tensor
                    for name, tensor in state.items()}
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        return {name: tensor.to(dtype) if _differs(tensor, dtype) else tensor
                for name, tensor in state.items() if _wanted(name, prefix, without)}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: named by the index but missing; fetch it again") from None
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded ({type(error).__name__}: {error}); "
                              "it may be half-written, fetch or write it again") from None


def _differs(tensor: Tensor, dtype: torch.dtype | None) -> bool:
    return dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype


def _tensor(path: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    """One tensor, converted. The file is mapped just for it, so that its pages do not pile up beside the copies."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name).to(dtype)


def unfilled(kind: Callable[..., Module], *arguments: Any) -> Module:
    """`kind(*arguments)` whose parameters take no memory and no time: `strict_load` replaces them with a file's."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return kind(*arguments)


def strict_load(module: nn.Module, state: dict[str, Tensor], where: str | Path = "checkpoint",
                derivable: Callable[[str], bool] = lambda name: False) -> None:
    """Load `state` into `module`; missing, unexpected or misshapen tensors raise `CheckpointError`.

    The parameters of an `unfilled` module become the tensors of `state` themselves; other modules get copies.
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
    kept = {n: t.to(own[n].dtype) for n, t in state.items() if n in own}
    module.load_state_dict(kept, strict=False, assign=any(t.is_meta for t in own.values()))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `CheckpointError` for a file that does not hold a complete one."""
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:  # invalid JSON, or bytes that are not text
        raise CheckpointError(f"{path}: not JSON ({error}); it may be half-written, fetch or write it again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds a {type(tree).__name__}, not an object; fetch or write it again")
    return tree


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or all of the new one. Raises `CheckpointError` if it cannot."""
    try:
        with written_whole(path) as partial:
            partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); make room or mend it, and run again") from error


def save_part(module: nn.Module, config: Any, directory: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write `config.json` and `model.safetensors` of one part, each atomically, the weights first."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {n: (t.to(dtype) if dtype and t.is_floating_point() else t).contiguous().clone()
             for n, t in module.state_dict().items()}
    with written_whole(directory / "model.safetensors") as partial:
        save_file(state, partial, metadata={"format": "pt"})
    write_json(directory / "config.json", {"part": type(module).__name__, **to_dict(config)})


def read_part_config(config_class: type, directory: str | Path) -> Any:
    """The kit's own `config.json` as a dataclass; None if the directory holds none."""
    path = Path(directory) / "config.json"
    if not path.exists():
        return None
    tree = read_json(path)
    return from_dict(config_class, {k: v for k, v in tree.items() if k != "part"}) if "part" in tree else None
