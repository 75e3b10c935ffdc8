"""Sizes of a released GLM-4-Voice decoder, from its hyperpyyaml `config.yaml`.

That format builds Python objects named by tags (`!new:cosyvoice...`). Only its plain values matter here: tags are
ignored, and nothing is imported or called. The `llm` section belongs to another system and is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from omnidiff_lite.config import ConfigError, FlowConfig, SpeechDecoderConfig, VocoderConfig, from_dict, to_dict
from omnidiff_lite.weights import CheckpointError

CODES, RATE = "flow.vocab_size", "hift.sampling_rate"

# our field -> path in the released file
FLOW = {
    "dim": "flow.input_size", "mels": "flow.output_size", "speaker_dim": "flow.spk_embed_dim",
    "heads": "flow.encoder.attention_heads", "ffn": "flow.encoder.linear_units", "blocks": "flow.encoder.num_blocks",
    "block": "flow.encoder.block_size",
    "channels": "flow.decoder.estimator.channels", "unet_heads": "flow.decoder.estimator.num_heads",
    "unet_head_dim": "flow.decoder.estimator.attention_head_dim", "unet_blocks": "flow.decoder.estimator.n_blocks",
    "unet_mid_blocks": "flow.decoder.estimator.num_mid_blocks",
    "guidance": "flow.decoder.cfm_params.content.inference_cfg_rate"}
VOCODER = {
    "base_channels": "hift.base_channels", "upsample_rates": "hift.upsample_rates",
    "upsample_kernels": "hift.upsample_kernel_sizes", "resblock_kernels": "hift.resblock_kernel_sizes",
    "source_kernels": "hift.source_resblock_kernel_sizes", "f0_channels": "hift.f0_predictor.cond_channels",
    "harmonics": "hift.nb_harmonics", "n_fft": "hift.istft_params.n_fft", "hop": "hift.istft_params.hop_len"}


class _TagBlindLoader(yaml.SafeLoader):
    """YAML in which unknown tags leave the tagged mapping, list or scalar unchanged."""


def _untagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_TagBlindLoader.add_multi_constructor("!", _untagged)


def read_released_config(directory: str | Path) -> SpeechDecoderConfig | None:
    """Sizes in `directory`/config.yaml, full size where it has none; None if there is no such file."""
    path = Path(directory) / "config.yaml"
    if not path.exists():
        return None
    try:
        tree = yaml.load(path.read_text(), _TagBlindLoader) or {}
        full = SpeechDecoderConfig()
        return from_dict(SpeechDecoderConfig, {
            "codes": _find(tree, CODES, full.codes), "rate": _find(tree, RATE, full.rate),
            "flow": {field: _find(tree, at, to_dict(FlowConfig())[field]) for field, at in FLOW.items()},
            "vocoder": {field: _find(tree, at, to_dict(VocoderConfig())[field]) for field, at in VOCODER.items()}})
    except (yaml.YAMLError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a speech decoder's configuration ({error}); fetch it again, or remove it "
                              "to use the full-size defaults") from None


def _find(tree: dict[str, Any], at: str, default: Any) -> Any:
    """The value at a dotted path; a `!ref` `<name>` is looked up among the top-level values."""
    value: Any = tree
    for name in at.split("."):
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    reference = re.fullmatch(r"<(\w+)>", value) if isinstance(value, str) else None
    return tree.get(reference[1], default) if reference else value
