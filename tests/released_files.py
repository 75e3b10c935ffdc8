"""A whole system in miniature as its authors publish it: every part's own files and parameter names, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.config import (DenoiserSize, FlowConfig, ImageTokenizerConfig, SpeechDecoderConfig,
                                  SpeechEncoderConfig, SpeechTokenizerConfig, VocoderConfig)
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.tokenizers.text import train_text_tokenizer
from omnidiff_lite.vocabulary import (BASE_SPECIALS, DREAM_SPECIALS, OMNI_SPECIALS, QWEN_EXTRAS, Vocabulary)
from omnidiff_lite.weights import write_json

SPEECH_CODES = 64
IMAGE = ImageTokenizerConfig(channels=32, encoder_multipliers=(1, 1, 2, 1, 1), decoder_multipliers=(1, 1, 1, 2, 1),
                             encoder_blocks=(1, 1, 1, 2, 1), decoder_blocks=(1, 2, 1, 1, 1), code_bits=5)
ENCODER = SpeechEncoderConfig(dim=32, ffn=48, blocks=2, tp_blocks=1, ctc_vocabulary=11)
DECODER = SpeechDecoderConfig(
    codes=SPEECH_CODES, flow=FlowConfig(dim=32, heads=4, ffn=48, blocks=1, channels=(16, 16), unet_heads=2,
                                        unet_head_dim=8, unet_blocks=1, unet_mid_blocks=1),
    vocoder=VocoderConfig(base_channels=32, f0_channels=16))


def write_released(root: Path, hidden: int = 32, layers: int = 2, speech_dim: int = 32, speech_layers: int = 2,
                   dtype: torch.dtype = torch.float32) -> Path:
    """The folders as their repositories are called, side by side under `root`; `dtype` is the denoiser's on disk."""
    torch.manual_seed(0)
    vocabulary = write_text_tokenizer(root / "Omni-Diffusion")
    write_denoiser(root / "Omni-Diffusion", vocabulary, hidden, layers, dtype)
    write_image_tokenizer(root / "magvitv2")
    write_speech_tokenizer(root / "glm-4-voice-tokenizer", speech_dim, speech_layers)
    write_speech_decoder(root / "glm-4-voice-decoder")
    write_statistics(root / "SenseVoiceSmall" / "am.mvn")
    return root


def write_text_tokenizer(folder: Path, unlike: Callable[[dict[str, int]], None] = lambda ids: None) -> Vocabulary:
    """Dream's files: Qwen2's vocabulary and merges, and a tokenizer class whose code lies beside them.

    `unlike` may change the special tokens, name -> id, that are written.
    """
    bpe = json.loads(train_text_tokenizer(["a red circle above a blue square"] * 4, 290).backend_tokenizer.to_str())
    text = len(bpe["model"]["vocab"])
    names = (*BASE_SPECIALS, *(f"<|extra_{i}|>" for i in range(QWEN_EXTRAS)), *DREAM_SPECIALS)
    ids = {name: text + i for i, name in enumerate(names)}
    all_ids = ids | {name: text + len(names) + i for i, name in enumerate(OMNI_SPECIALS)}
    unlike(ids)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", bpe["model"]["vocab"])
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in bpe["model"]["merges"]) + "\n")
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>", "added_tokens_decoder": {
            str(i): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True} for name, i in ids.items()}})
    known = BASE_SPECIALS + DREAM_SPECIALS + OMNI_SPECIALS
    return Vocabulary(text, SPEECH_CODES, IMAGE.codes, {name: all_ids[name] for name in known})


def write_denoiser(folder: Path, vocabulary: Vocabulary, hidden: int, layers: int, dtype: torch.dtype) -> None:
    """Two shards with an index, the frozen speech encoder among the denoiser's own tensors."""
    size = DenoiserSize(hidden_size=hidden, intermediate_size=4 * hidden, layers=layers, heads=4, kv_heads=2)
    config = DenoiserConfig.from_size(size, vocabulary, ENCODER.dim)
    denoiser = Denoiser(config)
    torch.nn.init.normal_(denoiser.lm_head.weight, std=0.5)  # clear-cut answers: rounding must not choose between them
    unknown = ("is_causal", "speech_dim", "begin_of_audio_token_id", "context_of_audio_token_id")
    write_json(folder / "config.json", {k: v for k, v in config.released_dict().items() if k not in unknown}
               | {"torch_dtype": str(dtype).removeprefix("torch.")})
    state = {name: tensor.to(dtype) for name, tensor in denoiser.state_dict().items()}
    speech = {f"model.audio_model.model.{name}": tensor.to(dtype)
              for name, tensor in SpeechEncoder(ENCODER).state_dict().items() if name != "cmvn"}
    files = {"model-00001-of-00002.safetensors": state, "model-00002-of-00002.safetensors": speech}
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": {
        name: file for file, tensors in files.items() for name in tensors}})


