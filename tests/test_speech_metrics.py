"""Word error rates: the three normalizations, hand-counted errors, and empty answers, which count."""

import jiwer
import numpy as np
import pytest

from omnidiff_lite.evaluation.requests import Settings
from omnidiff_lite.evaluation.speech import (compare, evaluate_recordings, normalize_libritts, normalize_released,
                                             normalize_whisper, resynthesize, transcribe_all, wer, word_errors)
from omnidiff_lite.media import Waveform

TONE = Waveform(np.full(8000, 0.1, np.float32), 16000)
SILENCE = Waveform(np.zeros(8000, np.float32), 16000)
NOTHING = Waveform(np.zeros(0, np.float32), 16000)


class Judge:
    """Hears whatever it was told to hear."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.heard = list(texts), 0

    def transcribe(self, waves: list[Waveform]) -> list[str]:
        self.heard += len(waves)
        return self.texts[:len(waves)]


@pytest.mark.parametrize("raw, clean", [
    ("A Well-Known tale.<|im_end|> and more", "a wellknown tale."),
    ("<|audio_3|>yes  <|begin_of_audio|> no", "yes no"),
    ("<|im_end|>", ""),
])
def test_the_released_normalization_cuts_and_drops_but_keeps_punctuation(raw, clean):
    assert normalize_released(raw) == clean


def test_the_other_two_normalizations():
    assert normalize_whisper("I won't, Mr. Smith: twenty-one!") == "i will not mister smith 21"
    assert normalize_libritts("It's a well-known   tale!<|im_end|>junk") == "it s a well known tale"


@pytest.mark.parametrize("reference, hypothesis, errors", [
    ("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b c", "a b b c d", 2), ("a b c", "", 3)])
def test_hand_counted_errors(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == (errors, 3)


def test_a_reference_without_words_is_refused():
    with pytest.raises(ValueError, match="no words"):
        compare(["-"], ["a"])


def test_corpus_wer_is_jiwers():
    references, hypotheses = ["a b c d", "e f", "g"], ["a c d", "e f x", ""]
    estimate = wer(compare(references, hypotheses), Settings(bootstrap=200))
    assert estimate.value == pytest.approx(100 * jiwer.wer(references, hypotheses)) == pytest.approx(300 / 7)
    assert estimate.low < estimate.value < estimate.high and estimate.n == 3


def test_an_empty_hypothesis_is_all_deletions_never_a_skip():
    items = compare(["a b", "c d"], ["a b", None])
    assert items["errors"].tolist() == [0, 2] and wer(items).value == 50


def test_a_judge_is_not_asked_about_silence():
    judge = Judge("hello")
    assert transcribe_all(judge, [None, TONE, SILENCE, NOTHING]) == ["", "hello", "", ""]
    assert judge.heard == 1 and transcribe_all(judge, [None]) == [""]


def test_the_ceiling_is_the_judge_on_real_recordings():
    records, items = evaluate_recordings(Judge("a b", "c x"), [TONE, TONE], ["A b.", "c d"])
    cells = {r.column: r for r in records}
    assert cells["tts_wer"].value == 25 and cells["tts_wer"].row == "real data (ceiling)"
    assert cells["tts_silent"].value == 0 and items["seconds"].tolist() == [0.5, 0.5]


def test_resynthesis_goes_through_tokens():
    class Tokenizer:
        def encode(self, wave):
            return [int(wave.seconds * 12.5)]

    class Decoder:
        def decode(self, ids):
            return Waveform(np.ones(ids[0], np.float32), 22050)

    (wave,) = resynthesize(Tokenizer(), Decoder(), [TONE])
    assert len(wave.samples) == 6 and wave.rate == 22050
