"""The denoiser: a bidirectional Qwen2-style transformer with a speech adapter (section 3.2 of the paper).

It is transformers' own Qwen2 with `is_causal=False`, under the parameter names of the released checkpoint.
`is_causal=True` makes the same class the autoregressive twin.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2PreTrainedModel
from transformers.utils import ModelOutput

from omnidiff_lite.adapters import ModalityHeads, SpeechAdapter, StepEmbedding
from omnidiff_lite.config import ConfigError, DenoiserSize
from omnidiff_lite.vocabulary import Vocabulary
from omnidiff_lite.weights import CheckpointError, read_weights, write_json

PADDING = -1  # segment id of positions that no other token sees
SPEECH_ENCODER = "model.audio_model."  # the released file's frozen speech encoder: `tokenizers.speech_encoder` loads it
DRAWN = ("audio_projection", "step_embedding")  # parts of parameter names that no language model has
RELEASED_TYPES = ("Dream", "qwen2")  # model types whose extra keys belong to other software

# Keys that transformers writes into any config.json besides the declared fields.
_LIBRARY_KEYS = frozenset((
    "rope_theta", "rope_scaling", "torch_dtype", "name_or_path", "_name_or_path", "_commit_hash",
    "attn_implementation", "_attn_implementation", "experts_implementation", "output_attentions", "num_labels"))


class DenoiserConfig(Qwen2Config):
    """Qwen2's fields plus those that masked diffusion over speech needs; the defaults are the released 7B.

    Also reads the released config.json (`model_type` "Dream", `rope_theta`, `torch_dtype`). In the kit's own configs
    an unknown key is a `ConfigError`: transformers itself silently keeps unknown keys.
    """

    model_type = "omni_diffusion"

    vocab_size: int = 176264
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 131072
    default_theta = 1e6
    use_cache: bool = False
    is_causal: bool = False
    speech_dim: int = 512  # width of the speech encoder's frames
    speech_input: Literal["continuous", "discrete"] = "continuous"  # user speech as adapter frames | speech ids
    step_embedding: bool = False
    head_starts: list[int] | None = None  # first speech id and first image id, if each modality has its own head
    pad_token_id: int | None = 151643
    mask_token_id: int = 151666
    begin_of_audio_token_id: int = 151684
    context_of_audio_token_id: int = 151686

    def __post_init__(self, **kwargs: Any) -> None:
        model_type = kwargs.pop("model_type", self.model_type)
        if model_type not in (self.model_type, *RELEASED_TYPES):
            raise ConfigError(f"model_type {model_type!r} is no denoiser; "
                              f"expected {', '.join((self.model_type, *RELEASED_TYPES))}")
        unknown = [key for key in kwargs if key not in _LIBRARY_KEYS]
        if model_type == self.model_type and unknown:
            close = difflib.get_close_matches(unknown[0], list(self.__dataclass_fields__), n=1)
            raise ConfigError(f"unknown key {unknown[0]!r} in the denoiser's configuration"
                              + (f"; did you mean {close[0]!r}?" if close else ""))
        if self.step_embedding and self.is_causal:
            raise ConfigError("step_embedding: a causal denoiser masks nothing, so there is no noise level to embed")
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        super().__post_init__(**{key: value for key, value in kwargs.items() if key in _LIBRARY_KEYS})

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Turn a released config.json into one of the kit's own on reading; else transformers warns at each load."""
        tree, rest = super().get_config_dict(*args, **kwargs)
        if tree.get("model_type") in RELEASED_TYPES:
            known = _LIBRARY_KEYS.union(cls.__dataclass_fields__)
            tree = {key: value for key, value in tree.items() if key in known} | {"model_type": cls.model_type}
        return tree, rest

    @classmethod
    def from_size(cls, size: DenoiserSize, vocabulary: Vocabulary, speech_dim: int = 512,
                  **fields: Any) -> DenoiserConfig:
        """The configuration of one preset: its size, its id space and its speech encoder's width."""
        starts = [span.start for span in (vocabulary.speech_range, vocabulary.image_range)]
        return cls(vocab_size=vocabulary.size, hidden_size=size.hidden_size, intermediate_size=size.intermediate_size,
                   num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
                   rope_theta=size.rope_theta, max_position_embeddings=size.max_positions, speech_dim=speech_dim,
                   speech_input=size.speech_input, step_embedding=size.step_embedding, **_special_ids(vocabulary),
                   head_starts=starts if size.output_heads == "modality" else None, **fields)

    def released_dict(self) -> dict[str, Any]:
        """The same configuration under the released field names. `ConfigError` for anything the release cannot hold."""
        if self.step_embedding or self.head_starts or self.speech_input != "continuous":
            raise ConfigError("the released layout has no step embedding, heads by modality or discrete speech input")
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act",
                 "tie_word_embeddings", "attention_dropout", "initializer_range", "is_causal", "speech_dim",
                 "pad_token_id", "mask_token_id", "begin_of_audio_token_id", "context_of_audio_token_id")
        return {"architectures": ["DreamModel"], "model_type": "Dream", **{name: getattr(self, name) for name in names},
                "rope_theta": self.rope_parameters["rope_theta"], "rope_scaling": None,
                "bos_token_id": self.pad_token_id, "eos_token_id": self.pad_token_id,
                "torch_dtype": str(self.dtype or torch.float32).removeprefix("torch.")}


