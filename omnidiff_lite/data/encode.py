"""Samples to ids: every picture and recording is encoded once, in batches, and cached on disk by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import PIL.Image
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from omnidiff_lite.chat import AUDIO, IMAGE, ChatEncoder, ChatError, Sample, SpeechTokens
from omnidiff_lite.config import Preset, WorldConfig, to_dict
from omnidiff_lite.data.media import SMALL, Kind, load_many
from omnidiff_lite.files import written_whole
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.provenance import source_hash
from omnidiff_lite.tokenizers.image import prepare
from omnidiff_lite.vocabulary import VocabularyError

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers.bundle import Tokenizers

CHUNK = 256  # media in memory at once
BATCH = 32  # media encoded at once
SOURCES = ("chat.py", "vocabulary.py", "media.py", "data/encode.py", "data/media.py", "tokenizers/*.py", "world/*.py")


class EncodingError(ValueError):
    """A sample cannot be encoded; the message names it."""


@dataclass(frozen=True)
class EncodedSample:
    """One conversation as the denoiser's training sees it."""

    ids: np.ndarray  # int32 [n]
    labels: np.ndarray  # int32 [n]; -100 outside the assistant's turns
    frames: np.ndarray  # float16 [k, dim]: frames of all user recordings, queries included, in order
    task: str


class Use(NamedTuple):
    """One medium as one turn needs it: "image" at a size in pixels, speech "frames" (user) or speech "codes"."""

    kind: str
    ref: str
    size: int = 0


Encoded = Union[list[int], np.ndarray]  # image or speech codes | frames [k, dim]


def encode_samples(samples: Sequence[Sample], tokenizers: Tokenizers, image_sizes: tuple[int, int],
                   root: str | Path | None = None, cache_dir: str | Path | None = None, workers: int = 0,
                   draw_size: int | None = None, progress: bool = False, speech_input: str = "continuous",
                   small: int = SMALL) -> list[EncodedSample]:
    """Load and tokenize the media of samples, then their messages.

    `image_sizes`: pixels of a picture in a user turn, and in any other (dataset_qwen2.py:748-777: 512 and 256).
    Speech in an assistant turn becomes codes; in any other turn frames, or codes with `speech_input` "discrete".
    `root`: base of relative paths. `cache_dir`: keeps what was drawn and spoken. `workers`: processes that do this, for
    sets of at least `small`. `draw_size`: pixels of a drawn picture. Raises `EncodingError` naming the first sample
    that fails.
    """
    uses = []
    for number, sample in enumerate(samples):
        with _naming(number, sample):
            uses.append(uses_of(sample, image_sizes, speech_input))
    encoded = _encode_media(uses, tokenizers, progress, root=root, workers=workers, cache_dir=cache_dir, size=draw_size,
                            small=small)
    chat, dim = ChatEncoder(tokenizers.vocabulary, tokenizers.text), tokenizers.speech_encoder.config.dim
    result = []
    for number, sample in enumerate(samples):
        with _naming(number, sample):
            result.append(_encode_one(sample, [(use, encoded[use]) for use in uses[number]], chat, dim))
    return result


def build_dataset(preset: Preset, tokenizers: Tokenizers, task: str, split: str, n: int, seed: int,
                  cache_dir: str | Path, workers: int = 0, progress: bool = False) -> list[EncodedSample]:
    """`n` samples of the embedded world, encoded; read back from `cache_dir` if nothing that decides them has changed.

    They depend on the world's configuration and source, task, split, n, seed, picture sizes, the form of a user's
    speech and the tokenizers' weights.
    """
    from omnidiff_lite.world.dataset import samples

    sizes, speech_input = preset.image_tokenizer.sizes, preset.denoiser.speech_input
    key = _key(preset.world, task, split, n, seed, sizes, speech_input, tokenizers.fingerprint())
    path = Path(cache_dir) / "encoded" / f"{task}-{split}-{n}-{key}.safetensors"
    if not path.exists():
        write_encoded(path, encode_samples(samples(task, split, n, seed, preset.world), tokenizers, sizes,
                                           workers=workers, draw_size=preset.world.image_size, progress=progress,
                                           speech_input=speech_input))
    return read_encoded(path)


def write_encoded(path: str | Path, samples: Sequence[EncodedSample]) -> None:
    """Samples of one task in one safetensors file; a reader sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.concatenate([getattr(s, name) for s in samples]) for name in ("ids", "labels", "frames")}
    tensors["lengths"] = np.array([[len(s.ids), len(s.frames)] for s in samples], np.int64)
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata={"tasks": json.dumps([s.task for s in samples])})


def read_encoded(path: str | Path) -> list[EncodedSample]:
    """What `write_encoded` wrote."""
    tensors = load_file(path)
    with safe_open(path, framework="np") as file:
        tasks = json.loads(file.metadata()["tasks"])
    text, frames = (np.split(tensors[name], np.cumsum(tensors["lengths"][:-1, column]))
                    for name, column in (("ids", 0), ("frames", 1)))
    labels = np.split(tensors["labels"], np.cumsum(tensors["lengths"][:-1, 0]))
    return [EncodedSample(*parts) for parts in zip(text, labels, frames, tasks, strict=True)]


@contextmanager
def _naming(number: int, sample: Sample) -> Iterator[None]:
    """Makes an error inside name the sample."""
    try:
        yield
    except (ChatError, VocabularyError) as error:
        raise EncodingError(f"sample {number} ({sample.task}): {error}") from None


def uses_of(sample: Sample, image_sizes: tuple[int, int], speech_input: str = "continuous") -> list[Use]:
    """The forms in which a sample's media are needed, images first, each kind in the order of the messages."""
    images = [role for role, content in _turns(sample) for _ in range(content.count(IMAGE))]
    audios = [role for role, content in _turns(sample) for _ in range(content.count(AUDIO))]
    for token, roles, refs in ((IMAGE, images, sample.images), (AUDIO, audios, sample.audios)):
        if len(roles) != len(refs):
            raise ChatError(f"{len(roles)} {token} in the messages but {len(refs)} references")
    return [*(Use("image", ref, image_sizes[role != "user"]) for role, ref in zip(images, sample.images)),
            *(Use("codes" if role == "assistant" or speech_input == "discrete" else "frames", ref)
              for role, ref in zip(audios, sample.audios))]


