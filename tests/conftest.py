"""A tiny system with random weights: every part is real, nothing is learned."""

import dataclasses

import pytest
import torch

from omnidiff_lite.config import load_preset


@pytest.fixture(scope="session")
def tiny_preset():
    """`smoke`, shrunk."""
    return load_preset("smoke", {
        "image_tokenizer.channels": 8, "image_tokenizer.norm_groups": 4, "image_tokenizer.patch_size": 8,
        "image_tokenizer.code_bits": 5, "speech_encoder.dim": 32,
        "speech_encoder.ffn": 32, "speech_encoder.blocks": 1, "speech_tokenizer.dim": 32, "speech_tokenizer.ffn": 32,
        "speech_tokenizer.layers": 1, "speech_tokenizer.codes": 32, "speech_decoder.codes": 32,
        "speech_decoder.flow.dim": 32, "speech_decoder.flow.channels": [32, 32], "speech_decoder.vocoder.iterations": 2,
        "denoiser.hidden_size": 32, "denoiser.intermediate_size": 64, "denoiser.layers": 2})


@pytest.fixture(scope="session")
def tiny_tokenizers(tiny_preset):
    from omnidiff_lite.tokenizers.bundle import Tokenizers
    from omnidiff_lite.tokenizers.image import ImageTokenizer
    from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
    from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
    from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
    from omnidiff_lite.tokenizers.text import extend, train_text_tokenizer

    torch.manual_seed(0)
    text = train_text_tokenizer(["a red circle above a blue square", "user assistant system\n"] * 4, 300)
    vocabulary = extend(text, tiny_preset.speech_tokenizer.codes, tiny_preset.image_tokenizer.codes)
    return Tokenizers(text, vocabulary, ImageTokenizer(tiny_preset.image_tokenizer).eval(),
                      SpeechEncoder(tiny_preset.speech_encoder).eval(),
                      SpeechTokenizer(tiny_preset.speech_tokenizer).eval(),
                      SpeechDecoder(tiny_preset.speech_decoder).eval())


@pytest.fixture(scope="session")
def tiny_model(tiny_preset, tiny_tokenizers):
    from omnidiff_lite.backbone import Denoiser, DenoiserConfig
    from omnidiff_lite.pipeline import AnswerLengths, OmniDiffusion, settings_of

    torch.manual_seed(0)
    config = DenoiserConfig.from_size(tiny_preset.denoiser, tiny_tokenizers.vocabulary, tiny_preset.speech_encoder.dim)
    denoiser = Denoiser(config)
    torch.nn.init.normal_(denoiser.lm_head.weight, std=0.5)  # clear-cut answers: rounding must not choose between them
    settings = settings_of(tiny_preset, lengths=AnswerLengths(text=8, spoken=20, spoken_text=6))
    return OmniDiffusion(denoiser, tiny_tokenizers, dataclasses.replace(settings, decoding={}))
