"""Mel to wave: HiFT as in the release (names of `hift.pt`), or Griffin-Lim, which needs no training.

Both take a log mel [mels, T] and return samples [256 T] in -1..1; their randomness comes from the generator passed in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidiff_lite.config import VocoderConfig
from omnidiff_lite.tokenizers.mel import HOP, RATE, WINDOW, linear_magnitude

DILATIONS = (1, 3, 5)
SLOPE = 0.1  # leaky ReLU between stages
SINE_AMPLITUDE, SINE_NOISE, VOICED_ABOVE = 0.1, 0.003, 10.0  # of the source; the last in Hz


class GriffinLim(nn.Module):
    """Phase retrieval with momentum 0.99 (Perraudin et al., 2013). Has no weights."""

    def __init__(self, iterations: int = 60, rate: int = RATE):
        super().__init__()
        self.iterations, self.rate = iterations, rate

    @torch.no_grad()
    def forward(self, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log mel [mels, T] -> samples [256 T]."""
        # One extra frame on either side: every sample then has full overlap in a centred STFT, and our frames, centred
        # on sample 256 t + 128, start half a hop after it.
        magnitude = linear_magnitude(F.pad(mel[None].float(), (1, 1), mode="replicate")[0], self.rate)
        window = torch.hann_window(WINDOW, device=mel.device)
        turns = torch.rand(magnitude.shape, generator=generator).to(mel.device)
        angle = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
        before = torch.zeros_like(angle)
        for _ in range(self.iterations):
            wave = torch.istft(magnitude * angle, WINDOW, HOP, window=window)
            now = torch.stft(wave, WINDOW, HOP, window=window, return_complex=True)
            angle = now - (0.99 / 1.99) * before
            angle = angle / angle.abs().clamp(min=1e-16)
            before = now
        wave = torch.istft(magnitude * angle, WINDOW, HOP, window=window)
        return wave[HOP // 2:][:HOP * mel.shape[-1]].clamp(-0.99, 0.99)


class HiFT(nn.Module):
    """Harmonic-plus-noise source-filter network ending in an inverse STFT (HiFT-Net; CosyVoice's generator)."""

    def __init__(self, config: VocoderConfig, mels: int = 80, rate: int = RATE):
        super().__init__()
        self.config, self.rate = config, rate
        rates, bins = config.upsample_rates, config.n_fft + 2
        widths = [config.base_channels // 2 ** i for i in range(len(rates) + 1)]
        self.m_source = Source(config.harmonics, rate)
        self.conv_pre = NormedConv1d(mels, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            NormedConvTranspose1d(widths[i], widths[i + 1], kernel, stride=times, padding=(kernel - times) // 2)
            for i, (times, kernel) in enumerate(zip(rates, config.upsample_kernels)))
        self.source_downs = nn.ModuleList(
            _source_down(bins, width, math.prod(rates[i + 1:])) for i, width in enumerate(widths[1:]))
        self.source_resblocks = nn.ModuleList(map(ResidualBlock, widths[1:], config.source_kernels))
        self.resblocks = nn.ModuleList(
            ResidualBlock(width, kernel) for width in widths[1:] for kernel in config.resblock_kernels)
        self.conv_post = NormedConv1d(widths[-1], bins, 7, padding=3)
        self.f0_predictor = PitchPredictor(mels, config.f0_channels)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    @torch.no_grad()
    def forward(self, mel: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log mel [mels, T] -> samples [256 T]."""
        return self.synthesize(mel[None], self.source(self.f0_predictor(mel[None]), generator))[0]

    def source(self, f0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pitch [B, T] in Hz (0 = unvoiced) -> excitation [B, 1, samples]."""
        samples_per_frame = math.prod(self.config.upsample_rates) * self.config.hop
        return self.m_source(f0[:, None].repeat_interleave(samples_per_frame, dim=-1), generator)

    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        """Log mel [B, mels, T] and excitation [B, 1, n] -> samples [B, n]."""
        spectrum = self._stft(source[:, 0])
        kernels = len(self.config.resblock_kernels)
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # a centred STFT has one more frame than hops
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum))
            x = sum(block(x) for block in self.resblocks[i * kernels:(i + 1) * kernels]) / kernels
        magnitude, phase = self.conv_post(F.leaky_relu(x)).chunk(2, dim=1)  # slope 0.01 here, as in the release
        magnitude = magnitude.exp().clamp(max=100.0)
        wave = torch.istft(torch.polar(magnitude, phase.sin()), self.config.n_fft, self.config.hop, window=self.window)
        return wave.clamp(-0.99, 0.99)

    def _stft(self, x: Tensor) -> Tensor:
        """[B, n] -> real parts above imaginary parts, [B, n_fft + 2, frames]."""
        spectrum = torch.stft(x, self.config.n_fft, self.config.hop, window=self.window, return_complex=True)
        return torch.cat((spectrum.real, spectrum.imag), dim=1)


class PitchPredictor(nn.Module):
    """Five convolutions with ELU and a linear layer: log mel [B, mels, T] -> f0 [B, T] in Hz."""

    def __init__(self, mels: int, channels: int):
        super().__init__()
        widths = (mels, *[channels] * 5)
        self.condnet = nn.Sequential(*(layer for inputs, outputs in zip(widths, widths[1:])
                                       for layer in (NormedConv1d(inputs, outputs, 3, padding=1), nn.ELU())))
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).mT).squeeze(-1).abs()


