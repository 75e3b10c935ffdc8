"""Quantities that digests of the paper print but the paper does not, measured here, in a table that says so.

One widely copied digest credits Omni-Diffusion with gains in BLEU-4, FID, a mean opinion score, retrieval and latency,
over baselines that it does not name. None of them is in the paper. Here they are measured for the diffusion model and
its autoregressive twin, to show which way such a comparison goes on the embedded world.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import PIL.Image

from omnidiff_lite.chat import Sample
from omnidiff_lite.evaluation.any_to_any import words_right
from omnidiff_lite.evaluation.combinations import typed
from omnidiff_lite.evaluation.frechet import frechet_difference, frechet_interval
from omnidiff_lite.evaluation.judges import AlignmentJudge
from omnidiff_lite.evaluation.paired import MINUS, TWIN, differences
from omnidiff_lite.evaluation.records import Record, measured, missing, paper_tables
from omnidiff_lite.evaluation.requests import Model, Settings, ask_parts, meta, requests_of
from omnidiff_lite.evaluation.sampling import NAMES
from omnidiff_lite.evaluation.speech import Recogniser, compare, transcribe_all, wer
from omnidiff_lite.evaluation.statistics import median_interval, proportion_interval
from omnidiff_lite.evaluation.tables import cell_text, column_label
from omnidiff_lite.measure import seconds_of
from omnidiff_lite.media import Waveform
from omnidiff_lite.pipeline.settings import Decoding

TABLE = "digest_claims"
OVER = " over "  # in rows that are ratios
CEILING, FLOOR = "real data (ceiling)", "real data (floor)"

Pictures = Sequence[PIL.Image.Image | None]


# --- a picture and a typed question, answered aloud ------------------------------------------------------------------


def evaluate_spoken_answers(model: Model, judge: Recogniser, samples: Sequence[Sample], settings: Settings = Settings()
                            ) -> tuple[list[Record], pd.DataFrame]:
    """Spoken visual questions (task svqa), typed instead: image + text to speech, which no stage trains on.

    Columns spoken_right (percent of answers that the judge hears as the right one) and spoken_wer (of what it hears
    against the right answer). The model gives text and speech, as trained; only the voice counts.
    """
    answers = ask_parts(model, [typed(sample, settings) for sample in samples], settings, to=("text", "speech"))
    return score_voices(judge, [answer.speech for answer in answers], samples, settings)


def score_voices(judge: Recogniser, waves: Sequence[Waveform | None], samples: Sequence[Sample], settings: Settings
                 ) -> tuple[list[Record], pd.DataFrame]:
    """The same scores for given recordings; those of the right answers are the ceiling. A silent one is all errors."""
    items = compare([meta(sample, "answer") for sample in samples], transcribe_all(judge, waves), "libritts")
    items["right"] = [words_right(text, sample) for text, sample in zip(items["hypothesis"], samples)]
    right = proportion_interval(items["right"], **settings.resampling).scaled(100)
    return measured(TABLE, settings.row, settings.seed, {"spoken_wer": wer(items, settings), "spoken_right": right}
                    ), items


SPOKEN_ITEMS = {"spoken_wer": ("errors", "words"), "spoken_right": ("right",)}  # for `paired.differences`
RETRIEVAL_ITEMS = {f"retrieval_{way}_r1": (f"{way}_right",) for way in ("caption", "picture")}


# --- pictures as a whole ---------------------------------------------------------------------------------------------


def evaluate_frechet(judge: AlignmentJudge, pictures: Mapping[str, Pictures], reference: Sequence[PIL.Image.Image],
                     settings: Settings = Settings()) -> list[Record]:
    """Fréchet distance (column frechet) of each row's pictures from real ones of other prompts, on `judge`'s features:
    not FID, which uses Inception's. All rows share the same prompts; if the twin's is among them, also how much
    farther off it is than the row of `settings`. A missing picture counts as black."""
    features = {row: judge.features([picture or _black(reference[0]) for picture in each])
                for row, each in pictures.items()}
    real, how = judge.features(reference), settings.resampling
    records = [record for row, each in features.items() for record in measured(
        TABLE, row, settings.seed, {"frechet": frechet_interval(each, real, **how)})]
    if TWIN in features:
        apart = frechet_difference(features[TWIN], features[settings.row], real, **how)
        records += measured(TABLE, f"{TWIN}{MINUS}{settings.row}", settings.seed, {"frechet": apart})
    return records


def _black(like: PIL.Image.Image) -> PIL.Image.Image:
    return PIL.Image.new("RGB", like.size)


# --- seconds ---------------------------------------------------------------------------------------------------------


def side_by_side(systems: Mapping[str, tuple[Model, Decoding]], samples: Sequence[Sample], settings: Settings, *,
                 to: str, task: str) -> pd.DataFrame:
    """Seconds per request, one column for each of `systems` (a model, and fields of its decoding), after a warm-up.

    All answer one request before any answers the next, so that a slow minute of the machine hits all alike.
    """
    requests = requests_of(samples, settings.root, settings.image_sizes[0])  # loading media is not the model's time

    def answer(name: str, i: int) -> None:
        model, decoding = systems[name]
        model.generate_many([requests[i]], to=to, task=task, decoding=decoding, seed=settings.seed + i, batch_size=1)

    for name in systems:
        answer(name, 0)
    return pd.DataFrame([{name: seconds_of(partial(answer, name, i))[0] for name in systems}
                         for i in range(len(requests))])


def latency_records(task: str, seconds: pd.DataFrame, settings: Settings = Settings()) -> list[Record]:
    """Columns latency_<task>_<name> of `side_by_side`: the median, in the row of `settings` for every name but the
    twin's, and in the twin's row; and the median over requests of the twin's seconds divided by the others'."""
    records = []
    for name in seconds.columns.drop(TWIN, errors="ignore"):
        rows = {settings.row: seconds[name]}
        if TWIN in seconds:
            rows |= {TWIN: seconds[TWIN], f"{TWIN}{OVER}{settings.row}": seconds[TWIN] / seconds[name]}
        records += [record for row, values in rows.items() for record in measured(
            TABLE, row, settings.seed, {f"latency_{task}_{name}": median_interval(values, **settings.resampling)})]
    return records


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a digest prints for one benchmark, and the prefixes of our columns that measure something like it."""

    benchmark: str
    columns: tuple[str, ...] = ()
    instead: str = ""  # why there is none
    paper: str = "nothing"  # what the paper says of this kind


