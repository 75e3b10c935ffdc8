"""Speech out: GLM-4-Voice's decoder, tokens at 12.5 Hz -> mel (flow matching) -> wave at 22.05 kHz (vocoder).

At full size the released `flow.pt` and `hift.pt` load by name. The small configuration is the same flow, narrower,
with Griffin-Lim as the vocoder. Everything random comes from a generator seeded for each call; the released code
resets the global generator instead (cosyvoice/flow/flow_matching.py, `torch.manual_seed(42)` in every forward).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from omnidiff_lite.config import SpeechDecoderConfig
from omnidiff_lite.media import Waveform
from omnidiff_lite.tokenizers.flow import Flow
from omnidiff_lite.tokenizers.mel import frame_count
from omnidiff_lite.tokenizers.released_decoder import read_released_config
from omnidiff_lite.tokenizers.vocoder import GriffinLim, HiFT
from omnidiff_lite.weights import CheckpointError, read_part_config, read_weights, save_part, strict_load, unfilled

Ids = Sequence[int] | np.ndarray | Tensor


class SpeechDecoder(nn.Module):
    """Speech tokens -> a wave (section 3.1 of the paper).

    `flow` and `vocoder` are the two halves; with Griffin-Lim the second has no weights.
    """

    def __init__(self, config: SpeechDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.flow = Flow(config.flow, config.codes)
        self.vocoder = HiFT(config.vocoder, config.flow.mels, config.rate) if config.vocoder.kind == "hift" else \
            GriffinLim(config.vocoder.iterations, config.rate)

    def decode(self, ids: Ids, seed: int = 0, *, speaker: Tensor | None = None, prompt_ids: Ids | None = None,
               prompt_mel: Tensor | None = None) -> Waveform:
        """Token ids [n] -> a mono wave of `frame_count(n)` x 256 samples, a function of the arguments alone.

        The other arguments are as in `mel`. Raises `ValueError` for no ids, or one outside the codebook.
        """
        return self._voice(self.mel(ids, seed, speaker=speaker, prompt_ids=prompt_ids, prompt_mel=prompt_mel), seed)

    def decode_many(self, batch: Sequence[Ids], seed: int = 0) -> list[Waveform]:
        """Several utterances, each as `decode(ids, seed)` gives it; those of equal length share a batch."""
        checked = [self._checked(ids) for ids in batch]
        waves: dict[int, Waveform] = {}
        for length in {len(ids) for ids in checked}:
            members = [i for i, ids in enumerate(checked) if len(ids) == length]
            noise = self._noise(frame_count(length, self.config.rate), seed).expand(len(members), -1, -1)
            mels = self.flow.sample(torch.stack([checked[i] for i in members]), noise)
            waves |= {i: self._voice(mel, seed) for i, mel in zip(members, mels)}
        return [waves[i] for i in range(len(checked))]

    def mel(self, ids: Ids, seed: int = 0, *, speaker: Tensor | None = None, prompt_ids: Ids | None = None,
            prompt_mel: Tensor | None = None, steps: int | None = None, guidance: float | None = None,
            temperature: float | None = None) -> Tensor:
        """Token ids [n] -> a log mel [mels, T].

        `speaker` [speaker_dim]: the voice; zeros by default, as in Omni-Diffusion. `prompt_ids` [m] and `prompt_mel`
        [mels, P]: what has already been spoken, in streaming; the result continues it, with T = frame_count(m + n) - P.
        The rest overrides the configuration.
        """
        checked = self._checked(ids)
        if (prompt_ids is None) != (prompt_mel is None):
            raise ValueError("a prompt is both prompt_ids and prompt_mel, the tokens and the mel of the same sound")
        known = 0
        if prompt_ids is not None:
            checked = torch.cat((self._checked(prompt_ids), checked))
            known = prompt_mel.shape[-1]
        frames = frame_count(len(checked), self.config.rate)
        if known >= frames:
            raise ValueError(f"the prompt's mel has {known} frames, but prompt and ids together only fill {frames}; "
                             "give the mel of prompt_ids alone")
        mel = self.flow.sample(
            checked[None], self._noise(frames, seed), None if speaker is None else speaker[None].to(self.device),
            None if prompt_mel is None else prompt_mel[None].to(self.device), steps, guidance, temperature)
        return mel[0, :, known:]

    @property
    def device(self) -> torch.device:
        return self.flow.input_embedding.weight.device

    def _checked(self, ids: Ids) -> Tensor:
        ids = torch.as_tensor(np.asarray(ids) if not isinstance(ids, Tensor) else ids, device=self.device)
        if ids.dim() != 1 or len(ids) == 0:
            raise ValueError(f"speech token ids {list(ids.shape)}: expected [n] with n of at least 1 (0.08 s each)")
        ids = ids.long()
        if ids.min() < 0 or ids.max() >= self.config.codes:
            raise ValueError(f"speech token ids {int(ids.min())}..{int(ids.max())}: expected 0..{self.config.codes - 1}"
                             "; subtract the vocabulary's offset with `Vocabulary.codes_of_speech`")
        return ids

    def _noise(self, frames: int, seed: int) -> Tensor:
        """The flow's start [1, mels, frames], drawn on the CPU: the same on every device (seed 42 = released)."""
        noise = torch.randn(1, self.config.flow.mels, frames, generator=torch.Generator().manual_seed(seed))
        return noise.to(self.flow.input_embedding.weight)

    def _voice(self, mel: Tensor, seed: int) -> Waveform:
        samples = self.vocoder(mel, torch.Generator().manual_seed(seed))
        return Waveform(samples.float().cpu().numpy(), self.config.rate)

    @classmethod
    def from_pretrained(cls, directory: str | Path, config: SpeechDecoderConfig | None = None) -> SpeechDecoder:
        """Load the kit's own directory, or the released one: `flow.pt` and `hift.pt`, with sizes from `config.yaml` if
        there is one, else `config`, else full size. Raises `CheckpointError` if something does not fit."""
        directory = Path(directory)
        own = read_part_config(SpeechDecoderConfig, directory)
        if own is not None:
            decoder = unfilled(cls, own)
            strict_load(decoder, read_weights(directory), directory)
            return decoder.eval()
        decoder = unfilled(cls, read_released_config(directory) or config or SpeechDecoderConfig())
        for part, name in ((decoder.flow, "flow.pt"), (decoder.vocoder, "hift.pt")):
            if not (directory / name).is_file():
                raise CheckpointError(f"{directory}: no {name}; a released speech decoder is flow.pt and hift.pt, "
                                      "the kit's own is config.json and model.safetensors")
            strict_load(part, read_weights(directory / name), directory / name)
        return decoder.eval()

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, the latter in `dtype` if given."""
        save_part(self, self.config, directory, dtype)
