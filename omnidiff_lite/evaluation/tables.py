"""Records to tables: paper v1 | ICML | released code | ours, side by side and never in one column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from omnidiff_lite.data.benchmark_vision import SUBTASKS
from omnidiff_lite.evaluation.records import SOURCES, Record
from omnidiff_lite.files import written_whole

METHOD = "Omni-Diffusion"  # the paper's name for what our rows call "diffusion"
CAPTION = ("Groups: paper-v1 = arXiv v1; paper-icml = the ICML camera-ready, quoted second-hand; released-code = "
           "measured with the released code's settings; ours = measured by this kit. A number measured on the embedded "
           "world is not the paper's number on the public data: compare within a group, never across groups. "
           "Brackets: 95 % interval, of two to five timings their range; n: test items. – : not reported or not "
           "measured.")

# column -> (label, digits shown for our own values)
COLUMNS: dict[str, tuple[str, int]] = {
    "librispeech_wer": ("LibriSpeech WER % ↓", 2), "libritts_wer": ("LibriTTS WER % ↓", 2),
    "asr_wer": ("ASR WER % ↓", 1), "asr_wer_whisper": ("ASR WER %, Whisper normalization ↓", 1),
    "tts_wer": ("TTS WER % ↓", 1), "tts_silent": ("silent answers % ↓", 1),
    "pope": ("POPE % ↑", 1), "pope_accuracy": ("POPE accuracy % ↑", 1), "pope_precision": ("POPE precision % ↑", 1),
    "pope_recall": ("POPE recall % ↑", 1), "pope_f1": ("POPE F1 % ↑", 1), "pope_yes": ("POPE yes-ratio %", 1),
    "mme_p": ("MME-P ↑", 1), "mme_accuracy": ("MME accuracy % ↑", 1), "mme_accuracy_plus": ("MME accuracy+ % ↑", 1),
    "seed2plus": ("SEED-2-Plus % ↑", 1), "mmmu_val": ("MMMU-val % ↑", 1),
    "seed2plus_letter": ("SEED-2-Plus, generated letter % ↑", 1),
    "seed2plus_likelihood": ("SEED-2-Plus, likelihood of the letters % ↑", 1),
    "seed2plus_words": ("SEED-2-Plus, likelihood of the words % ↑", 1),
    "seed2plus_words_error": ("standard error of a word score, nats a token", 3),
    "seed2plus_words_unsure": ("choices within 2 standard errors %", 1),
    "retrieval_caption_r1": ("caption of a picture, Recall@1 % ↑", 1),
    "retrieval_picture_r1": ("picture of a caption, Recall@1 % ↑", 1),
    "image_missing": ("images missing % ↓", 1),
    "image_repeated": ("an object drawn again % ↓", 1),
    "svqa_right": ("spoken VQA: text right % ↑", 1), "svqa_spoken_right": ("spoken VQA: voice right % ↑", 1),
    "text_letters": ("letters of text", 1), "speech_s": ("seconds of speech", 2),
    "clip_t": ("CLIP-T ↑", 3), "clip_i": ("CLIP-I ↑", 3),
    "clip_t_other": ("CLIP-T by CLIP-I's judge ↑", 3), "clip_i_other": ("CLIP-I by CLIP-T's judge ↑", 3),
    "caption_bleu4": ("captions BLEU-4 ↑", 1), "caption_cider": ("captions CIDEr ↑", 2),
    "latency_s": ("latency s ↓", 3), "rtf": ("real-time factor ↓", 3), "tokens_per_s": ("answer tokens/s ↑", 1),
}
COLUMNS |= {f"{kind}_{what}_right": (f"{kind}s with {words} right % ↑", 1) for kind in ("caption", "image")
            for what, words in (("objects", "shapes"), ("attributes", "attributes"), ("relation", "relation"),
                                ("background", "ground"), ("all", "all"))}
COLUMNS |= {f"mme_{name}": (f"MME {name}, of 200 ↑", 1) for name in SUBTASKS}
COLUMNS |= {f"s2i_{name}": (f"speech to image: {label}", digits) for name, (label, digits) in COLUMNS.items()
            if name.startswith(("image_", "clip_"))}
COLUMNS |= {f"{name}_minus_base": (f"change: {label}", digits) for name, (label, digits) in COLUMNS.items()}


def comparison(records: Iterable[Record], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A text table: one row per method, columns grouped by source (two-level header: source, metric).

    `columns`: which metrics, in which order; all by default, in order of appearance. If the paper's "Omni-Diffusion"
    has a row, our "diffusion" shares it. A cell without a record is empty; one with value None shows why. Raises
    `ValueError` where two records claim one cell.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    rows: dict[str, None] = {}
    records = [record for record in records if columns is None or record.column in columns]
    beside = any(record.row == METHOD for record in records)
    for record in records:
        row, cell = row_label(record.row, beside), cells.setdefault((record.source, record.column), {})
        if row in cell:
            raise ValueError(f"two records for {record.table} / {record.row} / {record.column} ({record.source})")
        cell[row], rows[row] = cell_text(record), None
    order = {column: i for i, column in enumerate(columns or dict.fromkeys(column for _, column in cells))}
    keys = sorted(cells, key=lambda key: (SOURCES.index(key[0]), order[key[1]]))
    data = {(source, column_label(column)): [cells[source, column].get(row, "") for row in rows]
            for source, column in keys}
    frame = pd.DataFrame(data, index=pd.Index(list(rows), name="row"), dtype=str)
    frame.columns = pd.MultiIndex.from_tuples(list(data), names=["source", "metric"]) if data else frame.columns
    return frame


def cell_text(record: Record) -> str:
    """Ours as "7.1 [6.0, 8.3] n=200", with any remark, such as why it has no interval; the paper's number as it was
    printed; "–" and why if there is none."""
    if record.value is None:
        return "–" if record.reason == "not reported" else f"– ({record.reason})"
    if record.source.startswith("paper"):
        return f"{record.value:.10g}"
    digits = COLUMNS.get(record.column, ("", 3 if 0 < abs(record.value) < 1 else 1))[1]
    text = f"{record.value:.{digits}f}"
    if record.low is not None:
        text += f" [{record.low:.{digits}f}, {record.high:.{digits}f}]"
    if record.reason:
        text += f" [{record.reason}]"
    return text + (f" n={record.n}" if record.n else "")


def column_label(column: str) -> str:
    return COLUMNS[column][0] if column in COLUMNS else column.replace("_", " ")


def row_label(row: str, beside: bool = False) -> str:
    """Our "diffusion: text-to-image, 10 steps" is the paper's row "text-to-image, 10 steps"; our "diffusion" is its
    method if they stand `beside` each other."""
    return METHOD if beside and row == "diffusion" else row.removeprefix("diffusion: ")


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; the header names the source and the metric of each column."""
    head = ["", *(f"{source}: {metric}" for source, metric in frame.columns)]
    lines = [head, ["---"] * len(head), *([row, *values] for row, values in zip(frame.index, frame.to_numpy()))]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def to_long(records: Iterable[Record]) -> pd.DataFrame:
    """One line per record, numbers as numbers; provenance is left to the JSON."""
    keys = ("table", "row", "column", "source", "value", "low", "high", "n", "seeds", "reason")
    return pd.DataFrame([{key: getattr(record, key) for key in keys} for record in records], columns=list(keys))


def save_table(records: Sequence[Record], name: str, directory: str | Path, columns: Sequence[str] | None = None,
               note: str = "") -> tuple[Path, Path]:
    """`name`.md (the comparison, with its caption) and `name`.csv (one line per record), written atomically."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    markdown = _write(directory / f"{name}.md", table_text(records, columns, f"{note} {CAPTION}".strip()))
    return markdown, _write(directory / f"{name}.csv", to_long(records).to_csv(index=False))


def table_text(records: Iterable[Record], columns: Sequence[str] | None, caption: str) -> str:
    """The comparison as Markdown, with its caption below."""
    return f"{to_markdown(comparison(records, columns))}\n{caption}\n"


def _write(path: Path, text: str) -> Path:
    with written_whole(path) as partial:
        partial.write_text(text)
    return path