def _special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {"pad_token_id": vocabulary.pad, "mask_token_id": vocabulary.mask,
            "begin_of_audio_token_id": vocabulary.begin_of_audio,
            "context_of_audio_token_id": vocabulary.context_of_audio}


class DenoiserTrunk(Qwen2Model):
    """Qwen2 with the speech adapter beside it, as the released checkpoint names it."""

    config_class = DenoiserConfig

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.audio_projection = SpeechAdapter(config)
        self.post_init()


@dataclass
class DenoiserOutput(ModelOutput):
    """`logits` [B,L,V] (or [M,V] at chosen positions, or None), `hidden` [B,L,H] after the final norm."""

    logits: Tensor | None = None
    hidden: Tensor | None = None
    past_key_values: Cache | None = None


class Denoiser(Qwen2PreTrainedModel):
    """p(x0 | xt) at every position. Logits are *unshifted*: those at i predict token i+1, as in the release."""

    config_class = DenoiserConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = [f"^{re.escape(SPEECH_ENCODER)}"]
    _supports_flash_attn = False  # neither this nor flex takes the boolean block masks
    _supports_flex_attn = False

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.model = DenoiserTrunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        # Drawn last, so that one seed gives the same other weights with and without a switch.
        if config.head_starts:
            self.lm_head = ModalityHeads(self.lm_head, config)
        self.step_embedding = StepEmbedding(config) if config.step_embedding else None
        self.set_causal(config.is_causal)
        self.post_init()

    def set_causal(self, causal: bool) -> None:
        """Let each token see only earlier tokens, or both directions."""
        self.config.is_causal = causal
        for layer in self.model.layers:
            layer.self_attn.is_causal = causal

    def project_speech(self, frames: Tensor) -> Tensor:
        """Speech encoder frames [.., speech_dim] -> embeddings [.., hidden_size]."""
        return self.model.audio_projection(frames)

    def embed(self, input_ids: Tensor, speech_frames: Tensor | None = None) -> Tensor:
        """Ids [B,L] -> embeddings [B,L,H]; at `context_of_audio` ids the projected `speech_frames` [B,L,dim] instead.

        Frames elsewhere are not read. Gradients reach the adapter only through these positions.
        """
        embeddings = self.model.embed_tokens(input_ids)
        if speech_frames is None:
            return embeddings
        here = input_ids == self.config.context_of_audio_token_id
        projected = self.project_speech(speech_frames[here])
        return embeddings.masked_scatter(here[..., None], projected.to(embeddings.dtype))

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                segment_ids: Tensor | None = None, position_ids: Tensor | None = None,
                attention_mask: Tensor | None = None, speech_frames: Tensor | None = None,
                past_key_values: Cache | None = None, logits_positions: Tensor | None = None,
                hidden_only: bool = False, masked_share: Tensor | None = None) -> DenoiserOutput:
        """One pass over `input_ids` [B,L] or `inputs_embeds` [B,L,H].

        `segment_ids` [B,L]: a token sees exactly its own segment; -1 is padding, which no other token sees (a pad sees
        itself, so that no softmax row is empty). None: everything is one segment, and no mask is built.
        `attention_mask` bool [B,1,L,K], True = may see that one of the K keys (cached ones first), overrides the
        segments; the released training mask, in which the tail pads are visible, can only be given this way.
        `position_ids` [B,L] set the tokens' positions and nothing else. `logits_positions` bool [B,L]: logits [M,V]
        there only, in row-major order, as only masked positions are ever scored. `hidden_only`: no logits.
        `past_key_values`: keys and values from earlier passes, seen by all tokens of this one; a causal denoiser builds
        a mask that spans them, a bidirectional one must be given it (`diffusion.cache`). `masked_share` [B,L]: the
        masked share of the answer that a token belongs to, -1 outside answers; only a step embedding reads it.
        Raises `ValueError` unless exactly one of ids and embeddings is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, speech_frames)
        if self.step_embedding is not None and masked_share is not None:
            inputs_embeds = inputs_embeds + self.step_embedding(masked_share).to(inputs_embeds.dtype)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = self._mask(segment_ids, inputs_embeds, past)
        if attention_mask is not None and self.config._attn_implementation == "eager":
            attention_mask = additive(attention_mask, inputs_embeds.dtype)
        output = self.model(inputs_embeds=inputs_embeds, position_ids=position_ids, past_key_values=past_key_values,
                            attention_mask={"full_attention": attention_mask}, use_cache=past_key_values is not None)
        hidden = output.last_hidden_state
        scored = hidden if logits_positions is None else hidden[logits_positions]
        return DenoiserOutput(logits=None if hidden_only else self.lm_head(scored), hidden=hidden,
                              past_key_values=output.past_key_values)

    def _mask(self, segment_ids: Tensor | None, inputs_embeds: Tensor, past: int) -> Tensor | None:
        """Which token sees which, bool [B,1,L,past+L]; None where attention's own fast path does the same."""
        length = inputs_embeds.shape[1]
        eager = self.config._attn_implementation == "eager"
        mask = segment_mask(segment_ids, length) if segment_ids is not None else None
        if self.config.is_causal and length > 1 and (mask is not None or past or eager):
            causal = torch.ones(length, past + length, dtype=torch.bool, device=inputs_embeds.device).tril(past)
            mask = causal[None, None] if mask is None else mask & causal
        return mask

    @classmethod
    def from_pretrained(cls, directory: str | Path, *args: Any, dtype: torch.dtype | str = torch.float32,
                        **kwargs: Any) -> Denoiser:
        """Load the kit's own layout or the released one; a single file, or shards with an index.

        `dtype`: float32 unless set otherwise ("auto" = as stored). `device_map` and other arguments go to
        transformers. A missing, unexpected or misshapen tensor is a `CheckpointError` that names it: nothing is ever
        left at its random initial value. The released speech encoder's tensors are deliberately skipped.
        """
        model, info = cls._load(directory, *args, dtype=dtype, **kwargs)
        _refuse(directory, missing=info["missing_keys"], unexpected=info["unexpected_keys"],
                misshapen=[name for name, *_ in info["mismatched_keys"]])
        return model

    @classmethod
    def from_language_model(cls, directory: str | Path, vocabulary: Vocabulary, speech_dim: int = 512,
                            **kwargs: Any) -> Denoiser:
        """Where full-size training starts: a text-only Dream or Qwen2 checkpoint, extended to the whole id space.

        The new ids' rows, the speech adapter and any step embedding are freshly initialised (section 3.2); everything
        else is loaded.
        """
        model, info = cls._load(directory, dtype=kwargs.pop("dtype", torch.float32), speech_dim=speech_dim, **kwargs)
        _refuse(directory, missing=[n for n in info["missing_keys"] if not any(part in n for part in DRAWN)],
                unexpected=info["unexpected_keys"], misshapen=[name for name, *_ in info["mismatched_keys"]])
        model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
        for name, token in _special_ids(vocabulary).items():
            setattr(model.config, name, token)
        return model

    @classmethod
    def _load(cls, directory: str | Path, *args: Any, **kwargs: Any) -> tuple[Denoiser, dict[str, Any]]:
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
        try:
            if Path(directory).is_dir() and not (args or kwargs.get("device_map")):
                # transformers' own loader keeps the file's pages beside what it converts: up to three times the memory
                dtype = kwargs["dtype"] if isinstance(kwargs["dtype"], torch.dtype) else None
                state = read_weights(directory, without=SPEECH_ENCODER, dtype=dtype)
                return super().from_pretrained(None, **{"config": str(directory), "state_dict": state, **options})
            return super().from_pretrained(str(directory), *args, **options)
        except (ConfigError, CheckpointError):
            raise
        except Exception as error:  # transformers raises OSError, safetensors and torch their own
            reason = str(error).strip().splitlines()[0] if Path(directory).is_dir() else "no such directory"
            raise CheckpointError(f"{directory}: cannot be loaded as a denoiser ({reason}); "
                                  "expected config.json and model*.safetensors") from error

    def save_pretrained(self, directory: str | Path, layout: str = "kit", **kwargs: Any) -> None:
        """Write config.json and safetensors. `layout` "kit" or "released": the weights have the same names in both.

        "released" writes the released config.json; a caller that holds the speech encoder adds it.
        """
        if layout not in ("kit", "released"):
            raise ConfigError(f"layout {layout!r} is none of 'kit', 'released'")
        super().save_pretrained(str(directory), **kwargs)
        if layout == "released":
            write_json(Path(directory) / "config.json", self.config.released_dict())


def segment_mask(segment_ids: Tensor, length: int) -> Tensor:
    """Segments [B,K] -> which token sees which, bool [B,1,length,K]; the queries are the last `length` of K keys."""
    queries = segment_ids[:, -length:]
    same = (queries[:, :, None] == segment_ids[:, None, :]) & (queries != PADDING)[:, :, None]
    itself = torch.eye(segment_ids.shape[1], dtype=torch.bool, device=segment_ids.device)[-length:]
    return (same | itself)[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to attention scores: 0 where seen, the dtype's minimum elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _refuse(where: str | Path, **problems: list[str]) -> None:
    found = [f"{kind} {len(names)}: {', '.join(sorted(names)[:8])}{' …' if len(names) > 8 else ''}"
             for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where} does not fit the denoiser: {'; '.join(found)}")
