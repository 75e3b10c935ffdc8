"""Table 1: word error rates of recognition and synthesis, and the judge's ceilings.

Protocols: evaluate_asr.py:230-257 and evaluate_libritts.py:131-146 of the release. Both are corpus WER, so each item
is kept as (errors, words), resampled together. An empty hypothesis is all deletions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import numpy as np
import pandas as pd

from omnidiff_lite.chat import Sample
from omnidiff_lite.evaluation.paired import MINUS, differences
from omnidiff_lite.evaluation.records import Record, measured, missing
from omnidiff_lite.evaluation.requests import Model, Settings, ask, meta
from omnidiff_lite.evaluation.statistics import Estimate, proportion_interval, ratio_interval
from omnidiff_lite.media import MIN_SECONDS, Waveform
from omnidiff_lite.processes import over_processes

TABLE = "table1_speech"
# Per-item columns that differences are made of (`paired.differences`).
ASR_ITEMS = {"asr_wer": ("errors", "words"), "asr_wer_whisper": ("whisper_errors", "whisper_words")}
TTS_ITEMS = {"tts_wer": ("errors", "words"), "tts_silent": ("silent",)}


class Recogniser(Protocol):
    """Whatever turns recordings into text: `judges.RecognitionJudge`."""

    def transcribe(self, waves: list[Waveform]) -> list[str]: ...


# --- normalization ---------------------------------------------------------------------------------------------------


def normalize_released(text: str) -> str:
    """As in the released LibriSpeech script: cut at the first `<|im_end|>`, no special tokens, no "-", case ignored.

    Words are split at spaces; punctuation stays. It is not the Whisper normalization behind GLM-4-Voice's 2.82.
    """
    return " ".join(_answer(text).replace("-", "").lower().split())


def normalize_whisper(text: str) -> str:
    """Whisper's English normalizer, as transformers ships it (without the table of British spellings: no download)."""
    return _whisper()(_answer(text)).strip()


def normalize_libritts(text: str) -> str:
    r"""The released LibriTTS script's last step: `\W+` to one space, case ignored. The step before,
    WeTextProcessing's English text normalization (numbers to words), is left out: both sides are already words here."""
    return re.sub(r"\W+", " ", _answer(text)).lower().strip()


def _answer(text: str) -> str:
    """Cut at the first `<|im_end|>`, special tokens dropped."""
    return re.sub(r"<\|.*?\|>", " ", text.split("<|im_end|>", 1)[0])


@cache
def _whisper() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "released": normalize_released, "whisper": normalize_whisper, "libritts": normalize_libritts}


