"""Training the speech decoder's flow on one voice: tokens and waves in, a decoder that re-synthesises them out.

The loss is conditional flow matching plus that of the prior mu (Matcha-TTS), on crops of whole tokens. Only the flow
trains: Griffin-Lim has no weights, and HiFT is used as released.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from omnidiff_lite.config import Budget, SpeechDecoderConfig
from omnidiff_lite.media import Waveform
from omnidiff_lite.sizes import TOKENS_PER_SECOND
from omnidiff_lite.tokenizers.mel import frame_count, log_mel
from omnidiff_lite.tokenizers.speech_decoder import Ids, SpeechDecoder
from omnidiff_lite.training.fit import fit


def train_speech_decoder(config: SpeechDecoderConfig, tokens: Sequence[Ids], waves: Sequence[Waveform], budget: Budget,
                         seed: int = 0, *, crop: int = 32, prior_weight: float = 1.0,
                         progress: bool = True) -> tuple[SpeechDecoder, pd.DataFrame]:
    """Train a decoder on utterances of one voice, given their speech tokens [n] at 12.5 Hz.

    Every step takes `budget.batch` crops of `crop` tokens (32: 2.56 s). Utterances are first joined end to end, so that
    none is too short to crop. Returns the decoder in eval mode and one row per step: loss, flow, prior.
    `prior_weight` scales the loss of mu.
    Raises `ValueError` if tokens and waves do not belong together, or are too few.
    """
    ids, mel = _joined(config, tokens, waves)
    crop = min(crop, len(ids) // 2)
    if crop < 1:
        raise ValueError(f"{len(ids)} speech tokens in all: give at least a few seconds of speech")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = SpeechDecoder(config)
    _start_from_mean(decoder, mel)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = _crops(ids, mel, crop, budget.batch, config.rate, generator)
        flow, prior = decoder.flow.loss(*(t.to(decoder.device) for t in batch), generator)
        return flow + prior_weight * prior, {"flow": flow.item(), "prior": prior.item()}

    return decoder, fit(decoder, loss, budget, name="speech decoder", seed=seed, progress=progress)


def _joined(config: SpeechDecoderConfig, tokens: Sequence[Ids], waves: Sequence[Waveform]) -> tuple[Tensor, Tensor]:
    """All tokens [n] and their mel [mels, frame_count(n)], joined.

    Token i covers the samples from i / 12.5 s on, so every wave is cut or padded to its tokens before they are joined.
    """
    if len(tokens) != len(waves) or not tokens:
        raise ValueError(f"{len(tokens)} token lists for {len(waves)} waves: give one list a wave, and at least one")
    pieces = []
    for number, (ids, wave) in enumerate(zip(tokens, waves)):
        samples = torch.from_numpy(wave.resample(config.rate).samples)
        wanted = round(len(ids) * config.rate / TOKENS_PER_SECOND)
        if abs(len(samples) - wanted) > config.rate // 4:
            raise ValueError(f"utterance {number}: {len(ids)} tokens are {len(ids) / TOKENS_PER_SECOND:.2f} s, but the "
                             f"wave lasts {len(samples) / config.rate:.2f} s; give the tokens of this wave")
        pieces.append(F.pad(samples, (0, wanted - len(samples))))
    ids = torch.cat([torch.as_tensor(i).long() for i in tokens])
    return ids, log_mel(torch.cat(pieces), config.flow.mels, config.rate)


def _crops(ids: Tensor, mel: Tensor, crop: int, batch: int, rate: int,
           generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`batch` random windows: tokens [batch, crop] and their mel [batch, mels, frame_count(crop)]."""
    starts = torch.randint(len(ids) - crop + 1, (batch,), generator=generator).tolist()
    frames = frame_count(crop, rate)
    first = [min(frame_count(start, rate), mel.shape[-1] - frames) for start in starts]
    return (torch.stack([ids[start:start + crop] for start in starts]),
            torch.stack([mel[:, start:start + frames] for start in first]))


def _start_from_mean(decoder: SpeechDecoder, mel: Tensor) -> None:
    """Start mu and the velocity from the voice's mean mel; from zero, they would need many steps to find it."""
    mean = mel.mean(dim=1)
    with torch.no_grad():
        decoder.flow.length_regulator.model[-1].bias.copy_(mean)
        decoder.flow.decoder.estimator.final_proj.bias.copy_(mean)
