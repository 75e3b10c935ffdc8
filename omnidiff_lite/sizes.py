"""Sizes of the parts: tokenizers, encoder, decoder and denoiser. The defaults are the released system's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnidiff_lite.strict import ENDLESS, ConfigError, within

FRAME_SECONDS = 0.06  # of a speech encoder frame: 10 ms shift, stride 6
QUERY_FRAMES = 4  # before a recording's frames: language, two for event and emotion, text normalisation
TOKENS_PER_SECOND = 12.5  # of speech


@dataclass(frozen=True)
class TextTokenizerConfig:
    """Byte-level BPE, trained on the world's text; at full size, read from a released directory."""

    size: int = 151643  # ids below the special tokens


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """MAGVIT-v2 with lookup-free quantization (showlab/magvitv2)."""

    patch_size: int = 1  # pixels folded into channels before conv_in; 1 = released
    channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    code_bits: int = 13
    norm_groups: int = 32
    understanding_size: int = 512  # pixels of a picture in a user turn
    generation_size: int = 256  # pixels of a picture in an assistant turn

    @property
    def sizes(self) -> tuple[int, int]:
        """Pixels of a picture in a user turn, and in any other."""
        return self.understanding_size, self.generation_size

    @property
    def codes(self) -> int:
        return 2**self.code_bits

    @property
    def factor(self) -> int:
        """Pixels per token along one side."""
        return self.patch_size * 2 ** (len(self.encoder_multipliers) - 1)


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """SenseVoiceSmall: 80-bin fbank, 7 frames stacked with stride 6, SAN-M encoder, CTC head."""

    mels: int = 80
    stack: int = 7
    stride: int = 6
    dim: int = 512
    heads: int = 4
    ffn: int = 2048
    blocks: int = 50
    tp_blocks: int = 20
    kernel: int = 11
    dropout: float = 0.1
    ctc_vocabulary: int = 25055
    ctc_steps: int = 1  # CTC steps per frame; letters need 2 or more, as they come faster than 60 ms frames
    max_seconds: float = 30.0

    @property
    def input_size(self) -> int:
        return self.mels * self.stack


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """GLM-4-Voice tokenizer: block-causal Whisper encoder, pooled to 12.5 Hz, vector-quantized."""

    mels: int = 128
    dim: int = 1280
    heads: int = 20
    ffn: int = 5120
    layers: int = 16
    positions: int = 1500
    block: int = 200  # 50 Hz frames that see each other
    pooling: int = 4
    codes: int = 16384
    ctc_vocabulary: int = 0  # symbols of the head that trains tokens to carry what is said; 0 = no head (released)
    ctc_steps: int = 4  # that head's CTC steps per token


@dataclass(frozen=True)
class FlowConfig:
    """GLM-4-Voice flow decoder: tokens to mel by flow matching."""

    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    blocks: int = 6
    block: int = 10  # tokens that see each other
    mels: int = 80
    speaker_dim: int = 192
    channels: tuple[int, ...] = (256, 256)
    unet_heads: int = 8
    unet_head_dim: int = 64
    unet_blocks: int = 4
    unet_mid_blocks: int = 12
    steps: int = 10  # Euler steps
    guidance: float = 0.7
    temperature: float = 1.0  # of the starting noise; 1 = released; lower is clearer with a briefly trained flow


@dataclass(frozen=True)
class VocoderConfig:
    """HiFT (released), or Griffin-Lim, which needs no training and is labelled as such."""

    kind: Literal["hift", "griffin-lim"] = "hift"
    base_channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernels: tuple[int, ...] = (16, 16)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    source_kernels: tuple[int, ...] = (7, 11)
    f0_channels: int = 512
    harmonics: int = 8
    n_fft: int = 16
    hop: int = 4
    iterations: int = 60  # Griffin-Lim only


@dataclass(frozen=True)
class SpeechDecoderConfig:
    """Speech tokens at 12.5 Hz to a 22.05 kHz wave."""

    codes: int = 16384
    rate: int = 22050
    flow: FlowConfig = FlowConfig()
    vocoder: VocoderConfig = VocoderConfig()


@dataclass(frozen=True)
class DenoiserSize:
    """The bidirectional Qwen2-style backbone (config_dream_resume.json)."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    rope_theta: float = 1e6
    max_positions: int = 131072
    step_embedding: bool = False  # embeds the masked share of an answer; the paper has none
    output_heads: Literal["shared", "modality"] = "shared"  # modality: a separate layer before each modality's ids
    speech_input: Literal["continuous", "discrete"] = "continuous"  # user speech as encoder frames | speech tokens

    def __post_init__(self) -> None:
        within(self, **dict.fromkeys(("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "rope_theta",
                                      "max_positions"), (1, ENDLESS)))
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ConfigError(f"heads: expected a divisor of hidden_size {self.hidden_size} and a multiple of kv_heads "
                              f"{self.kv_heads}, got {self.heads}")
