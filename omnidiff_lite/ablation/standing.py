"""Which checkpoint a study's numbers belong to: filed with them, and compared with the present one when they are read,
so that an older checkpoint's numbers are not taken for its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omnidiff_lite.ablation.study import Study
from omnidiff_lite.evaluation.records import Record
from omnidiff_lite.provenance import digest, tree_hash

Hash = Callable[[Path], str]
HERE, ANOTHER, UNKNOWN = "this one", "another", "unknown"
REMARKS = {HERE: "", ANOTHER: "of another checkpoint than the one here", UNKNOWN: "of an unknown checkpoint"}


def system_of(study: Study, run: Path, hashed: Hash = digest) -> str:
    """Hash of what a study takes from `results/<preset>`, given as `run`: checkpoint and judges; if all of its variants
    train from fresh weights, only the checkpoint's parts other than the denoiser. `hashed`: a cached `digest`, for a
    page of many studies."""
    checkpoint = run / "checkpoint"
    whole = study.kind == "decoding" or any(variant.budget.start == "checkpoint" for variant in study.rows)
    parts = [checkpoint] if whole else sorted(p for p in checkpoint.glob("*/") if p.name != "denoiser")
    return tree_hash({part.name: hashed(part) for part in [*parts, run / "judges"]})


def remark(study: Study, records: Sequence[Record], run: Path, hashed: Hash = digest) -> str:
    """What a page says beside numbers that are not this checkpoint's; nothing for those that are."""
    return REMARKS[checkpoint_of(study, records, run, hashed)]


def checkpoint_of(study: Study, records: Sequence[Record], run: Path, hashed: Hash = digest) -> str:
    """"this one", "another", or "unknown" if the records do not say; compared with what is under `run` now."""
    filed = records[0].provenance.get("system")
    return UNKNOWN if not filed else HERE if filed == system_of(study, run, hashed) else ANOTHER
