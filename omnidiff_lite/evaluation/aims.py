"""The kit's own aims for the `cpu` preset, and what a run's records say of them: aim, value, interval, n.

    aims_table(Artifacts.of("cpu"))         # one row per aim, read from results/cpu/metrics/*.json

Every aim names the record that decides it. An aim without a record of the run's own configuration is "not measured";
one measured on fewer items than it asks for has "too few items". Neither counts as reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from omnidiff_lite.artifacts import Artifacts
from omnidiff_lite.evaluation.combinations import CELLS
from omnidiff_lite.evaluation.paired import MINUS
from omnidiff_lite.evaluation.records import Record, read_records
from omnidiff_lite.provenance import tree_hash

Key = tuple[str, str, str]  # table, row, column of a record
Best = Literal["high", "low"]
SIGNS = {"high": "≥", "low": "≤"}
NOT_MEASURED, TOO_FEW = "not measured", "too few items"
ITEMS = 200
NOTE = (f"The aims were set for the `cpu` preset, with at least {ITEMS} items each; shares of the matrix count its "
        f"{len(CELLS)} cells. With fewer nothing is reached. Reached: the value itself is there, whatever its "
        "interval. Numbers of another configuration than the run's own (`config.json`) do not count. Brackets: 95 % "
        "interval; of a difference, paired by item where the run has recorded it so, else the farthest that the two "
        "intervals allow. \"Of\": what the first of two values must reach besides, since two bad ones differ little as "
        "well. Chance: what guessing would score. Ceiling: the best possible, the same score of the right answers, "
        "through tokens and back. Over seeds: mean and 95 % interval over evaluation seeds, which draw other items and "
        "decode with other noise.")


@dataclass(frozen=True)
class Aim:
    """One quantity. `best` says which end is good. `{full}` and `{quarter}` in keys and label are step counts.

    `less`: its value is subtracted, so that the aim is about a difference; `paired`, the record of that difference
    paired by item, takes precedence. Two bad values may differ little, which means nothing, so `base` is what `key`
    itself must also reach. `chance`: what guessing would score. `items`: the fewest items that count.
    """

    label: str
    key: Key
    aim: float
    best: Best = "high"
    unit: str = "%"
    less: Key | None = None
    paired: Key | None = None
    base: tuple[Best, float] | None = None
    ceiling: Key | None = None
    seeds: Key | None = None
    chance: float | None = None
    items: int = ITEMS


@dataclass(frozen=True)
class Value:
    """What was measured for an aim; `first` is the value of its own record, before any subtraction."""

    value: float
    low: float | None
    high: float | None
    n: int
    seeds: tuple[int, ...]
    first: float
    reason: str = ""  # why there is no interval


def _steps(task: str, steps: str, column: str) -> Key:
    return "table3_sampling", f"diffusion: {task}, {steps} steps", column


def _speech(column: str, row: str = "diffusion") -> Key:
    return "table1_speech", row, column


def _vision(column: str, row: str = "diffusion") -> Key:
    return "table2_vision", row, column


def _answers(column: str, row: str = "diffusion") -> Key:
    return "answers", row, column


def _over(column: str) -> Key:
    return "headline_seeds", "diffusion", column


def _cells(column: str) -> Key:
    return "any_to_any_cells", "diffusion", column


REAL, TOKENS = "real data (ceiling)", "speech tokens (ceiling)"
PICTURE_TOKENS = "image tokens (ceiling)"
RELATED, ALL = "image_relation_right", "image_all_right"
T2I, S2I = "text-to-image", "speech-to-image"
FEWER = "{full} steps minus {quarter}"  # in a row of table 3: what fewer steps lose
PAIR = "shape and colour of the first two objects, and their relation, right"
STRICT = "stricter: all objects, sizes, textures and the ground as well"

AIMS = (
    Aim("image tokenizer: PSNR on test scenes", ("image_tokenizer", "test scenes", "image_psnr"), 26, unit="dB"),
    Aim("image tokenizer: share of codes used on test scenes and charts",
        ("image_tokenizer", "test scenes and charts", "codes_used"), 50),
    Aim("re-synthesised speech: WER above the judge's on real speech", _speech("tts_wer", TOKENS), 3, "low", "points",
        less=_speech("tts_wer", REAL), paired=_speech("tts_wer", f"{TOKENS}{MINUS}{REAL}"), base=("low", 10)),
    Aim("speech recognition: WER", _speech("asr_wer"), 5, "low", seeds=_over("asr_wer")),
    Aim("speech synthesis: WER by the judge", _speech("tts_wer"), 10, "low", ceiling=_speech("tts_wer", TOKENS),
        seeds=_over("tts_wer")),
    Aim("captioning: all attributes and the relation right", _vision("caption_all_right"), 90,
        seeds=_over("caption_all_right")),
    Aim(f"text to image, {{full}} steps: {PAIR}", _steps(T2I, "{full}", RELATED), 85,
        ceiling=_vision(RELATED, PICTURE_TOKENS), seeds=_over(RELATED)),
    Aim(f"text to image, {{full}} steps, {STRICT}", _steps(T2I, "{full}", ALL), 85,
        ceiling=_vision(ALL, PICTURE_TOKENS), seeds=_over(ALL)),
    Aim("text to image: what is lost at {quarter} steps", _steps(T2I, "{full}", RELATED), 5, "low", "points",
        less=_steps(T2I, "{quarter}", RELATED), paired=_steps(T2I, FEWER, RELATED), base=("high", 85)),
    Aim(f"text to image: what is lost at {{quarter}} steps, {STRICT}", _steps(T2I, "{full}", ALL), 5, "low", "points",
        less=_steps(T2I, "{quarter}", ALL), paired=_steps(T2I, FEWER, ALL), base=("high", 85)),
    Aim(f"speech to image, {{full}} steps: {PAIR}", _steps(S2I, "{full}", RELATED), 75,
        ceiling=_vision(RELATED, PICTURE_TOKENS)),
    Aim(f"speech to image, {{full}} steps, {STRICT}", _steps(S2I, "{full}", ALL), 75,
        ceiling=_vision(ALL, PICTURE_TOKENS)),
    Aim("POPE, adversarial: accuracy", _vision("pope_adversarial_accuracy"), 85, chance=50),
    Aim("MME-Perception: the world's five subtasks, of 1000 (1500 of 2000)", _vision("mme_p"), 750, unit="points",
        chance=375),
    Aim("spoken VQA: text answer right", _answers("svqa_right"), 80),
    Aim("spoken VQA: spoken answer right, by the judge", _answers("svqa_spoken_right"), 70,
        ceiling=_answers("svqa_spoken_right", TOKENS)),
    Aim("spoken QA: text answer right", _answers("sqa_right"), 80),
    Aim("text QA: answer right", _answers("text_qa_right"), 95),
    Aim("any to any: defined cells that have a score, whatever it is (coverage alone)", _cells("scored"), 100,
        items=len(CELLS)),
    Aim("any to any: defined cells with at least half of their ceiling", _cells("half_of_ceiling"), 100,
        items=len(CELLS)),
    Aim("inpainting: hidden object restored", ("inpainting", "diffusion", "inpainting_restored"), 70,
        ceiling=("inpainting", PICTURE_TOKENS, "inpainting_restored")),
)


def aims_table(artifacts: Artifacts, aims: Sequence[Aim] = AIMS) -> pd.DataFrame:
    """One row per aim: aim, asked, shown (value and interval as text), value, low, high, n, seeds, reached ("yes",
    "no", "too few items" or "not measured"), chance, ceiling, over seeds.

    The step counts are the first two of the run's own (`config.json`), as in table 3.
    """
    path = artifacts.dir / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {"evaluation": {"steps": []}}
    records = {(r.table, r.row, r.column): r for r in read_records(artifacts.metrics)
               if r.source == "ours" and r.provenance.get("config") == tree_hash(config)}
    return pd.DataFrame([_row(_at(aim, [*config["evaluation"]["steps"], "all", "fewer"]), records) for aim in aims])


def aims_markdown(frame: pd.DataFrame) -> str:
    """The table from `aims_table` as Markdown, with its note."""
    n = [f"{n:.0f}" if pd.notna(n) else "" for n in frame["n"]]
    seeds = [", ".join(map(str, each or ())) for each in frame["seeds"]]
    shown = pd.DataFrame({"aim": frame["aim"], "asked": frame["asked"], "value": frame["shown"], "n": n, "seeds": seeds,
                          **{name: frame[name] for name in ("reached", "chance", "ceiling", "over seeds")}})
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{NOTE}\n"


def reached(aim: Aim, found: Value | None) -> str:
    """Whether the value, on enough items, is at the aim or on its good side; the base, if any, must be met too."""
    if found is None:
        return NOT_MEASURED
    if found.n < aim.items:
        return TOO_FEW
    met = _meets(found.value, aim.best, aim.aim) and (aim.base is None or _meets(found.first, *aim.base))
    return "yes" if met else "no"


def _meets(value: float, best: Best, aim: float) -> bool:
    return value >= aim if best == "high" else value <= aim


def measured_value(aim: Aim, records: Mapping[Key, Record]) -> Value | None:
    """The value of an aim's record, or the difference of two; None where a record is missing.

    For a difference that no record pairs, n is the smaller of the two, and the interval is the widest that the two
    intervals allow.
    """
    first, paired = _found(aim.key, records), _found(aim.paired, records)
    if aim.less is None or first is None:
        return first
    if paired is not None:
        return replace(paired, first=first.value)
    second = _found(aim.less, records)
    if second is None:
        return None
    known = None not in (first.low, second.low)
    return Value(first.value - second.value, first.low - second.high if known else None,
                 first.high - second.low if known else None, min(first.n, second.n),
                 tuple(sorted({*first.seeds, *second.seeds})), first.value, first.reason or second.reason)


def _found(key: Key | None, records: Mapping[Key, Record]) -> Value | None:
    record = records.get(key)
    if record is None or record.value is None:
        return None
    return Value(record.value, record.low, record.high, record.n, record.seeds, record.value, record.reason)


def _at(aim: Aim, steps: Sequence[object]) -> Aim:
    """The aim with its step counts filled in."""
    def filled(text: str) -> str:
        return text.format(full=steps[0], quarter=steps[1])

    keys = {name: getattr(aim, name) for name in ("key", "less", "paired", "ceiling", "seeds")}
    return replace(aim, label=filled(aim.label),
                   **{name: key and tuple(map(filled, key)) for name, key in keys.items()})


def _row(aim: Aim, records: Mapping[Key, Record]) -> dict[str, object]:
    found, ceiling, seeds = measured_value(aim, records), _found(aim.ceiling, records), _found(aim.seeds, records)
    asked = f"{SIGNS[aim.best]} {aim.aim:g} {aim.unit}"
    if aim.base:
        asked += f", of {SIGNS[aim.base[0]]} {aim.base[1]:g} %"
    return {"aim": aim.label, "asked": asked, "shown": _text(found) or NOT_MEASURED,
            **{name: getattr(found, name, None) for name in ("value", "low", "high", "n", "seeds")},
            "reached": reached(aim, found), "chance": "" if aim.chance is None else f"{aim.chance:g}",
            "ceiling": _text(ceiling),
            "over seeds": f"{_text(seeds)}, seeds {', '.join(map(str, seeds.seeds))}" if seeds else ""}


def _text(found: Value | None) -> str:
    if found is None:
        return ""
    ends = f"{found.low:.1f}, {found.high:.1f}" if found.low is not None else found.reason or "no interval"
    return f"{found.value:.1f} [{ends}]"
