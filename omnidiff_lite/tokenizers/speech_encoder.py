"""SenseVoice: speech to continuous frames for the denoiser, and a CTC head that reads them.

It has its own modules rather than transformers' `FunAsrNanoEncoder` (the same network): here a layer is thirty lines,
and the parameters have the released names, so that checkpoints are read and written without a renaming table.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from omnidiff_lite.config import SpeechEncoderConfig
from omnidiff_lite.media import MediaError, Waveform
from omnidiff_lite.tokenizers.speech_features import fbank, read_statistics, stack_frames
from omnidiff_lite.weights import CheckpointError, read_part_config, read_weights, save_part, strict_load, unfilled

QUERIES = (0, 1, 2, 15)  # rows of `embed`: language "auto", event, emotion, no inverse text normalization
QUERY_ROWS = 16
OMNI_PREFIX = "model.audio_model.model."


def sinusoid(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """Positions 1 to `length` as [length, size] float32: sines, then cosines, timescales 1 to 10,000."""
    half = size // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10000.0) / (half - 1)))
    angles = torch.arange(1, length + 1, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SanmAttention(nn.Module):
    """Self-attention with a memory: a depthwise convolution over the values is added to the attention output."""

    def __init__(self, size: int, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.linear_q_k_v = nn.Linear(size, 3 * config.dim)
        self.linear_out = nn.Linear(config.dim, config.dim)
        self.fsmn_block = nn.Conv1d(config.dim, config.dim, config.kernel, padding=config.kernel // 2,
                                    groups=config.dim, bias=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, size], valid [B, T] bool -> [B, T, dim]."""
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        memory = self.memory(value, valid[..., None])
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None],
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.linear_out(mixed.transpose(1, 2).flatten(2)) + memory

    def memory(self, value: Tensor, valid: Tensor) -> Tensor:
        """Convolution plus identity, with padding zeroed before and after."""
        value = value * valid
        local = self.fsmn_block(value.transpose(1, 2)).transpose(1, 2)
        return F.dropout((local + value) * valid, self.dropout, self.training)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.w_1 = nn.Linear(config.dim, config.ffn)
        self.w_2 = nn.Linear(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., dim]."""
        return self.w_2(F.dropout(self.w_1(x).relu(), self.dropout, self.training))


class SanmLayer(nn.Module):
    """Pre-norm layer. If the input is not `dim` wide (in the first layer), attention has no residual."""

    def __init__(self, size: int, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.dropout, self.residual = config.dropout, size == config.dim
        self.self_attn = SanmAttention(size, config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(size)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        attended = F.dropout(self.self_attn(self.norm1(x), valid), self.dropout, self.training)
        x = x + attended if self.residual else attended
        return x + F.dropout(self.feed_forward(self.norm2(x)), self.dropout, self.training)


class SanmEncoder(nn.Module):
    """`blocks` layers and a norm, then `tp_blocks` layers and a norm; 50 and 20 in the release."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.dim)
        self.encoders0 = nn.ModuleList([SanmLayer(config.input_size, config)])
        self.encoders = nn.ModuleList(SanmLayer(config.dim, config) for _ in range(config.blocks - 1))
        self.after_norm = nn.LayerNorm(config.dim)
        self.tp_encoders = nn.ModuleList(SanmLayer(config.dim, config) for _ in range(config.tp_blocks))
        self.tp_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, input_size], valid [B, T] bool -> [B, T, dim]; rows that are not valid are meaningless."""
        # The input is scaled by the root of the *output* size. In bfloat16 the released code also builds this table in
        # bfloat16, which cannot hold positions above 256; here it is built in float32, then cast.
        x = x * self.scale + sinusoid(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, valid)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, valid)
        return self.tp_norm(x)


class CtcHead(nn.Module):
    """`steps` CTC steps per frame, each over `vocabulary` symbols; in the release 1 step over 25,055 word pieces."""

    def __init__(self, dim: int, steps: int, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.ctc_lo = nn.Linear(dim, steps * vocabulary)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, dim] -> log-probabilities [B, T * steps, vocabulary], float32."""
        return self.ctc_lo(frames).unflatten(-1, (-1, self.vocabulary)).flatten(1, 2).float().log_softmax(-1)