def write_image_tokenizer(folder: Path) -> None:
    """diffusers' style: a pickled state, and a config.json that names no sizes."""
    folder.mkdir(parents=True)
    torch.save(ImageTokenizer(IMAGE).state_dict(), folder / "pytorch_model.bin")
    write_json(folder / "config.json", {"_class_name": "MAGVITv2", "_diffusers_version": "0.28.0"})


def write_speech_tokenizer(folder: Path, dim: int, layers: int) -> None:
    """A whole Whisper: the quantizing half under `model.encoder.`, with one layer more, and statistics of training."""
    folder.mkdir(parents=True)
    config = SpeechTokenizerConfig(dim=dim, heads=2, ffn=4 * dim, layers=layers, codes=SPEECH_CODES)
    part = SpeechTokenizer(config)
    torch.nn.init.normal_(part.codebook.weight, std=0.1)
    state: dict[str, Tensor] = {f"model.encoder.{name}": tensor for name, tensor in part.state_dict().items()}
    state |= {name.replace("layers.0.", f"layers.{layers}."): torch.zeros_like(tensor)
              for name, tensor in state.items() if ".layers.0." in name}
    state |= {"model.encoder.layer_norm.weight": torch.ones(dim), "model.encoder.ema_count": torch.ones(SPEECH_CODES),
              "model.decoder.embed_tokens.weight": torch.zeros(3, dim)}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    write_json(folder / "config.json", {
        "model_type": "whisper", "d_model": dim, "encoder_attention_heads": 2, "encoder_ffn_dim": 4 * dim,
        "encoder_layers": layers + 1, "num_mel_bins": config.mels, "max_source_positions": config.positions,
        "pooling_type": "avg", "pooling_kernel_size": 4, "pooling_position": layers, "quantize_position": layers,
        "quantize_vocab_size": SPEECH_CODES, "quantize_causal_block_size": config.block,
        "encoder_causal_convolution": True, "encoder_causal_attention": False, "quantize_causal_encoder": False})


def write_speech_decoder(folder: Path) -> None:
    """`flow.pt`, `hift.pt` and the tagged YAML that builds them."""
    folder.mkdir(parents=True)
    part = SpeechDecoder(DECODER)
    torch.save(part.flow.state_dict(), folder / "flow.pt")
    torch.save(part.vocoder.state_dict(), folder / "hift.pt")
    (folder / "config.yaml").write_text(f"""
__set_seed1: !apply:random.seed [1986]
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: {DECODER.flow.dim}
    vocab_size: {DECODER.codes}
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        attention_heads: {DECODER.flow.heads}
        linear_units: {DECODER.flow.ffn}
        num_blocks: {DECODER.flow.blocks}
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            channels: {list(DECODER.flow.channels)}
            attention_head_dim: {DECODER.flow.unet_head_dim}
            n_blocks: {DECODER.flow.unet_blocks}
            num_mid_blocks: {DECODER.flow.unet_mid_blocks}
            num_heads: {DECODER.flow.unet_heads}
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    base_channels: {DECODER.vocoder.base_channels}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: {DECODER.vocoder.f0_channels}
""")


def write_statistics(path: Path) -> None:
    """SenseVoiceSmall's feature statistics, a Kaldi text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = ENCODER.input_size
    rows = {name: " ".join([value] * size) for name, value in (("AddShift", "-8.5"), ("Rescale", "0.2"))}
    path.write_text("<Nnet>\n" + "".join(f"<{name}> {size} {size}\n<LearnRateCoef> 0 [ {row} ]\n"
                                         for name, row in rows.items()) + "</Nnet>\n")
