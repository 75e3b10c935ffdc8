"""GLM-4-Voice speech tokenizer: a block-causal Whisper encoder, pooled to 12.5 Hz and vector-quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer, sinusoids

from omnidiff_lite.config import SpeechTokenizerConfig
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.tokenizers.speech_encoder import CtcHead
from omnidiff_lite.weights import (CheckpointError, read_json, read_part_config, read_weights, save_part, strict_load,
                                   unfilled)

RATE = 16000
HOP = 160  # samples per mel frame; the second convolution halves the rate to 50 Hz
WHISPER_PREFIX = "model.encoder."


@dataclass(frozen=True)
class Quantized:
    """The tokenizer's output for a batch: n = 50 Hz frames / pooling, rounded up."""

    states: Tensor  # [B, n, dim] before quantizing
    ids: Tensor  # [B, n] int64
    hidden: Tensor  # [B, n, dim] codebook rows (gradients go straight through to `states`) + embed_positions2
    valid: Tensor  # [B, n] bool: the token holds some of the recording
    commitment: Tensor  # scalar: mean squared distance of valid states to their rows, relative to the states' power


class TokenReader(nn.Module):
    """CTC head that reads each token with its two neighbours, so that a letter across a border is spelled once."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.mix = nn.Conv1d(config.dim, config.dim, 3, padding=1)
        self.head = CtcHead(config.dim, config.ctc_steps, config.ctc_vocabulary)

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """hidden [B, n, dim], valid [B, n] (which are tokens) -> log-probabilities [B, n * ctc_steps, symbols]."""
        hidden = hidden * valid[..., None]
        return self.head(hidden + F.gelu(self.mix(hidden.transpose(1, 2))).transpose(1, 2))


class SpeechTokenizer(nn.Module):
    """Released parameter names throughout; the optional `ctc` head is the kit's own and trains with the tokens."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.mels, config.dim, 3)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=2)
        for conv in (self.conv1, self.conv2):  # for training from scratch: sound as strong as the positions added to it
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.embed_positions = _positions(config.positions, config.dim)
        self.layers = nn.ModuleList(WhisperEncoderLayer(_whisper(config)) for _ in range(config.layers))
        self.codebook = nn.Embedding(config.codes, config.dim)
        self.embed_positions2 = _positions(config.positions // config.pooling, config.dim)
        self.ctc = TokenReader(config) if config.ctc_vocabulary else None
        self._extractor = WhisperFeatureExtractor(config.mels)

    @property
    def device(self) -> torch.device:
        return self.conv1.weight.device

    @property
    def samples_per_token(self) -> int:
        """At 16 kHz; 1280 in the release, that is 12.5 tokens per second."""
        return 2 * HOP * self.config.pooling

    @property
    def samples_per_chunk(self) -> int:
        """At 16 kHz; 480,000 in the release, that is 30 s."""
        return 2 * HOP * self.config.positions

    def features(self, waveform: Waveform) -> list[tuple[Tensor, Tensor]]:
        """Whisper's log-mel [mels, T] and mask [T] (int64) of every 30 s chunk at 16 kHz.

        Each chunk is padded separately to whole tokens, as the released code does for a single file, so that its ids
        never depend on the rest of the batch. Raises `MediaError` for an empty recording.
        """
        samples = waveform.resample(RATE).samples
        if not len(samples):
            raise MediaError("the recording is empty; give at least 0.1 s of sound")
        chunks = []
        for start in range(0, len(samples), self.samples_per_chunk):
            out = self._extractor(samples[start:start + self.samples_per_chunk], sampling_rate=RATE, padding="longest",
                                  pad_to_multiple_of=self.samples_per_token, max_length=self.samples_per_chunk,
                                  return_attention_mask=True, return_tensors="pt")
            chunks.append((out["input_features"][0], out["attention_mask"][0]))
        return chunks

    def states(self, features: Tensor, mask: Tensor) -> Tensor:
        """The last layer's output at 50 Hz: features [B, mels, T], mask [B, T] -> [B, ceil(T / 2), dim].

        Raises `MediaError` if T exceeds the positions.
        """
        x = F.gelu(self.conv1(F.pad(features.to(self.conv1.weight), (2, 0))))  # padded on the left only: causal
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)
        length = x.shape[1]
        if length > self.config.positions:
            raise MediaError(f"{length} frames are more than the speech tokenizer's {self.config.positions}; "
                             "encode() cuts longer recordings itself")
        x = x + self.embed_positions.weight[:length]
        block = torch.arange(length, device=self.device) // self.config.block
        visible = (block[None] <= block[:, None]) & mask[:, None, None, ::2].bool().to(self.device)
        for layer in self.layers:
            x = layer(x, visible)
        return x

    def pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """50 Hz states [B, L, dim], mel mask [B, T] -> token states [B, n, dim], and which are valid [B, n] bool."""
        size = self.config.pooling
        missing = -states.shape[1] % size
        pooled = F.pad(states, (0, 0, 0, missing)).unflatten(1, (-1, size)).mean(2)
        return pooled, mask[:, ::2 * size].bool().to(self.device)

    def quantize(self, states: Tensor) -> Tensor:
        """The index of the codebook row nearest to each state [..., dim], by Euclidean distance, as int64 [...]."""
        rows = self.codebook.weight.float()
        flat = states.float().flatten(0, -2)
        # |s|^2 is the same for every row, so it is left out.
        return (rows.square().sum(1) - 2 * flat @ rows.T).argmin(-1).view(states.shape[:-1])

    def forward(self, features: Tensor, mask: Tensor) -> Quantized:
        """features [B, mels, T] padded, mask [B, T] (1 = sound) -> `Quantized`, differentiable."""
        states, valid = self.pool(self.states(features, mask), mask)
        ids = self.quantize(states)
        rows = self.codebook(ids)
        weight = valid[..., None] / valid.sum()
        distance, power = ((v.square() * weight).mean(-1).sum() for v in (states - rows.detach(), states.detach()))
        positions = self.embed_positions2.weight[:ids.shape[1]]
        hidden = states + (rows - states).detach() + positions
        return Quantized(states, ids, hidden, valid, distance / power)

    def encode(self, waveform: Waveform) -> Tensor:
        """Token ids, int64 [n] on the CPU: n = ceil(samples at 16 kHz / 1280), summed over 30 s chunks."""
        return self.encode_many([waveform])[0]

    def encode_many(self, waveforms: list[Waveform], batch_size: int = 16) -> list[Tensor]:
        """`encode` of every recording, chunks batched; the ids do not depend on the batch."""
        return [torch.cat([ids for ids, _ in chunks]) for chunks in self._tokens(waveforms, batch_size)]

    def recognise(self, waveforms: list[Waveform]) -> list[Tensor]:
        """CTC log-probabilities read from the tokens alone, [n * ctc_steps, vocabulary] each.

        Raises `CheckpointError` if there is no `ctc` head, as in the release.
        """
        if self.ctc is None:
            raise CheckpointError("this speech tokenizer has no recognition head: train one with ctc_vocabulary > 0")
        with torch.no_grad():
            return [torch.cat([self.ctc(hidden[None], hidden.new_ones(1, len(hidden)))[0] for _, hidden in chunks])
                    for chunks in self._tokens(waveforms, 16)]

    @torch.no_grad()
    def _tokens(self, waveforms: list[Waveform], batch_size: int) -> list[list[tuple[Tensor, Tensor]]]:
        """For each recording and chunk: ids [n] on the CPU and hidden [n, dim]."""
        chunks = [(i, *chunk) for i, wave in enumerate(waveforms) for chunk in self.features(wave)]
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in waveforms]
        for start in range(0, len(chunks), batch_size):
            owners, features, masks = zip(*chunks[start:start + batch_size])
            out = self(*pad_features(features, masks))
            for i, ids, hidden, valid in zip(owners, out.ids, out.hidden, out.valid):
                found[i].append((ids[valid].cpu(), hidden[valid]))
        return found

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` under the released names, the weights in `dtype` if given."""
        save_part(self, self.config, directory, dtype)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> SpeechTokenizer:
        """Load the kit's own directory or a released one (bare names, or a whole Whisper with `model.encoder.`).

        Raises `CheckpointError` naming what does not fit.
        """
        own = read_part_config(SpeechTokenizerConfig, directory)
        config = own or _released_config(Path(directory) / "config.json")
        state = read_weights(directory)
        part = unfilled(cls, config)
        strict_load(part, state if own else _released(state, config.layers), directory)
        return part.eval()


def pad_features(features: list[Tensor], masks: list[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Chunks [mels, T_i] with masks [T_i] -> one batch [B, mels, T], [B, T]; T = `length` or the longest."""
    length = length or max(f.shape[1] for f in features)
    return (torch.stack([F.pad(f, (0, length - f.shape[1])) for f in features]),
            torch.stack([F.pad(m, (0, length - len(m))) for m in masks]))


def _positions(count: int, dim: int) -> nn.Embedding:
    """A stored, frozen sinusoid table, as in Whisper."""
    return nn.Embedding.from_pretrained(sinusoids(count, dim), freeze=True)


def _whisper(config: SpeechTokenizerConfig) -> WhisperConfig:
    return WhisperConfig(d_model=config.dim, encoder_attention_heads=config.heads, encoder_ffn_dim=config.ffn,
                         dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, attn_implementation="sdpa")


def _released(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors of the quantizing half: no prefix, no decoder, no layer past the codebook, no training statistics."""
    inner = {n.removeprefix(WHISPER_PREFIX): t for n, t in state.items() if n.startswith(WHISPER_PREFIX)} or state

    def wanted(name: str) -> bool:
        head, *rest = name.split(".")
        return not head.startswith("ema_") and head != "layer_norm" and not (
            head == "layers" and int(rest[0]) >= layers)

    return {n: t for n, t in inner.items() if wanted(n)}


def _released_config(path: Path) -> SpeechTokenizerConfig:
    """Sizes from the released `config.json` (Whisper's names and the quantizer's); without it, the released sizes."""
    tree: dict[str, Any] = read_json(path) if path.exists() else {}
    expected = {"pooling_type": "avg", "encoder_causal_convolution": True, "encoder_causal_attention": False,
                "quantize_causal_encoder": False, "activation_function": "gelu", "scale_embedding": False}
    for name, value in expected.items():
        if tree.get(name, value) != value:
            raise CheckpointError(f"{path}: {name} is {tree[name]!r}; only {value!r}, as released, is supported")
    if tree.get("pooling_position") != tree.get("quantize_position"):
        raise CheckpointError(f"{path}: pooling_position {tree.get('pooling_position')} and quantize_position "
                              f"{tree.get('quantize_position')} differ; only equal ones, as released, are supported")
    names = {"d_model": "dim", "encoder_attention_heads": "heads", "encoder_ffn_dim": "ffn", "num_mel_bins": "mels",
             "max_source_positions": "positions", "quantize_position": "layers", "pooling_kernel_size": "pooling",
             "quantize_vocab_size": "codes", "quantize_causal_block_size": "block"}
    return SpeechTokenizerConfig(**{own: tree[name] for name, own in names.items() if name in tree})
