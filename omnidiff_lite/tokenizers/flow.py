"""Speech tokens to mel frames by conditional flow matching (CosyVoice's flow, as retrained for GLM-4-Voice).

An ODE carries noise at t = 0 to a mel spectrogram at t = 1. Its velocity is estimated from the tokens (through mu, one
80-wide frame per mel frame), a speaker vector and, optionally, the first frames of the answer (the prompt).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnidiff_lite.config import FlowConfig
from omnidiff_lite.tokenizers.flow_encoder import BlockEncoder, LengthRegulator
from omnidiff_lite.tokenizers.flow_unet import Estimator

SIGMA_MIN = 1e-6  # noise width at the path's end, from the released config.yaml


class Decoder(nn.Module):
    """Holds the estimator under its released name, `decoder.estimator`."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.estimator = Estimator(config)


class Flow(nn.Module):
    """All of the released `flow.pt`, under its names.

    `codes`: size of the speech codebook.
    """

    def __init__(self, config: FlowConfig, codes: int):
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(codes, config.dim)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, config.mels)
        self.encoder = BlockEncoder(config)
        self.encoder_proj = nn.Linear(config.dim, config.mels)
        self.length_regulator = LengthRegulator(config.mels)
        self.decoder = Decoder(config)

    def mu(self, ids: Tensor, frames: int) -> Tensor:
        """Tokens [B, n] -> the token condition [B, mels, frames]."""
        hidden = self.encoder_proj(self.encoder(self.input_embedding(ids)))
        return self.length_regulator(hidden.transpose(1, 2), frames)

    def speaker(self, embedding: Tensor) -> Tensor:
        """Speaker embedding [B, speaker_dim], of any norm as only its direction counts, -> [B, mels].

        Zeros, which Omni-Diffusion always passes, leave only the bias.
        """
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    @torch.no_grad()
    def sample(self, ids: Tensor, noise: Tensor, speaker: Tensor | None = None, prompt: Tensor | None = None,
               steps: int | None = None, guidance: float | None = None, temperature: float | None = None) -> Tensor:
        """Integrate from `noise` [B, mels, T] to a mel [B, mels, T] for the tokens `ids` [B, n].

        `prompt` [B, mels, P], P <= T: the mel frames already spoken; the result holds all T frames, the first P of
        which are to be discarded. `steps`, `guidance` and `temperature` (scale of the noise) default to the
        configuration.
        """
        steps = self.config.steps if steps is None else steps
        guidance = self.config.guidance if guidance is None else guidance
        temperature = self.config.temperature if temperature is None else temperature
        embedding = noise.new_zeros(len(ids), self.config.speaker_dim) if speaker is None else speaker
        known = torch.zeros_like(noise)
        if prompt is not None:
            known[..., :prompt.shape[-1]] = prompt
        conditions = self.mu(ids, noise.shape[-1]), self.speaker(embedding), known
        times = cosine_time(torch.linspace(0, 1, steps + 1, device=noise.device))
        x = temperature * noise
        for now, then in zip(times[:-1], times[1:]):
            x = x + (then - now) * self.velocity(x, now, conditions, guidance)
        return x

    def velocity(self, x: Tensor, t: Tensor, conditions: tuple[Tensor, Tensor, Tensor], guidance: float) -> Tensor:
        """Classifier-free guidance: (1 + g) v(x, t, conditions) - g v(x, t, zeros), in one doubled batch."""
        if guidance == 0:
            return self.decoder.estimator(x, t.expand(len(x)), *conditions)
        both = [torch.cat((c, torch.zeros_like(c))) for c in conditions]
        guided, free = self.decoder.estimator(x.repeat(2, 1, 1), t.expand(2 * len(x)), *both).chunk(2)
        return (1 + guidance) * guided - guidance * free

    def loss(self, ids: Tensor, mel: Tensor, generator: torch.Generator, unconditional: float = 0.2,
             prompted: float = 0.5) -> tuple[Tensor, Tensor]:
        """Conditional flow-matching loss of tokens [B, n] against their mel [B, mels, T], and the mel prior loss.

        With t from the cosine law and noise z, x = (1 - (1 - s) t) z + t mel must move by mel - (1 - s) z (mean squared
        error). For guidance, all conditions are zeroed in a share `unconditional` of the samples; a share `prompted`
        gets up to the first 80 % of its mel as the prompt (cosyvoice/flow/flow.py, `forward`). The second loss is that
        of mu against the mel, as in Matcha-TTS. `generator` is on the CPU; the speaker is the zero vector.
        """
        batch, _, frames = mel.shape
        mu = self.mu(ids, frames)
        speaker = self.speaker(mel.new_zeros(batch, self.config.speaker_dim))

        def uniform() -> Tensor:
            return torch.rand(batch, 1, 1, generator=generator).to(mel.device)

        t = cosine_time(uniform())
        kept = (uniform() >= unconditional).to(mel.dtype)
        known = torch.where(uniform() < prompted, (0.8 * frames * uniform()).floor(), 0.0)
        prompt = mel * (torch.arange(frames, device=mel.device) < known)
        noise = torch.randn(mel.shape, generator=generator).to(mel)
        x = (1 - (1 - SIGMA_MIN) * t) * noise + t * mel
        velocity = self.decoder.estimator(x, t.flatten(), mu * kept, speaker * kept[..., 0], prompt * kept)
        return F.mse_loss(velocity, mel - (1 - SIGMA_MIN) * noise), F.mse_loss(mu, mel)


def cosine_time(u: Tensor) -> Tensor:
    """Uniform 0..1 -> flow time 0..1, slow at the start: 1 - cos(pi u / 2)."""
    return 1 - torch.cos(u * (math.pi / 2))
