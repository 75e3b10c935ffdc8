"""SenseVoice's front end: Kaldi log-mel filter bank, stacked frames, and their normalization."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.weights import CheckpointError

RATE = 16000
WINDOW, SHIFT = 400, 160  # 25 ms and 10 ms
LOG_FLOOR = 1.192092955078125e-07  # float32 epsilon, Kaldi's floor under the logarithm


def fbank(waveform: Waveform, mels: int = 80) -> Tensor:
    """Kaldi's log-mel filter bank: [1 + (n - 400) // 160, mels] for n samples at 16 kHz; other rates are resampled.

    Hamming window, 20 to 8000 Hz, pre-emphasis 0.97, mean of each window removed, no frame beyond the edge (FunASR's
    WavFrontend). Dither is 0: the released default of 1 makes the features differ from call to call.
    A clip under 25 ms is one frame, with the clip as its window. Raises `MediaError` for an empty one.
    """
    samples = waveform.resample(RATE).samples.astype(np.float64) * 2**15  # Kaldi works on 16-bit values
    if not len(samples):
        raise MediaError("the recording is empty; give at least 0.1 s of sound")
    window, filters = _bank(min(WINDOW, len(samples)), mels)
    frames = spectrogram(
        samples, window, len(window), SHIFT, fft_length=2 * (len(filters) - 1), power=2.0, center=False,
        preemphasis=0.97, remove_dc_offset=True, mel_filters=filters, log_mel="log", mel_floor=LOG_FLOOR)
    return torch.from_numpy(np.ascontiguousarray(frames.T))


@functools.lru_cache
def _bank(window: int, mels: int) -> tuple[np.ndarray, np.ndarray]:
    """Window [window] and mel filters [fft / 2 + 1, mels]; the FFT is the next power of two, 512 for 25 ms."""
    fft = max(2, 1 << (window - 1).bit_length())
    filters = mel_filter_bank(fft // 2 + 1, mels, 20.0, RATE / 2, RATE, mel_scale="kaldi",
                              triangularize_in_mel_space=True)
    return window_function(window, "hamming", periodic=False), filters


def stack_frames(frames: Tensor, stack: int = 7, stride: int = 6) -> Tensor:
    """Low frame rate: [T, mels] -> [ceil(T / stride), stack * mels].

    A window of `stack` frames starts every `stride` frames; copies of the first frame in front (3 for 7) centre the
    first window, and past the end the last frame repeats. 10 ms frames become 60 ms ones at the released 7 and 6.
    """
    count = -(-len(frames) // stride)
    positions = torch.arange(count)[:, None] * stride + torch.arange(stack) - (stack - 1) // 2
    return frames[positions.clamp(0, len(frames) - 1)].flatten(1)


def statistics(stacked: Tensor) -> Tensor:
    """Mean and variance normalization for stacked features [T, d], as [2, d]: -mean and 1 / std."""
    return torch.stack([-stacked.mean(0), 1 / stacked.std(0).clamp_min(1e-3)])


def read_statistics(path: str | Path) -> Tensor:
    """The same [2, d] from the `am.mvn` text of a released SenseVoiceSmall. Raises `CheckpointError`."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; am.mvn comes with the SenseVoiceSmall download") from None
    rows = []
    for name in ("AddShift", "Rescale"):
        values = re.search(rf"<{name}>[^\[]*<LearnRateCoef>[^\[]*\[([^\]]*)\]", text)
        if values is None:
            raise CheckpointError(f"{path}: holds no <{name}> values; fetch am.mvn of SenseVoiceSmall again")
        rows.append([float(value) for value in values.group(1).split()])
    if len(rows[0]) != len(rows[1]):
        raise CheckpointError(f"{path}: {len(rows[0])} shifts but {len(rows[1])} scales; fetch it again")
    return torch.tensor(rows)
