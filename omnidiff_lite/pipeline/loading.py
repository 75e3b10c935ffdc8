"""Where the parts of a system are, and how they are put together.

Three layouts are read: the kit's directory (`system.json`), a directory with released parts side by side, and a small
`system.yaml` that says where each part is:

    denoiser: checkpoints/Omni-Diffusion        # a path relative to this file's folder, or a hub id
    image_tokenizer: showlab/magvitv2
    speech_tokenizer: THUDM/glm-4-voice-tokenizer
    speech_decoder: THUDM/glm-4-voice-decoder
    speech_statistics: SenseVoiceSmall/am.mvn
    decoding: released
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from omnidiff_lite.backbone import RELEASED_TYPES, Denoiser, DenoiserConfig
from omnidiff_lite.config import ConfigError, from_dict
from omnidiff_lite.pipeline.settings import AnswerLengths, SystemSettings
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.tokenizers.speech_encoder import OMNI_PREFIX
from omnidiff_lite.tokenizers.speech_features import read_statistics
from omnidiff_lite.weights import FILES, CheckpointError, read_json, weight_names

SYSTEM, SYSTEM_FILE = "system.json", "system.yaml"
HUB = {"denoiser": "lijiang/Omni-Diffusion", "text_tokenizer": "lijiang/Omni-Diffusion",
       "image_tokenizer": "showlab/magvitv2", "speech_encoder": "FunAudioLLM/SenseVoiceSmall",
       "speech_tokenizer": "THUDM/glm-4-voice-tokenizer", "speech_decoder": "THUDM/glm-4-voice-decoder"}
PARTS = tuple(HUB)
STATISTICS = "am.mvn"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SystemFile:
    """`system.yaml`. Parts that it does not name are looked for beside the file, as in a directory."""

    denoiser: str | None = None
    text_tokenizer: str | None = None  # else in the denoiser's folder, as in the release
    image_tokenizer: str | None = None
    speech_encoder: str | None = None  # else in the denoiser's weights, as in the release
    speech_tokenizer: str | None = None
    speech_decoder: str | None = None
    speech_statistics: str | None = None  # SenseVoiceSmall's am.mvn, if it is not beside the speech encoder
    understanding_size: int = SystemSettings.understanding_size
    generation_size: int = SystemSettings.generation_size
    decoding: Literal["paper", "released"] = "paper"
    lengths: AnswerLengths = AnswerLengths()


@dataclass(frozen=True)
class Located:
    """A system on disk: each part's folder, the speech encoder's am.mvn if it is elsewhere, and the settings."""

    places: dict[str, Path]
    settings: SystemSettings = SystemSettings()
    statistics: Path | None = None


# --- where the parts lie ---------------------------------------------------------------------------------------------

def locate(where: str | Path) -> Located:
    """Find the parts of a system: a directory, a `system.yaml`, or a hub id if nothing local has that name.

    Raises `CheckpointError` naming the missing parts and where to get them, or an incomplete file; `ConfigError` for a
    `system.yaml` with an unknown key.
    """
    root = find(where)
    if root.is_file() or (root / SYSTEM_FILE).exists() and not (root / SYSTEM).exists():
        return _read_system_file(root if root.is_file() else root / SYSTEM_FILE)
    if (root / SYSTEM).exists():
        return Located({part: root / part for part in PARTS}, _read_settings(root / SYSTEM))
    return _side_by_side(root, {})


def find(where: str | Path, base: Path = Path()) -> Path:
    """A local path relative to `base`, else what the hub has under that id. Raises `CheckpointError` for neither."""
    path = base / Path(where).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise CheckpointError(f"{path}: no such directory or file; give a system's directory (make one with: make "
                              f"reproduce), a {SYSTEM_FILE}, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(where)))
    except Exception as error:  # the hub's own errors, and those of the network
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{where}: no such directory here, and not to be had from the hub ({reason})") from error


def _read_settings(path: Path) -> SystemSettings:
    """`system.json`. JSON keys are always text, so the places of pre-filled tokens are turned back into numbers."""
    settings = from_dict(SystemSettings, read_json(path))
    try:
        decoding = {task: fields | {"prefill": {float(place): token for place, token in fields["prefill"].items()}}
                    if "prefill" in fields else fields for task, fields in settings.decoding.items()}
    except (AttributeError, ValueError):
        raise ConfigError(f"{path}: prefill: expected {{fraction from 0 to below 1: token id}}") from None
    return dataclasses.replace(settings, decoding=decoding)


def _read_system_file(path: Path) -> Located:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
        file = from_dict(SystemFile, tree)
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None
    named = {}
    for field in (*PARTS, "speech_statistics"):
        if (value := getattr(file, field)) is not None:
            try:
                named[field] = find(value, path.parent)
            except CheckpointError as error:
                raise CheckpointError(f"{path}, {field}: {error}") from None
    settings = SystemSettings(understanding_size=file.understanding_size, generation_size=file.generation_size,
                              lengths=file.lengths, style=file.decoding)
    located = _side_by_side(path.parent, named)
    return dataclasses.replace(located, settings=settings)


def _side_by_side(root: Path, named: dict[str, Path]) -> Located:
    """Parts in `root` under the kit's names or their repositories'; if `root` is the denoiser's own, also beside it.

    Parts in `named` are taken from there.
    """
    denoiser = named.get("denoiser") or next(filter(_is_released, (*_candidates("denoiser", root), root)), None)
    if denoiser is None:
        raise CheckpointError(f"{root}: no {SYSTEM} there, so it is no finished system of the kit, nor does it hold "
                              f"the released denoiser ({HUB['denoiser']}); make a system with: make reproduce, or "
                              f"name the parts of one in a {SYSTEM_FILE}")
    bases = (root, root.parent) if denoiser == root else (root,)
    around = {part: [named[part]] if part in named else [p for base in bases for p in _candidates(part, base)]
              for part in PARTS}
    places = {part: paths[0] for part, paths in around.items() if paths} | {"denoiser": denoiser}
    if "speech_encoder" in places and not _has_weights(places["speech_encoder"]):
        del places["speech_encoder"]  # a folder with only SenseVoiceSmall's am.mvn
    if "text_tokenizer" not in places and any((denoiser / f).exists() for f in ("tokenizer.json", "vocab.json")):
        places["text_tokenizer"] = denoiser
    if "speech_encoder" not in places and any(name.startswith(OMNI_PREFIX) for name in weight_names(denoiser)):
        places["speech_encoder"] = denoiser
    _refuse_missing(root, [part for part in PARTS if part not in places])
    lists = (path / STATISTICS for path in around["speech_encoder"])
    return Located(places, statistics=named.get("speech_statistics") or next(filter(Path.exists, lists), None))


def _candidates(part: str, base: Path) -> list[Path]:
    """The folders of a part that exist in `base`: under the kit's name, then the released repository's."""
    return [path for path in (base / part, base / HUB[part].split("/")[1]) if path.is_dir()]


def _is_released(directory: Path) -> bool:
    path = directory / "config.json"
    return path.exists() and read_json(path).get("model_type") in RELEASED_TYPES


def _has_weights(directory: Path) -> bool:
    return directory.is_file() or any((directory / name).exists() or (directory / f"{name}.index.json").exists()
                                      for name in FILES)


def _refuse_missing(root: Path, missing: list[str]) -> None:
    if missing:
        parts = ", ".join(f"{part} (fetch {HUB[part]})" for part in missing)
        raise CheckpointError(f"{root}: parts of the system are missing: {parts}; put them side by side under these "
                              f"names or their repositories', or name their places in a {SYSTEM_FILE}")


# --- from files to a system ------------------------------------------------------------------------------------------

def load_tokenizers(located: Located) -> Tokenizers:
    """All tokenizers, in float32 on the CPU: 3.2 GB at full size, read from the files as needed."""
    tokenizers = Tokenizers.from_pretrained(located.places["denoiser"].parent, located.places, device="cpu")
    if located.statistics is not None:
        tokenizers.speech_encoder.cmvn.copy_(read_statistics(located.statistics))
    return tokenizers


def load_denoiser(directory: Path, tokenizers: Tokenizers, dtype: torch.dtype | str = torch.float32,
                  device_map: Any = None) -> Denoiser:
    """The denoiser that belongs to `tokenizers`.

    A released config.json leaves the audio ids and the width of the speech frames to the code: they come from the
    tokenizers. Raises `CheckpointError` if the two do not match, before any weights are read.
    """
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: no config.json, so it is no denoiser; fetch or write it again")
    v = tokenizers.vocabulary
    config = DenoiserConfig.from_pretrained(
        str(directory), speech_dim=tokenizers.speech_encoder.config.dim, begin_of_audio_token_id=v.begin_of_audio,
        context_of_audio_token_id=v.context_of_audio)
    pairs = {"the number of ids": (config.vocab_size, v.size), "<|mask|>": (config.mask_token_id, v.mask),
             "<|endoftext|>": (config.pad_token_id, v.pad)}
    wrong = [f"{what} is {own} there and {other} here" for what, (own, other) in pairs.items() if own != other]
    if wrong:
        raise CheckpointError(f"{directory}: the text tokenizer and the codebooks do not fit this denoiser: "
                              f"{'; '.join(wrong)}; use the tokenizers that it was trained with")
    return Denoiser.from_pretrained(directory, config=config, dtype=dtype_of(dtype), device_map=device_map)


def dtype_of(name: torch.dtype | str) -> torch.dtype | str:
    """"bfloat16" -> torch.bfloat16; "auto" stays. Raises `ConfigError` for an unknown name."""
    if isinstance(name, str) and name not in (*DTYPES, "auto"):
        raise ConfigError(f"dtype {name!r}: choose one of auto, {', '.join(DTYPES)}")
    return getattr(torch, name) if name in DTYPES else name
