"""Tables 1 and 3 printed from records alone, by the notebook that measures them and by `omnidiff table`.

A table has sections; each shows some columns of some records, beside the paper's rows where it has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.evaluation.paired import TWIN, is_difference
from omnidiff_lite.evaluation.records import Record, missing, paper_records, read_records
from omnidiff_lite.evaluation.tables import CAPTION, save_table, table_text

NOTEBOOKS = {"1": "07_table1_speech", "3": "09_table3_sampling"}


@dataclass(frozen=True)
class Section:
    """One table on the page. `between`: only rows that are differences, or only the others; None: both. `methods`:
    whose rows it shows."""

    name: str  # of its files
    title: str
    table: str  # of the records
    columns: tuple[str, ...]
    note: str = ""
    between: bool | None = None
    paper: bool = True  # the paper has such rows
    methods: tuple[str, ...] = ("diffusion", TWIN)

    def shown(self, records: Sequence[Record], notebook: str) -> list[Record]:
        """The paper's records and those of `records` that belong here; for a method without any, the reason."""
        own = [r for r in records if r.table == self.table and self.between in (None, is_difference(r))]
        column = next((name for name in self.columns for r in own if r.column == name), self.columns[0])
        absent = [method for method in self.methods if not any(r.row.startswith(method) for r in own)]
        own += [missing(self.table, method, column,
                        f"not measured: run notebook {'14' if method == TWIN else notebook[:2]}") for method in absent]
        return (paper_records(self.table) if self.paper else []) + own


PAIRED = "Rows with \"minus\" are differences, paired by item: one that is claimed has an interval without 0."
SECTIONS: dict[str, tuple[Section, ...]] = {
    "1": (Section(
        "table1_speech", "Recognition and synthesis", "table1_speech",
        ("librispeech_wer", "libritts_wer", "asr_wer", "asr_wer_whisper", "tts_wer", "tts_silent"),
        f"Speakers and sentences held out; a silent answer is all wrong. {PAIRED}"),),
    "3": (
        Section("table3_sampling", "Steps against quality", "table3_sampling",
                ("clip_t", "clip_i", "image_all_right", "libritts_wer", "tts_wer", "latency_s", "tokens_per_s", "rtf"),
                "Requests timed one at a time. Answer tokens of the diffusion are its whole canvas, tail pads and all; "
                "of the twin, up to its end.", between=False),
        Section("table3_differences", "Differences: fewer steps, and the twin", "table3_sampling",
                ("clip_t", "clip_i", "image_all_right", "tts_wer", "latency_s"),
                f"{PAIRED} Latency: the median over timed requests of the difference.", between=True, paper=False,
                methods=(TWIN,)),
        Section("ablation_position_penalty", "Position penalty", "ablation_position_penalty",
                ("clip_t", "clip_i", "image_all_right"),
                "Text-to-image, one token a step. The ICML row \"with\" names no form: v1 states the fixed factor, the "
                f"one account of the ICML text the ramp. {PAIRED}", methods=("diffusion",)),
        Section("spoken_mme", "Spoken MME", "spoken_mme", ("mme_p", "mme_accuracy", "mme_accuracy_plus"),
                "MME-P: the paper's of 2000 points, ours of 1000 (five of the ten subtasks). Spoken answers as the "
                f"recognition judge hears them. {PAIRED}")),
}


def save_sections(number: str, records: Sequence[Record], directory: Path) -> str:
    """Write the table's sections as Markdown and CSV; returns what `omnidiff table` prints from the same records, which
    carry their provenance."""
    for section in SECTIONS[number]:
        shown = section.shown(records, NOTEBOOKS[number])
        save_table(shown, section.name, directory, section.columns, f"{_made(records)} {section.note}")
    return _page(number, records)


def printed(number: str, artifacts: Artifacts) -> str:
    """The table as Markdown, from a run's records. Raises `MissingArtifact` naming the notebook to run first."""
    notebook = NOTEBOOKS[number]
    return _page(number, read_records(artifacts.require(artifacts.metrics / f"{notebook[3:]}.json", notebook)))


def _page(number: str, records: Sequence[Record]) -> str:
    parts = [f"## {section.title}\n\n" + table_text(section.shown(records, NOTEBOOKS[number]), section.columns,
                                                     section.note) for section in SECTIONS[number]]
    return "\n".join([*parts, f"{_made(records)} {CAPTION}\n"])


def _made(records: Sequence[Record]) -> str:
    made = records[0].provenance
    steps = f", {made['steps']:g} L decoding steps" if "steps" in made else ""
    ways = "; ".join(f"{task}: {', '.join(f'{key} {value}' for key, value in way.items())}"
                     for task, way in made.get("decoding", {}).items() if way)
    other = f" Decoded otherwise than the paper: {ways}." if ways else ""
    return f"Preset {made['preset']}, seed {made['seed']}{steps}; {made['hardware']}.{other}"