# --- word errors -----------------------------------------------------------------------------------------------------


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference words) of two normalized texts.

    Raises `ValueError` for a reference without words: it has no error rate.
    """
    import jiwer

    if not reference.split():
        raise ValueError(f"the reference {reference!r} has no words after normalization")
    counts = jiwer.process_words(reference, hypothesis)
    return (counts.substitutions + counts.deletions + counts.insertions,
            counts.substitutions + counts.deletions + counts.hits)


def compare(references: Sequence[str], hypotheses: Sequence[str | None], normalize: str = "released") -> pd.DataFrame:
    """Per-item table: reference, hypothesis (both as given), errors, words. None counts as an empty hypothesis."""
    clean = NORMALIZERS[normalize]
    rows = [(r, h or "", *word_errors(clean(r), clean(h or ""))) for r, h in zip(references, hypotheses, strict=True)]
    return pd.DataFrame(rows, columns=["reference", "hypothesis", "errors", "words"])


def wer(items: pd.DataFrame, settings: Settings = Settings()) -> Estimate:
    """Corpus WER in percent of the table that `compare` makes."""
    return ratio_interval(items["errors"], items["words"], **settings.resampling).scaled(100)


# --- evaluations -----------------------------------------------------------------------------------------------------


def evaluate_asr(model: Model, samples: Sequence[Sample], settings: Settings = Settings()
                 ) -> tuple[list[Record], pd.DataFrame]:
    """Recognition of `samples` (task asr, reference in meta "answer").

    Columns asr_wer (released normalization) and asr_wer_whisper. Per item: reference, hypothesis, errors, words, and
    the latter two under Whisper's normalization.
    """
    references = [meta(sample, "answer") for sample in samples]
    texts = [answer.text for answer in ask(model, samples, settings, to="text", task="asr")]
    items = compare(references, texts)
    whisper = compare(references, texts, "whisper")
    return measured(TABLE, settings.row, settings.seed, {
        "asr_wer": wer(items, settings), "asr_wer_whisper": wer(whisper, settings)}), items.assign(
            whisper_errors=whisper["errors"], whisper_words=whisper["words"])


def evaluate_tts(model: Model, judge: Recogniser, samples: Sequence[Sample], settings: Settings = Settings()
                 ) -> tuple[list[Record], pd.DataFrame]:
    """Synthesis of `samples` (task tts, what to say in meta "text"), heard by `judge`.

    Columns tts_wer and tts_silent (percent of answers without speech). An answer without speech is all deletions; the
    released script skips it (`skipping_records`). Per item: reference, hypothesis, errors, words, seconds, silent.
    """
    waves = [answer.speech for answer in ask(model, samples, settings, to="speech", task="tts")]
    items = _heard(judge, waves, [meta(sample, "text") for sample in samples])
    return speech_records(items, settings, False), items


def evaluate_recordings(judge: Recogniser, waves: Sequence[Waveform], texts: Sequence[str],
                        settings: Settings = Settings(row="real data (ceiling)")) -> tuple[list[Record], pd.DataFrame]:
    """The judge on recordings whose text is known: a WER that no synthesis can be expected to beat."""
    items = _heard(judge, waves, texts)
    return speech_records(items, settings, False), items


def resynthesize(tokenizer: object, decoder: object, waves: Sequence[Waveform]) -> list[Waveform]:
    """Recordings through speech tokens and back: what a model with perfect tokens would sound like."""
    return [decoder.decode(tokenizer.encode(wave)) for wave in waves]


def transcribe_all(judge: Recogniser, waves: Sequence[Waveform | None]) -> list[str]:
    """One transcript per recording; "" if there is none, or too little to hear. Several processes share the work."""
    audible = [i for i, wave in enumerate(waves) if _audible(wave)]
    texts = [""] * len(waves)
    heard = over_processes(judge.transcribe, [waves[i] for i in audible]) if audible else []
    for i, text in zip(audible, heard, strict=True):
        texts[i] = text
    return texts


def _audible(wave: Waveform | None) -> bool:
    return wave is not None and wave.seconds >= MIN_SECONDS and bool(np.any(np.abs(wave.samples) > 1e-5))


def _heard(judge: Recogniser, waves: Sequence[Waveform | None], texts: Sequence[str]) -> pd.DataFrame:
    items = compare(texts, transcribe_all(judge, waves), "libritts")
    items["seconds"] = [wave.seconds if _audible(wave) else 0.0 for wave in waves]
    return items.assign(silent=items["seconds"] == 0)


def speech_records(items: pd.DataFrame, settings: Settings, skip_silent: bool) -> list[Record]:
    """tts_wer and tts_silent from the per-item table of the speech evaluations."""
    silent = proportion_interval(items["silent"], **settings.resampling).scaled(100)
    records = measured(TABLE, settings.row, settings.seed, {"tts_silent": silent})
    kept = items[~items["silent"]] if skip_silent else items
    if kept.empty:
        return [missing(TABLE, settings.row, "tts_wer", "every answer was silent"), *records]
    return measured(TABLE, settings.row, settings.seed, {"tts_wer": wer(kept, settings)}) + records


def skipping_records(items: pd.DataFrame, settings: Settings) -> list[Record]:
    """What the released script's skipping of silent answers (evaluate_libritts.py:131-132) does to the same answers:
    their tts_wer in a row "..., silent answers skipped", and its difference from the WER of all, paired by item."""
    row = f"{settings.row}, silent answers skipped"
    skipped = [r for r in speech_records(items, replace(settings, row=row), True) if r.column == "tts_wer"]
    if items["silent"].all():
        return skipped
    heard = items[["errors", "words"]].mul(~items["silent"], axis=0)  # a silent answer adds nothing to either sum
    apart = replace(settings, row=f"{row}{MINUS}all")
    return skipped + differences(TABLE, {"tts_wer": ("errors", "words")}, heard, items, apart)