CLAIMS = (
    Claim("COCO Captions", ("caption_bleu4",)),
    Claim("MS-COCO", ("frechet",)),
    Claim("AudioCaps", ("spoken_wer", "spoken_right")),
    Claim("multi-modal retrieval", ("retrieval_",)),
    Claim("latency", ("latency_",), paper="nothing of it; the ICML version has seconds (table 3)"),
    Claim("LibriSpeech", instead="table 1 measures it: omnidiff table 1", paper="nothing of it; its WER is in table 1"),
    Claim("model size", instead="models of one size are trained here"),
)
GROUPS = {"diffusion": ("diffusion",), TWIN: (TWIN,),
          "twin against diffusion": (f"{TWIN}{MINUS}diffusion", f"{TWIN}{OVER}diffusion"),
          "real data": (CEILING, FLOOR), "real data as tokens": ("image tokens (ceiling)", "speech tokens (ceiling)")}
LABELS = {"frechet": "Fréchet distance on the judge's features (not FID) ↓",
          "spoken_wer": "spoken answers: WER % against the right one ↓", "spoken_right": "spoken answers right % ↑"}


def not_measured() -> list[Record]:
    """The claims without a counterpart here, as missing cells with the reason."""
    return [missing(TABLE, "diffusion", claim.benchmark.replace(" ", "_"), claim.instead)
            for claim in CLAIMS if claim.instead]


def without_twin(records: Iterable[Record], twin: object) -> list[Record]:
    """The twin's unmeasured cells, where `twin` is the reason why."""
    records = list(records)
    columns = dict.fromkeys(r.column for r in records if r.row != TWIN)
    measured_of_it = {r.column for r in records if r.row == TWIN}
    return [missing(TABLE, TWIN, column, twin) for column in columns if isinstance(twin, str)
            and column not in measured_of_it]


def claims_table(records: Iterable[Record]) -> pd.DataFrame:
    """One line for each of our figures, beside what the digest prints and what the paper claims of it, which is
    nothing. The twin's seconds are shown as a multiple ("×") of the diffusion's, all else as a difference."""
    records, printed = list(records), {row["benchmark"]: row for row in paper_tables()[
        "unverified_claims_of_a_digest"]["rows"]}
    lines = {}
    for claim in CLAIMS:
        said = f"{printed[claim.benchmark]['task']}, {claim.benchmark}: {printed[claim.benchmark]['claim']}"
        begins = claim.columns or (claim.benchmark.replace(" ", "_"),)
        for column in dict.fromkeys(r.column for r in records if r.column.startswith(begins)):
            cells = {r.row: ("× " if OVER in r.row else "") + cell_text(r) for r in records if r.column == column}
            found = ["; ".join(cells[row] for row in rows if row in cells) for rows in GROUPS.values()]
            lines[_label(column)] = [said, claim.paper, *found]
    heads = [("digest", "prints"), ("paper", "claims of it"), *(("ours", name) for name in GROUPS)]
    return pd.DataFrame(list(lines.values()), pd.Index(list(lines), name="measured"),
                        pd.MultiIndex.from_tuples(heads), dtype=str)


def _label(column: str) -> str:
    kind, _, rest = column.partition("_")
    if kind != "latency":
        return LABELS.get(column) or column_label(column)
    task, _, steps = rest.partition("_")
    return f"{NAMES.get(task, task)}, {steps}: seconds a request ↓"
