"""The learned speech judge: a recogniser that never hears what the model under test was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from omnidiff_lite.config import Budget, SpeechEncoderConfig
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.training.speech_encoder import train_speech_encoder
from omnidiff_lite.training.utterances import Utterance


def train_recognition_judge(config: SpeechEncoderConfig, utterances: Iterable[Utterance], budget: Budget,
                            seed: int, *, augment: bool = True,
                            progress: bool = True) -> tuple[SpeechEncoder, pd.DataFrame]:
    """A CTC recogniser as in `train_speech_encoder`; give it the judge's own voices and its own seed.

    `tokenizers.characters.transcribe(judge, waveforms)` transcribes with it.
    """
    return train_speech_encoder(config, utterances, budget, seed, name="recognition judge", augment=augment,
                                progress=progress)
