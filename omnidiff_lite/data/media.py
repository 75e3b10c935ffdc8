"""From media references to pictures and sounds: paths, members of tar shards, and recipes of the embedded world, drawn
and spoken on the fly.

`load_many` spreads the work over processes and keeps what was drawn and spoken in one archive per set, named by its
content, which opens as an ordinary zip of PNG and FLAC files.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import multiprocessing
import multiprocessing.util
import os
import signal
import warnings
import weakref
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, Union

import numpy as np
import PIL.Image

from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.members import is_member, read_member
from omnidiff_lite.files import written_whole
from omnidiff_lite.media import MediaError, Waveform, load_image, load_waveform
from omnidiff_lite.orphans import end_with
from omnidiff_lite.provenance import source_hash
from omnidiff_lite.world import recipes, voices

PICTURE_RECIPES, SPEECH_RECIPE = (recipes.SCENE, recipes.CHART), voices.PREFIX
RECIPE_SIZE = 256  # pixels of a drawn picture if no size is given
SMALL = 64  # smaller sets are loaded in this process, unless told otherwise: workers take a second to start
SOURCES = ("media.py", "data/media.py", "world/*.py")

Kind = Literal["image", "speech"]
Media = Union[PIL.Image.Image, Waveform]


def is_recipe(ref: str) -> bool:
    """Whether a reference is a recipe of the embedded world, not a path."""
    return ref.startswith((*PICTURE_RECIPES, SPEECH_RECIPE))


def load_image_ref(ref: str, root: str | Path | None = None, size: int | None = None) -> PIL.Image.Image:
    """The RGB picture at a path (relative to `root`) or of a `scene:`/`chart:` recipe.

    `size`: side in pixels at which a recipe is drawn; files keep their own size. Raises `MediaError` naming the
    reference.
    """
    if ref.startswith(PICTURE_RECIPES):
        return _made(ref, partial(recipes.picture, size=size or RECIPE_SIZE))
    return _inside(ref, load_image) if is_member(ref) else load_image(_path(ref, root))


def load_speech_ref(ref: str, root: str | Path | None = None) -> Waveform:
    """The sound at a path (relative to `root`) or of a `speech:` recipe. Raises `MediaError` naming it."""
    if ref.startswith(SPEECH_RECIPE):
        return _made(ref, voices.speech)
    return _inside(ref, load_waveform) if is_member(ref) else load_waveform(_path(ref, root))


def seconds_of(ref: str, root: str | Path | None = None) -> float:
    """How long a recording lasts, from its file's header. Raises `MediaError` naming it."""
    import soundfile

    if ref.startswith(SPEECH_RECIPE):
        return load_speech_ref(ref).seconds
    try:
        return soundfile.info(io.BytesIO(read_member(ref)) if is_member(ref) else _path(ref, root)).duration
    except (soundfile.LibsndfileError, OSError) as error:
        raise MediaError(f"{ref}: not a readable recording ({error}); convert it to WAV or FLAC") from None


def load_ref(ref: str, root: str | Path | None = None, size: int | None = None, kind: Kind | None = None) -> Media:
    """A picture or a sound, as `kind` says; a recipe itself tells which. Raises `MediaError` naming the reference."""
    own = "image" if ref.startswith(PICTURE_RECIPES) else "speech" if ref.startswith(SPEECH_RECIPE) else kind
    if own is None:
        raise MediaError(f"{ref}: a file may be a picture or a sound; say kind='image' or kind='speech'")
    if kind not in (own, None):
        raise MediaError(f"{ref}: a recipe of kind {own!r} where {kind!r} is needed")
    return load_image_ref(ref, root, size) if own == "image" else load_speech_ref(ref, root)


def load_many(refs: Sequence[str], root: str | Path | None = None, workers: int = 0,
              cache_dir: str | Path | None = None, size: int | None = None, kind: Kind | None = None,
              small: int = SMALL) -> list[Media]:
    """What `load_ref` gives, for many references (of one `kind`, unless they are recipes), in their order.

    `workers`: processes that share the work (0, or fewer than `small` references: none). `cache_dir`: recipes are read
    back from there if the same source code has made the same set before. Raises `MediaError` naming the first bad
    reference, and `DataError`, which concerns none of them, if a worker was killed.
    """
    distinct = list(dict.fromkeys(refs))
    made = [ref for ref in distinct if is_recipe(ref)]
    found = _cached(made, workers, Path(cache_dir), size, kind, small) if cache_dir and made else {}
    rest = [ref for ref in distinct if ref not in found]
    found |= zip(rest, _load(rest, root, workers, size, kind, small))
    return [found[ref] for ref in refs]


