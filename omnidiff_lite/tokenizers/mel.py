"""The log-mel spectrogram of the speech decoder (HiFi-GAN's), and its inverse up to phase.

80 Slaney bins over 0..8000 Hz at 22.05 kHz, window and FFT of 1024 samples, hop 256. Frame t is centred on sample
256 t + 128, so n samples give n // 256 frames, and a vocoder returns 256 samples for each.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from omnidiff_lite.sizes import TOKENS_PER_SECOND

RATE = 22050  # Hz
HOP = 256
WINDOW = 1024
MEL_MAX_HZ = 8000.0
FLOOR = 1e-5  # of a mel magnitude, before the log


def frame_count(tokens: int, rate: int = RATE) -> int:
    """Mel frames for a number of speech tokens: 1 -> 6, 10 -> 68, 25 -> 172 (cosyvoice/flow/flow.py, `inference`)."""
    return int(tokens * rate / (TOKENS_PER_SECOND * HOP))


@lru_cache
def mel_filters(mels: int = 80, rate: int = RATE) -> Tensor:
    """Triangles of unit area on Slaney's mel scale, [mels, WINDOW // 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(WINDOW // 2 + 1, mels, 0.0, MEL_MAX_HZ, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters.T.copy()).float()


def log_mel(samples: Tensor, mels: int = 80, rate: int = RATE) -> Tensor:
    """Samples [n] in -1..1 at `rate` Hz -> natural-log mel magnitudes [mels, n // 256], at least log(1e-5).

    Raises `ValueError` below 385 samples: the reflection at the edges needs them.
    """
    edge = (WINDOW - HOP) // 2
    if len(samples) <= edge:
        raise ValueError(f"a mel spectrogram needs more than {edge} samples at {rate} Hz, got {len(samples)}")
    padded = F.pad(samples[None], (edge, edge), mode="reflect")[0]
    window = torch.hann_window(WINDOW, device=samples.device)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    magnitude = (spectrum.abs().square() + 1e-9).sqrt()
    return (mel_filters(mels, rate).to(samples.device) @ magnitude).clamp(min=FLOOR).log()


def linear_magnitude(mel: Tensor, rate: int = RATE, iterations: int = 30) -> Tensor:
    """Log mel [mels, T] -> the non-negative STFT magnitude [WINDOW // 2 + 1, T] whose mel is nearest to it.

    Multiplicative least-squares updates (Lee and Seung, 2001) from the transposed filters; bins above 8 kHz stay 0.
    """
    filters = mel_filters(mel.shape[0], rate).to(mel.device)
    wanted = filters.T @ mel.exp()
    magnitude = filters.T @ (mel.exp() / filters.square().sum(1, keepdim=True))
    for _ in range(iterations):
        magnitude = magnitude * wanted / (filters.T @ (filters @ magnitude)).clamp(min=1e-10)
    return magnitude