class Source(nn.Module):
    """Neural source filter: sines at the pitch and its harmonics where voiced, noise elsewhere, mixed into one."""

    def __init__(self, harmonics: int, rate: int):
        super().__init__()
        self.harmonics, self.rate = harmonics, rate
        self.l_linear = nn.Linear(harmonics + 1, 1)

    def forward(self, f0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """f0 [B, 1, n], one value per sample -> [B, 1, n] in -1..1. Start phases and noise come from `generator`."""
        waves = self.harmonics + 1
        start = torch.rand(len(f0), waves, 1, generator=generator).to(f0.device) - 0.5
        start[:, 0] = 0
        noise = torch.randn(len(f0), waves, f0.shape[-1], generator=generator).to(f0)
        # In turns, not radians, and in float64: a float32 sum drifts out of tune within seconds.
        turns = (f0.double() / self.rate).cumsum(-1) * torch.arange(1, waves + 1, device=f0.device)[:, None]
        sines = SINE_AMPLITUDE * torch.sin(2 * math.pi * ((turns + start) % 1)).to(f0.dtype)
        uv = voiced(f0)
        mixed = uv * (sines + SINE_NOISE * noise) + (1 - uv) * (SINE_AMPLITUDE / 3) * noise
        return torch.tanh(self.l_linear(mixed.mT)).mT


def voiced(f0: Tensor) -> Tensor:
    """1 where the pitch counts as voiced, above 10 Hz, else 0."""
    return (f0 > VOICED_ABOVE).to(f0.dtype)


class ResidualBlock(nn.Module):
    """Three pairs of (Snake, dilated convolution, Snake, convolution), each with its residual."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.convs1 = nn.ModuleList(
            NormedConv1d(width, width, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in DILATIONS)
        self.convs2 = nn.ModuleList(NormedConv1d(width, width, kernel, padding=(kernel - 1) // 2) for _ in DILATIONS)
        self.activations1 = nn.ModuleList(Snake(width) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(width) for _ in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for first, conv, second, plain in zip(self.activations1, self.convs1, self.activations2, self.convs2):
            x = x + plain(second(conv(first(x))))
        return x


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, alpha learned per channel (Ziyin et al., 2020)."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


class WeightNorm:
    """Mixin for a convolution: its weight is weight_g * weight_v / |weight_v|, with the norm per slice of dim 0.

    These are the released names; torch's own parametrization uses others.
    """

    def __init__(self, *args: int, **kwargs: int):
        super().__init__(*args, **kwargs)
        direction = self.weight  # the convolution's own parameter, which hides the property below until deleted
        del self.weight
        self.weight_v = direction
        self.weight_g = nn.Parameter(direction.detach().norm(dim=(1, 2), keepdim=True))

    @property
    def weight(self) -> Tensor:
        return self.weight_g * self.weight_v / self.weight_v.norm(dim=(1, 2), keepdim=True)


class NormedConv1d(WeightNorm, nn.Conv1d):
    """1-D convolution with weight norm."""


class NormedConvTranspose1d(WeightNorm, nn.ConvTranspose1d):
    """Transposed 1-D convolution with weight norm."""


def _source_down(bins: int, width: int, rate: int) -> nn.Conv1d:
    """Brings the source's spectrum from the last stage's frame rate down to an earlier stage's."""
    if rate == 1:
        return nn.Conv1d(bins, width, 1)
    return nn.Conv1d(bins, width, 2 * rate, stride=rate, padding=rate // 2)