def _turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message.get("role", ""), message.get("content", "")) for message in sample.messages]


def _encode_one(sample: Sample, media: Sequence[tuple[Use, Encoded]], chat: ChatEncoder, dim: int) -> EncodedSample:
    images = [codes for use, codes in media if use.kind == "image"]
    audios = [SpeechTokens(frames=len(data)) if use.kind == "frames" else SpeechTokens(codes=data)
              for use, data in media if use.kind != "image"]
    ids, labels = chat.sample(sample.messages, images, audios)
    frames = [data for use, data in media if use.kind == "frames"]
    return EncodedSample(np.array(ids, np.int32), np.array(labels, np.int32),
                         np.concatenate([np.zeros((0, dim), np.float16), *frames]), sample.task or "")


def _encode_media(uses: Sequence[Sequence[Use]], tokenizers: Tokenizers, progress: bool, **loading: Any
                  ) -> dict[Use, Encoded]:
    """Every distinct use, encoded; each picture and each sound is loaded once. `loading` goes to `load_many`."""
    wanted: dict[Kind, dict[str, list[Use]]] = {"image": {}, "speech": {}}
    for use in dict.fromkeys(use for of_sample in uses for use in of_sample):
        wanted["image" if use.kind == "image" else "speech"].setdefault(use.ref, []).append(use)
    chunks = [(kind, refs) for kind, by_ref in wanted.items() for refs in _chunks(list(by_ref), CHUNK)]
    encoded: dict[Use, Encoded] = {}
    total = sum(map(len, wanted.values()))
    with tqdm(total=total, desc="media", unit="", mininterval=5.0, disable=not progress) as bar:
        for kind, refs in chunks:
            try:
                media = dict(zip(refs, load_many(refs, kind=kind, **loading), strict=True))
                for use_kind, encode in _ENCODERS.items():
                    part = [use for ref in refs for use in wanted[kind][ref] if use.kind == use_kind]
                    encoded |= encode(part, media, tokenizers)
            except MediaError as error:
                raise EncodingError(f"{_owner(str(error), refs, uses)}: {error}") from None
            bar.update(len(refs))
    return encoded


def _encode_images(uses: Sequence[Use], media: dict[str, PIL.Image.Image], tokenizers: Tokenizers
                   ) -> dict[Use, Encoded]:
    found: dict[Use, Encoded] = {}
    for size in sorted({use.size for use in uses}):
        for part in _chunks([use for use in uses if use.size == size], BATCH):
            ids = tokenizers.image.encode(torch.stack([prepare(media[use.ref], size) for use in part]))
            found |= dict(zip(part, ids.flatten(1).tolist(), strict=True))
    return found


def _encode_frames(uses: Sequence[Use], media: dict[str, Waveform], tokenizers: Tokenizers) -> dict[Use, Encoded]:
    # Sorted by length, so that little of a batch is padding.
    uses = sorted(uses, key=lambda use: media[use.ref].seconds)
    frames = tokenizers.speech_encoder.encode([media[use.ref] for use in uses], batch_size=BATCH)
    return {use: rows.cpu().to(torch.float16).numpy() for use, rows in zip(uses, frames, strict=True)}


def _encode_codes(uses: Sequence[Use], media: dict[str, Waveform], tokenizers: Tokenizers) -> dict[Use, Encoded]:
    codes = tokenizers.speech_tokenizer.encode_many([media[use.ref] for use in uses], batch_size=BATCH)
    return {use: ids.tolist() for use, ids in zip(uses, codes, strict=True)}


_ENCODERS = {"image": _encode_images, "frames": _encode_frames, "codes": _encode_codes}


def _owner(message: str, refs: Sequence[str], uses: Sequence[Sequence[Use]]) -> str:
    """Which sample a medium's error is about: the first that uses the medium named in the error."""
    named = [ref for ref in refs if ref in message]
    numbers = [n for n, of_sample in enumerate(uses) for use in of_sample if use.ref in (named or refs)]
    return f"sample {numbers[0]}" if named else f"one of the samples {numbers[0]} to {numbers[-1]}"


def _chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start:start + size] for start in range(0, len(items), size))


def _key(world: WorldConfig, *parts: object) -> str:
    """Hash of what decides a data set's content, including the source of the modules that make it."""
    return hashlib.sha256(json.dumps([source_hash(*SOURCES), to_dict(world), *parts]).encode()).hexdigest()[:16]