class SpeechEncoder(nn.Module):
    """SenseVoice with the four query rows of Omni-Diffusion in front: 60 ms per frame at the released stride."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SanmEncoder(config)
        self.ctc = CtcHead(config.dim, config.ctc_steps, config.ctc_vocabulary)
        self.embed = nn.Embedding(QUERY_ROWS, config.input_size)
        # No normalization until `statistics` of training data, or those of a released am.mvn, are stored here.
        self.register_buffer("cmvn", torch.tensor([[0.0], [1.0]]).repeat(1, config.input_size))

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def stacked(self, waveform: Waveform) -> Tensor:
        """Features before normalization, [frames, input_size]; raises `MediaError` over `config.max_seconds`."""
        if waveform.seconds > self.config.max_seconds:
            raise MediaError(f"the recording is {waveform.seconds:.1f} s long; the speech encoder takes up to "
                             f"{self.config.max_seconds:g} s, cut it into pieces")
        return stack_frames(fbank(waveform, self.config.mels), self.config.stack, self.config.stride)

    def features(self, waveform: Waveform) -> Tensor:
        """The input of `forward`: [frames, input_size] float32 on the CPU, from any sample rate.

        frames = ceil(T / stride) for T = 1 + (samples at 16 kHz - 400) // 160. Raises `MediaError`, and
        `CheckpointError` if a released checkpoint came without its am.mvn.
        """
        shift, scale = self.cmvn.float().cpu()
        if shift.isnan().any():
            raise CheckpointError("the speech encoder was loaded without feature statistics; put the am.mvn of "
                                  "SenseVoiceSmall beside its weights, or name it: from_pretrained(dir, cmvn=path)")
        return (self.stacked(waveform) + shift) * scale

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Padded [B, T, input_size], lengths [B] -> [B, T + 4, dim]; the first lengths + 4 rows of each are valid."""
        queries = self.embed.weight[list(QUERIES)].expand(len(features), -1, -1)
        x = torch.cat([queries, features.to(queries)], dim=1)
        valid = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None] + len(QUERIES)
        return self.encoder(x, valid)

    def log_probs(self, encoded: Tensor) -> Tensor:
        """CTC log-probabilities of `forward`'s rows: [B, T + 4, dim] -> [B, (T + 4) * ctc_steps, ctc_vocabulary]."""
        return self.ctc(encoded)

    @torch.no_grad()
    def encode(self, waveforms: list[Waveform], batch_size: int = 16) -> list[Tensor]:
        """The valid rows of each recording, [frames + 4, dim], on the parameters' device."""
        rows: list[Tensor] = []
        for start in range(0, len(waveforms), batch_size):
            features = [self.features(w) for w in waveforms[start:start + batch_size]]
            lengths = torch.tensor([len(f) for f in features])
            encoded = self(nn.utils.rnn.pad_sequence(features, batch_first=True), lengths)
            rows += [e[:n + len(QUERIES)] for e, n in zip(encoded, lengths.tolist())]
        return rows

    def recognise(self, waveforms: list[Waveform]) -> list[Tensor]:
        """CTC log-probabilities of the speech only (without the queries), [frames * ctc_steps, vocabulary] each."""
        return [self.ctc(rows[None, len(QUERIES):])[0] for rows in self.encode(waveforms)]

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`: released names, and the feature statistics as `cmvn`."""
        save_part(self, self.config, directory, dtype)

    @classmethod
    def from_pretrained(cls, directory: str | Path, cmvn: str | Path | None = None) -> SpeechEncoder:
        """Load the kit's own directory, a released SenseVoiceSmall, or an Omni-Diffusion checkpoint that holds one.

        `cmvn`: the released `am.mvn`, if it is not in `directory`. Raises `CheckpointError`.
        """
        directory = Path(directory)
        if own := read_part_config(SpeechEncoderConfig, directory):
            part = unfilled(cls, own)
            strict_load(part, read_weights(directory), directory)
            return part.eval()
        inner = read_weights(directory, prefix=OMNI_PREFIX)
        state = {n.removeprefix(OMNI_PREFIX): t for n, t in inner.items()} or read_weights(directory)
        part = unfilled(cls, _released_config(directory, state))
        strict_load(part, state, directory, derivable=lambda name: name == "cmvn")
        path = Path(cmvn or directory / "am.mvn")
        part.cmvn.copy_(read_statistics(path) if cmvn or path.exists() else torch.tensor(float("nan")))
        return part.eval()


def _released_config(directory: Path, state: dict[str, Tensor]) -> SpeechEncoderConfig:
    """Sizes from FunASR's `config.yaml` if there is one, else from the weights, which do not show the heads: 4."""
    sizes = _sizes(state)
    if (path := directory / "config.yaml").exists():
        tree = _read_yaml(path)
        names = {
            "encoder_conf": {"output_size": "dim", "attention_heads": "heads", "linear_units": "ffn",
                             "num_blocks": "blocks", "tp_blocks": "tp_blocks", "kernel_size": "kernel"},
            "frontend_conf": {"n_mels": "mels", "lfr_m": "stack", "lfr_n": "stride"}}
        sizes |= {own: tree[section][name] for section, table in names.items() for name, own in table.items()
                  if name in (tree.get(section) or {})}
    return SpeechEncoderConfig(**sizes)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        tree = None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: not YAML with sections; it may be half-written, fetch it again")
    return tree


def _sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The sizes that the shapes show. None for a file without these tensors: loading it names what is missing."""
    places = {"dim": ("encoder.after_norm.weight", 0), "ctc_vocabulary": ("ctc.ctc_lo.bias", 0),
              "ffn": ("encoder.encoders0.0.feed_forward.w_1.weight", 0),
              "kernel": ("encoder.encoders0.0.self_attn.fsmn_block.weight", 2)}
    sizes: dict[str, Any] = {size: state[name].shape[axis] for size, (name, axis) in places.items() if name in state}
    if "dim" in sizes:
        layers = {name.rpartition(".norm1")[0] for name in state if name.endswith(".norm1.weight")}
        sizes["tp_blocks"] = sum(layer.startswith("encoder.tp_encoders.") for layer in layers)
        sizes["blocks"] = len(layers) - sizes["tp_blocks"]
    return sizes
