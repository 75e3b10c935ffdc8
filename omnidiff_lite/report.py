"""`results/<preset>/report.html`: every table, figure, picture and sound of a run on one self-contained page."""

from __future__ import annotations

import base64
import html
import json
from functools import cache
from pathlib import Path

import pandas as pd

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.provenance import digest

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}th,td{border:1px solid #ddd;padding:3px 8px;
text-align:left}th{background:#f4f4f4}figure{display:inline-block;margin:8px;vertical-align:top}img{max-width:100%}
figcaption{font-size:12px;color:#555;max-width:420px}audio{height:32px}"""
_MEDIA = {".png": ("img", "image/png"), ".wav": ("audio", "audio/wav")}


def write_report(artifacts: Artifacts) -> Path:
    """Write the page from what the run left on disk, and return its path."""
    sections = [("Notebooks", _road(artifacts)), ("Aims", _aims(artifacts)), ("Tables", _tables(artifacts)),
                ("Ablations", _ablations(artifacts)),
                ("Figures", _gallery(artifacts.figures)), ("Samples", _gallery(artifacts.samples)),
                ("Provenance", _provenance(artifacts))]
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections if content)
    path = artifacts.dir / "report.html"
    path.write_text(f"<!doctype html><html lang='en'><meta charset='utf-8'><title>omnidiff-lite, {artifacts.preset}"
                    f"</title><style>{_STYLE}</style><h1>Omni-Diffusion, reproduced: preset {artifacts.preset}</h1>"
                    f"<p>{_NOTE}</p>{body}</html>\n")
    return path


_NOTE = ("Rows named <i>ours</i> are measured on the kit's embedded world of drawn scenes and synthetic voices; they "
         "are not the paper's numbers on public data. Every value stands with its number of items and its 95 % "
         "interval.")


def _road(artifacts: Artifacts) -> str:
    if not artifacts.road.exists():
        return ""
    rows = pd.DataFrame(json.loads(artifacts.road.read_text()))
    if rows.empty:
        return ""
    rows["notebook"] = [f"<a href='notebooks/{name}.ipynb'>{name}</a>" for name in rows["notebook"]]
    total = f"<p>{rows['minutes'].sum():.1f} minutes in all, at most {rows['peak_gib'].max():.1f} GiB of memory.</p>"
    return rows.to_html(index=False, escape=False) + total


def _aims(artifacts: Artifacts) -> str:
    from omnidiff_lite.evaluation.aims import aims_markdown, aims_table

    return _html(aims_markdown(aims_table(artifacts))) if any(artifacts.metrics.glob("*.json")) else ""


def _tables(artifacts: Artifacts) -> str:
    return "\n".join(f"<h3>{path.stem}</h3>{_html(path.read_text())}" for path in sorted(artifacts.tables.glob("*.md")))


def _ablations(artifacts: Artifacts) -> str:
    """Each study's question, base, effects and conclusion, and whether they are from this checkpoint; then the paper
    against its released code."""
    from omnidiff_lite.ablation.differences import difference_table
    from omnidiff_lite.ablation.results import effect_lines, finished_studies, study_of
    from omnidiff_lite.ablation.standing import remark

    found, hashed = finished_studies(artifacts.metrics), cache(digest)  # a checkpoint is hashed only once
    parts = [f"<h3>{html.escape(study.name)}</h3><p>{html.escape(study.question)} "
             f"<b>{remark(study, records, artifacts.dir, hashed)}</b></p>"
             f"{effect_lines(records, artifacts.dir, hashed).to_html(index=False)}<p>{html.escape(study.conclude)}</p>"
             for records in found.values() for study in [study_of(records)]]
    if parts:
        table = difference_table(artifacts.metrics, hashed)
        parts.append(f"<h3>paper against released code</h3>{table.to_html(index=False)}")
    return "\n".join(parts)


def _html(markdown: str) -> str:
    import mistune

    return mistune.create_markdown(plugins=["table"])(markdown)


def _gallery(folder: Path) -> str:
    return "\n".join(_figure(path, folder) for path in sorted(folder.rglob("*")) if path.suffix in _MEDIA)


def _figure(path: Path, folder: Path) -> str:
    tag, mime = _MEDIA[path.suffix]
    data = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
    media = f"<img src='{data}' alt=''>" if tag == "img" else f"<audio controls src='{data}'></audio>"
    note = path.with_suffix(".txt")
    caption = path.relative_to(folder).with_suffix("").as_posix() + (f": {note.read_text()}" if note.exists() else "")
    return f"<figure>{media}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _provenance(artifacts: Artifacts) -> str:
    seen: dict[str, dict[str, object]] = {}
    for path in sorted(artifacts.metrics.glob("*.json")):
        for record in json.loads(path.read_text()):
            if record.get("provenance"):
                seen[path.stem] = record["provenance"]
    rows = [{"metrics": name, **{k: v for k, v in p.items() if not isinstance(v, dict)},
             "libraries": ", ".join(f"{k} {v}" for k, v in p.get("libraries", {}).items())} for name, p in seen.items()]
    return pd.DataFrame(rows).to_html(index=False) if rows else ""
