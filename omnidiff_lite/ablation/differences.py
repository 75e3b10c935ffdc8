"""The paper against its released code, one row per difference: what each does, and the measured effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import pandas as pd
import yaml

from omnidiff_lite.ablation.results import MINUS, effect_text, finished_studies, study_of
from omnidiff_lite.ablation.standing import Hash, remark
from omnidiff_lite.ablation.study import read_study
from omnidiff_lite.config import ConfigError
from omnidiff_lite.evaluation.records import Record
from omnidiff_lite.provenance import digest
from omnidiff_lite.strict import from_dict


@dataclass(frozen=True)
class Difference:
    """One difference. `study` and `row`: the variant whose effect measures it; or the `reason` why none does."""

    what: str
    paper: str
    code: str
    study: str = ""
    row: str = ""
    reason: str = ""
    note: str = ""  # how to read the effect

    def __post_init__(self) -> None:
        if bool(self.study) == bool(self.reason) or bool(self.study) != bool(self.row):
            raise ConfigError(f"difference {self.what!r}: name a study and its row, or a reason why it is not measured")
        if self.study and self.row not in [variant.name for variant in read_study(self.study).rows if variant.against]:
            raise ConfigError(f"difference {self.what!r}: study {self.study} has no variant {self.row!r}")


def differences() -> list[Difference]:
    """All of them, in the order of `differences.yaml`."""
    listed = yaml.safe_load((files("omnidiff_lite.ablation") / "differences.yaml").read_text())
    return [from_dict(Difference, tree) for tree in listed]


def difference_table(metrics: Path, hashed: Hash | None = None) -> pd.DataFrame:
    """Columns what, paper, released code, measured effect [95 %], study; effects from the records under `results/<preset>/metrics/`, marked
    if they do not belong to the checkpoint beside them."""
    found, hashed = finished_studies(metrics), hashed or cache(digest)
    remarks = {name: remark(study_of(records), records, metrics.parent, hashed) for name, records in found.items()}
    return pd.DataFrame([{"what": d.what, "paper": d.paper, "released code": d.code,
                          "measured effect [95 %]": _measured(d, found.get(d.study), remarks.get(d.study, "")),
                          "study": d.study}
                         for d in differences()])


def _measured(difference: Difference, records: list[Record] | None, remark: str) -> str:
    if difference.reason:
        return f"not measured: {difference.reason}"
    if records is None:
        return f"not run yet: omnidiff ablate {difference.study}"
    study = study_of(records)
    shown = {r.column: r for r in records if r.row == difference.row and r.column.endswith(MINUS)}
    if not shown:
        return f"not in the last run of {difference.study}, which has other variants"
    text = "; ".join(f"{metric.replace('_', ' ')} {effect_text(shown[metric + MINUS])}" for metric in study.metrics[:2])
    base = next(v.against for v in study.rows if v.name == difference.row)
    n = shown[study.metrics[0] + MINUS].n
    over = "seeds" if study.kind == "training" else "items"
    return "; ".join(filter(None, [f"{text} (against {base}; n={n} {over})", difference.note, remark]))