# --- one reference ----------------------------------------------------------------------------------------------------

def _made(ref: str, make) -> Media:
    try:
        return make(ref)
    except (ValueError, voices.VoiceError) as error:
        raise MediaError(f"{ref}: {error}") from None


def _inside(ref: str, load) -> Media:
    """A medium inside a tar shard."""
    try:
        return load(io.BytesIO(read_member(ref)))
    except MediaError as error:
        raise MediaError(f"{ref}: {error}") from None


def _path(ref: str, root: str | Path | None) -> str:
    return os.path.join(root, ref) if root is not None else ref


# --- many references --------------------------------------------------------------------------------------------------

def _load(refs: Sequence[str], root: str | Path | None, workers: int, size: int | None, kind: Kind | None,
          small: int) -> list[Media]:
    load = partial(load_ref, root=root, size=size, kind=kind)
    if workers > 1 and len(refs) >= small:
        pool, begun = _pool(workers)
        try:
            return list(pool.map(load, refs, chunksize=max(1, min(32, len(refs) // (4 * workers)))))
        except BrokenProcessPool:
            _pool.cache_clear()
            if begun.value:
                raise DataError("a worker that loads pictures and sounds was killed (often because memory ran out); "
                                "run again with fewer workers") from None
            warnings.warn("worker processes could not start (a script that loads data needs "
                          "`if __name__ == '__main__':`); going on in this process", RuntimeWarning, stacklevel=3)
    return [load(ref) for ref in refs]


@lru_cache(maxsize=1)
def _pool(workers: int) -> tuple[ProcessPoolExecutor, ctypes.c_byte]:
    """The pool, and whether one of its processes has begun. Kept between calls: a process takes half a second to start.
    Spawned, since forking a threaded torch is unsafe."""
    context = multiprocessing.get_context("spawn")
    begun = context.RawValue(ctypes.c_byte, 0)  # without a lock, which a killed process would never release
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(begun, os.getpid()))
    # A spawned process would wait for its own workers forever. This runs first: 10 and below end the queue to them.
    multiprocessing.util.Finalize(None, _shut, (weakref.ref(pool),), exitpriority=100)
    return pool, begun


def _shut(pool: weakref.ref[ProcessPoolExecutor]) -> None:
    if found := pool():
        found.shutdown()


def _begin(begun: ctypes.c_byte, owner: int) -> None:
    """Leaves interrupts to the process that owns the workers, which end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(owner)
    begun.value = 1


# --- the cache --------------------------------------------------------------------------------------------------------

def _cached(refs: Sequence[str], workers: int, directory: Path, size: int | None, kind: Kind | None,
            small: int) -> dict[str, Media]:
    path = directory / "media" / f"{_key(refs, size)}.zip"
    if not path.exists():
        made = _load(refs, None, workers, size, kind, small)
        _write(path, made)
        return dict(zip(refs, made))
    with zipfile.ZipFile(path) as archive:
        return dict(zip(refs, (_unpack(archive.read(name)) for name in archive.namelist()), strict=True))


def _write(path: Path, media: Iterable[Media]) -> None:
    """Writes the archive so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for number, item in enumerate(media):
            suffix = "flac" if isinstance(item, Waveform) else "png"
            archive.writestr(f"{number:06d}.{suffix}", _pack(item))


def _pack(item: Media) -> bytes:
    """PNG or FLAC; lossless, since espeak-ng speaks 16-bit samples."""
    buffer = io.BytesIO()
    if isinstance(item, Waveform):
        import soundfile

        soundfile.write(buffer, (item.samples * 32768).astype(np.int16), item.rate, format="FLAC")
    else:
        item.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _unpack(data: bytes) -> Media:
    if data.startswith(b"fLaC"):
        import soundfile

        return Waveform(*soundfile.read(io.BytesIO(data), dtype="float32"))
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def _key(refs: Sequence[str], size: int | None) -> str:
    """Hash of the references and of the source code that draws and speaks them."""
    parts = [str(size or RECIPE_SIZE), source_hash(*SOURCES), *refs]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
