"""Training data, opened by kind: encoded folders, or files that are encoded on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnidiff_lite.data.broken import MOST, SHARE, BrokenLog
from omnidiff_lite.data.errors import DataError
from omnidiff_lite.data.raw import Encoder, raw_samples
from omnidiff_lite.data.samples import Samples
from omnidiff_lite.data.shards import read_shards

if TYPE_CHECKING:
    from omnidiff_lite.tokenizers.bundle import Tokenizers


def open_samples(paths: Sequence[str | Path], tokenizers: Tokenizers, image_sizes: tuple[int, int], out: str | Path,
                 workers: int = 0, most: int = MOST, share: float = SHARE, speech_input: str = "continuous"
                 ) -> dict[str, Samples]:
    """Samples by task, from folders of `omnidiff tokenize` and from jsonl, json and tar files.

    `workers`: processes that decode the files' media; `speech_input` as in `encode_samples`. Broken samples go to
    `out/broken.jsonl`, up to the limits of `BrokenLog`. Raises `DataError` for what cannot be read, and for a task that
    comes both ways.
    """
    folders = [path for path in map(Path, paths) if path.is_dir()]
    files = [path for path in map(Path, paths) if not path.is_dir()]
    found: dict[str, Samples] = dict(read_shards(folders))
    if not files:
        return found
    log = BrokenLog(Path(out) / "broken.jsonl", most, share)
    raw = raw_samples(files, Encoder(tokenizers, image_sizes, workers, speech_input), log)
    both = sorted(found.keys() & raw.keys())
    if both:
        raise DataError(f"task {both[0]!r} is in {folders[0]} and in a file as it is; tokenize the file as well")
    return found | raw
