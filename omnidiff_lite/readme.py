"""The measured parts of the README, written from the committed results; `omnidiff reproduce --publish` calls `update`.

A part stands between `<!-- name: ... -->` and `<!-- end -->`. The kit writes only what is between such marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from omnidiff_lite.artifacts import CLONE, Artifacts
from omnidiff_lite.evaluation.aims import aims_table
from omnidiff_lite.evaluation.paired import MINUS, TWIN
from omnidiff_lite.evaluation.records import read_records
from omnidiff_lite.plan.timing import beside_paper

PRESETS = ("smoke", "cpu")  # whose results are in the clone
OURS = "diffusion"
TWINNED = {"speech recognition: WER, lower is better": ("table1_speech", "asr_wer"),
           "speech synthesis: WER by the judge, lower is better": ("table1_speech", "tts_wer"),
           "captions all right, %": ("table2_vision", "caption_all_right"),
           "text to image all right, %": ("table2_vision", "image_all_right"),
           "POPE, adversarial: accuracy, % (a coin: 50)": ("table2_vision", "pope_adversarial_accuracy"),
           "MME-Perception, of 1000 (a coin: 375)": ("table2_vision", "mme_p")}


def update(readme: Path = CLONE / "README.md", root: Path = CLONE / "results") -> None:
    """Rewrite every measured part. Raises `ValueError` for a part that the kit cannot write."""
    text = readme.read_text()
    for name in re.findall(r"<!-- (\w+): written by the kit -->", text):
        if name not in PARTS:
            raise ValueError(f"{readme.name} has a part {name!r}; the kit writes {', '.join(PARTS)}")
        text = re.sub(rf"(?s)(<!-- {name}: .*? -->\n)(.*?)(<!-- end -->)",
                      lambda found: found[1] + PARTS[name](found[2], root) + found[3], text)
    readme.write_text(text)


def notebooks_table(written: str, root: Path) -> str:
    """One line per notebook, with minutes and peak memory at each preset. Its description stays as `written`."""
    roads = {preset: _road(root, preset) for preset in PRESETS}
    lines = []
    for line in written.splitlines():
        name = re.search(r"\(notebooks/(\w+)\.ipynb\)", line)
        if name:
            lines.append(" | ".join([*line.split(" | ")[:2], *(_cells(roads[p].get(name[1])) for p in PRESETS)]) + " |")
        elif line.startswith("| all"):
            lines.append(" | ".join(["| all", "", *(_total(roads[p]) for p in PRESETS)]) + " |")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _road(root: Path, preset: str) -> dict[str, dict[str, float]]:
    path = Artifacts.of(preset, root).road
    return {row["notebook"]: row for row in json.loads(path.read_text())} if path.exists() else {}


def _cells(row: dict[str, float] | None) -> str:
    return f"{row['minutes']:.1f} | {row['peak_gib']:.1f}" if row else "- | -"


def _total(rows: dict[str, dict[str, float]]) -> str:
    if not rows:
        return "- | -"
    return f"{sum(r['minutes'] for r in rows.values()):.1f} | {max(r['peak_gib'] for r in rows.values()):.1f}"


def hardware(written: str, root: Path) -> str:
    """The machines of the committed runs: the one with most records, and which record files come from another."""
    named = []
    for preset in filter(lambda name: (root / name).exists(), PRESETS):
        tables: dict[str, list[str]] = {}
        for path in sorted((root / preset / "metrics").glob("*.json")):
            for record in read_records(path):
                if record.source == "ours":
                    tables.setdefault(record.provenance["hardware"], []).append(path.stem)
        first, *others = sorted(tables, key=lambda machine: -len(tables[machine])) or [""]
        named += [f"`{preset}`: {first}"] if first else []
        named += [f"its {', '.join(f'`{name}.json`' for name in dict.fromkeys(tables[machine]))}: {machine}"
                  for machine in others]
    return f"Minutes and GiB of memory, as measured ({'; '.join(named)}).\n"


def aims(written: str, root: Path) -> str:
    """What `cpu` set out to reach, and what its committed run reached."""
    frame = aims_table(Artifacts("cpu", root))
    n = [f"{n:.0f}" if pd.notna(n) else "" for n in frame["n"]]
    shown = pd.DataFrame({"aim": frame["aim"], "asked": frame["asked"], "value [95 %]": frame["shown"], "n": n,
                          "reached": frame["reached"], "chance": frame["chance"], "best possible": frame["ceiling"]})
    met, count = (frame["reached"] == "yes").sum(), len(frame)
    return shown.to_markdown(index=False, disable_numparse=True) + f"\n\n{met} of {count} are reached.\n"


def twin(written: str, root: Path) -> str:
    """The diffusion beside its autoregressive twin, with the difference paired by item."""
    records = {(r.table, r.row, r.column): r for r in read_records(Artifacts("cpu", root).metrics)
               if r.source == "ours"}
    rows = {}
    for label, (table, column) in TWINNED.items():
        cells = [records.get((table, row, column)) for row in (OURS, TWIN, f"{TWIN}{MINUS}{OURS}")]
        rows[label] = ["-" if r is None else f"{r.value:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in cells]
        rows[label].append(next((str(r.n) for r in cells if r), ""))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["diffusion", "twin", "twin minus diffusion", "n"])
    return frame.rename_axis("test split").to_markdown(disable_numparse=True) + "\n"


def full_size(written: str, root: Path) -> str:
    """Seconds at the released size with random weights on a GPU, beside the paper's."""
    if not (root / "full").exists():
        return ""
    records = read_records(root / "full" / "metrics")
    frame, made = beside_paper(records), records[0].provenance
    shown = pd.DataFrame({
        "answer": frame.index, "unit": frame["unit"], "paper (ICML)": frame["paper (ICML)"].map("{:.2f}".format),
        "this kit [range]": [f"{r.ours:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in frame.itertuples()],
        "least possible": frame[["floor: bytes", "floor: FLOPs"]].max(axis=1).map("{:.2f}".format),
        "GiB": frame["peak GiB"].map("{:.1f}".format)})
    libraries = ", ".join(f"{name} {made['libraries'][name]}" for name in ("torch", "transformers"))
    return (f"{made['parameters'] / 1e9:.1f} B random parameters in {made['dtype']}, {made['device']}, {libraries}; "
            f"medians of {frame['n'].iloc[0]}:\n\n"
            f"{shown.replace('nan', '').to_markdown(index=False, disable_numparse=True)}\n")


PARTS: dict[str, Callable[[str, Path], str]] = {"notebooks": notebooks_table, "hardware": hardware, "aims": aims,
                                                "twin": twin, "full_size": full_size}
