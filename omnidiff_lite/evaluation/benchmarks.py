"""The protocols of tables 1 and 2 on the benchmarks' own files, read by `data.benchmark_files`.

    records = evaluate_benchmark("pope", model, judges, read_benchmark("pope", directory), settings)
    print(benchmark_text(records))          # the paper's rows, with ours beside them

The same functions score the embedded world's items in notebooks 07 and 08.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from omnidiff_lite.chat import Sample
from omnidiff_lite.data.benchmark_coco import as_task
from omnidiff_lite.data.benchmark_vision import SUBTASKS
from omnidiff_lite.evaluation.alignment import evaluate_pictures, evaluate_s2i, evaluate_t2i
from omnidiff_lite.evaluation.judges import Judges
from omnidiff_lite.evaluation.likelihood import evaluate_choices
from omnidiff_lite.evaluation.records import Record, measured, paper_records
from omnidiff_lite.evaluation.requests import Model, ReferenceImages, Settings, meta, reference_speech
from omnidiff_lite.evaluation.speech import evaluate_asr, evaluate_recordings, evaluate_tts, skipping_records
from omnidiff_lite.evaluation.table2 import choice_errors
from omnidiff_lite.evaluation.tables import table_text
from omnidiff_lite.evaluation.vision import (TABLE, evaluate_captioning, evaluate_mme, evaluate_pope,
                                             evaluate_seed_bench)
from omnidiff_lite.pipeline import OmniDiffusion

CEILING = "real data (ceiling)"
WORD_DRAWS = 16  # masks averaged for a likelihood of words, as in notebook 08; for letters all masks are taken
# Our columns, on the benchmark's own files -> the paper's columns of the same quantity.
PAPER = {"asr_wer": "librispeech_wer", "tts_wer": "libritts_wer", "pope_*": "pope", "mme_p": "mme_p",
         "seed2plus_*": "seed2plus", "mmmu_val": "mmmu_val", "clip_t": "clip_t", "clip_i": "clip_i"}
NOTE = ("Groups: paper-v1 = arXiv v1; paper-icml = the ICML camera-ready, quoted second-hand; ours = this checkpoint "
        "on the benchmark's own files. The paper does not say which of POPE's figures it gives, how it scored multiple "
        "choice, which pictures of COCO it drew and which CLIP judged them. Brackets: 95 % interval; n: test items.")


def evaluate_benchmark(name: str, model: Model, judges: Judges, samples: Sequence[Sample],
                       settings: Settings = Settings(), decoding: Mapping[str, Mapping[str, Any]] = {}) -> list[Record]:
    """Records of one benchmark's rows, with the columns of the kit's own tables.

    `decoding`: by task, what differs from the settings' own. LibriTTS and COCO also get the judges' ceilings on their
    own recordings and pictures. Raises `KeyError` for a name without a reader.
    """
    records = []
    for task, rows in _by_task(samples).items():
        how = replace(settings, decoding=decoding.get(task) or settings.decoding)
        records += _PROTOCOLS[name](model, judges, rows, how)
    return records


def benchmark_text(records: Sequence[Record]) -> str:
    """The records of `evaluate_benchmark` as a Markdown table with its caption, beside what the paper reports in the
    same columns."""
    return table_text([*_reported(records), *records], None, NOTE)


def _reported(records: Sequence[Record]) -> list[Record]:
    wanted = {(record.table, reported) for record in records for ours, reported in PAPER.items()
              if fnmatchcase(record.column, ours)}
    return [record for table in sorted({table for table, _ in wanted}) for record in paper_records(table)
            if (table, record.column) in wanted and record.value is not None]


def _by_task(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples by task. All benchmarks but COCO have one task; COCO's rows become samples of each task they name."""
    tasks = samples[0].meta.get("tasks")
    return {task: [as_task(row, task) for row in samples] for task in tasks} if tasks else {samples[0].task: samples}


def _librispeech(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    return evaluate_asr(model, samples, settings)[0]


def _libritts(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """An answer without speech is wrong; a second row follows the released script, which skips such answers."""
    kept, items = evaluate_tts(model, judges.recognition, samples, settings)
    ceiling = evaluate_recordings(judges.recognition, reference_speech(samples, settings),
                                  [meta(sample, "text") for sample in samples],
                                  replace(settings, row=CEILING))[0]
    return kept + skipping_records(items, settings) + ceiling


def _pope(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """Five figures for each strategy that the rows hold."""
    records = []
    for strategy in dict.fromkeys(meta(sample, "strategy") for sample in samples):
        rows = [sample for sample in samples if sample.meta["strategy"] == strategy]
        records += evaluate_pope(model, rows, settings, name=f"pope_{strategy}")[0]
    return records


def _mme(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """The points (out of 200) of each subtask in the rows; their sum is MME-P if all ten are there."""
    whole = {meta(sample, "kind") for sample in samples} == set(SUBTASKS)
    return [record for record in evaluate_mme(model, samples, settings)[0] if whole or record.column != "mme_p"]


def _seed2plus(model: OmniDiffusion, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """By the generated letter, and by likelihood: of the letters, and of the choices' words as its authors score; the
    paper does not say which. The latter comes with its uncertainty, since its masks are drawn. A question takes 4 x 7
    canvases for letters, and up to 4 x `WORD_DRAWS` for words."""
    records = evaluate_seed_bench(model, samples, settings, name="seed2plus_letter")[0]
    records += evaluate_choices(model, samples, settings)[0]
    name = "seed2plus_words"
    found, items = evaluate_choices(model, samples, settings, name=name, words=True, per_token=True, draws=WORD_DRAWS)
    return records + found + measured(TABLE, settings.row, settings.seed, choice_errors(items, name, settings))


def _mmmu(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """Percent of generated letters that are right, over the questions with choices (an open one has no letter) and one
    picture (a request holds one). The record says how many other rows there are, so that n is not taken for all."""
    closed = [sample for sample in samples if meta(sample, "choices")]
    asked = [sample for sample in closed if len(sample.images) == 1]
    left = (f"of {len(samples)} questions left out: {len(samples) - len(closed)} open, {len(closed) - len(asked)} with "
            "several pictures")
    if not asked:
        raise ValueError(f"no question of MMMU has choices and one picture ({left}); read more rows")
    records = evaluate_seed_bench(model, asked, settings, name="mmmu_val")[0]
    if len(asked) == len(samples):
        return records
    return [replace(r, reason="; ".join(filter(None, (r.reason, left)))) for r in records]


def _coco(model: Model, judges: Judges, samples: Sequence[Sample], settings: Settings) -> list[Record]:
    """Captions, or pictures drawn from them; a photograph has no known scene, so only the judges score pictures."""
    if samples[0].task == "captioning":
        return evaluate_captioning(model, samples, settings)[0]
    spoken = samples[0].task == "s2i"
    photographs, how = ReferenceImages(samples, settings), replace(settings, row=CEILING)
    ceiling = evaluate_pictures(judges, photographs, samples, how)[0]
    records = (evaluate_s2i if spoken else evaluate_t2i)(model, judges, samples, settings)[0]
    return records + [replace(record, column="s2i_" * spoken + record.column) for record in ceiling]


_PROTOCOLS: dict[str, Callable[..., list[Record]]] = {
    "librispeech": _librispeech, "libritts": _libritts, "pope": _pope, "mme": _mme,
    "seed2plus": _seed2plus, "mmmu": _mmmu, "coco": _coco}
