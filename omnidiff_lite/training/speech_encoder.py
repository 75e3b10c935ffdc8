"""Training the speech encoder: CTC over characters, so that its frames carry what is said."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from omnidiff_lite.config import Budget, SpeechEncoderConfig
from omnidiff_lite.tokenizers.characters import check_alphabet, ctc_loss, target_symbols
from omnidiff_lite.tokenizers.speech_encoder import QUERIES, SpeechEncoder
from omnidiff_lite.tokenizers.speech_features import RATE, SHIFT, statistics
from omnidiff_lite.training.fit import fit
from omnidiff_lite.training.utterances import Utterance, draw, padded_length, shown, vary_speed


def train_speech_encoder(config: SpeechEncoderConfig, utterances: Iterable[Utterance], budget: Budget,
                         seed: int = 0, *, name: str = "speech encoder", augment: bool = True,
                         progress: bool = True) -> tuple[SpeechEncoder, pd.DataFrame]:
    """Train an encoder from scratch on (recording, text) pairs; also sets its feature statistics.

    Batches hold recordings of similar length, padded to one of a few shapes. `augment`: vary speeds and hide parts of
    the features (see `utterances`), against over-fitting to the voices. Returns the encoder in eval mode and one row
    per step: loss (nats per character). Raises `ValueError` if a text cannot be spelled in the CTC steps of its
    recording, or the alphabet does not fit.
    """
    check_alphabet(config.ctc_vocabulary, "speech_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SpeechEncoder(config)
    heard = vary_speed(utterances, seed) if augment else utterances
    stacked, texts = zip(*((encoder.stacked(wave), text) for wave, text in heard))  # one recording in memory at a time
    encoder.cmvn.copy_(statistics(torch.cat(stacked)))
    features = [(f + encoder.cmvn[0]) * encoder.cmvn[1] for f in stacked]
    del stacked
    frames = [len(f) for f in features]
    symbols = target_symbols(texts, [n * config.ctc_steps for n in frames])

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        chosen = draw(frames, budget.batch, step, seed)
        lengths = torch.tensor([frames[i] for i in chosen])
        length = padded_length(lengths.tolist(), max(frames))
        batch = torch.stack([F.pad(features[i], (0, 0, 0, length - frames[i])) for i in chosen])
        if augment:
            rate = RATE / SHIFT / config.stride
            batch *= shown(len(chosen), length, config.mels, rate, step, seed).repeat(1, 1, config.stack)
        encoded = encoder(batch.to(encoder.device), lengths)[:, len(QUERIES):]
        return ctc_loss(encoder.log_probs(encoded), lengths * config.ctc_steps, [symbols[i] for i in chosen]), {}

    return encoder, fit(encoder, loss, budget, name=name, seed=seed, progress=progress)
