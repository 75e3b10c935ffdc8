"""The tokenizers against the released ones, at tiny sizes: pictures, speech input, speech output."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from omnidiff_lite.adapters import SpeechAdapter
from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.config import (
    FlowConfig, ImageTokenizerConfig, SpeechDecoderConfig, SpeechEncoderConfig, SpeechTokenizerConfig, VocoderConfig)
from omnidiff_lite.media import Waveform
from omnidiff_lite.parity.compare import OWN, Case, Pairs, each
from omnidiff_lite.parity.golden import GOLDEN, Golden
from omnidiff_lite.tokenizers.flow import Flow, cosine_time
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.mel import frame_count
from omnidiff_lite.tokenizers.speech_encoder import QUERIES, SpeechEncoder, sinusoid
from omnidiff_lite.tokenizers.speech_features import fbank, stack_frames
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.tokenizers.vocoder import HiFT, voiced
from omnidiff_lite.weights import strict_load

# The sizes of the files' *_tiny.json.
MAGVIT = ImageTokenizerConfig(
    channels=32, encoder_multipliers=(1, 2, 1, 1, 2), decoder_multipliers=(1, 1, 1, 1, 2),
    encoder_blocks=(1, 1, 2, 1, 1), decoder_blocks=(2, 1, 1, 1, 1))
SENSEVOICE = SpeechEncoderConfig(mels=40, stack=1, stride=1, dim=32, heads=4, ffn=48, blocks=3, tp_blocks=2,
                                 ctc_vocabulary=11)
GLM_TOKENIZER = SpeechTokenizerConfig(mels=8, dim=16, heads=2, ffn=24, layers=3, positions=48, block=8, pooling=4,
                                      codes=64)
GLM_DECODER = SpeechDecoderConfig(
    codes=64, flow=FlowConfig(dim=32, heads=4, ffn=48, blocks=2, channels=(16, 16), unet_heads=2, unet_head_dim=8,
                              unet_blocks=1, unet_mid_blocks=2),
    vocoder=VocoderConfig(base_channels=32, f0_channels=16))


# --- pictures -------------------------------------------------------------------------------------------------------


def image_weights(golden: Golden = GOLDEN) -> dict[str, Tensor]:
    """The tiny tokenizer's tensors in float32, by name."""
    weights = golden.tensors("magvit_tiny", "weights.")
    return {name: tensor.float() for name, tensor in weights.items()}  # stored as float16


@lru_cache(maxsize=2)
def image_tokenizer(golden: Golden = GOLDEN) -> ImageTokenizer:
    """The tiny tokenizer with these weights. Shared: do not change it."""
    tokenizer = ImageTokenizer(MAGVIT).eval().requires_grad_(False)
    strict_load(tokenizer, image_weights(golden), derivable=lambda name: name.startswith("quantize."))
    return tokenizer


def picture_z(golden: Golden) -> Pairs:
    """The encoder's output [B, bits, h, w], before its signs are taken."""
    case = golden.tensors("magvit_tiny", "square.")
    yield image_tokenizer(golden).encoder(case["pixels"].float()), case["z"]


def picture_codes(golden: Golden) -> Pairs:
    """Ids [B, h, w] of a square picture."""
    case = golden.tensors("magvit_tiny", "square.")
    return each(image_tokenizer(golden).encode(case["pixels"].float()), case["codes"])


def picture_from_codes(name: str, golden: Golden) -> Pairs:
    """Pixels [B, 3, H, W] from ids."""
    case = golden.tensors("magvit_tiny", f"{name}.")
    yield image_tokenizer(golden).decode(case["codes"].view(-1, 4, 4)), case["image"]


def sign_rule(golden: Golden) -> Pairs:
    """z holds +0.0 and -0.0: both are bit 0; the first channel is the highest bit."""
    case, quantize = golden.tensors("magvit_tiny", "lfq."), image_tokenizer(golden).quantize
    yield from each(quantize.ids(case["z"]), case["indices"])
    entries = quantize.vectors(case["entry_ids"].view(1, 1, -1))  # [1, 13, 1, 5]
    yield from each(entries[0, :, 0].T, case["entries"])


# --- speech heard ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def speech_encoder(golden: Golden = GOLDEN, dtype: torch.dtype = torch.float32) -> SpeechEncoder:
    """The tiny encoder with the recorded weights. Shared: do not change it."""
    encoder = SpeechEncoder(SENSEVOICE).eval().requires_grad_(False)
    strict_load(encoder, golden.tensors("sensevoice_tiny", "weights.audio_model.model."),
                derivable=lambda name: name == "cmvn")
    return encoder.to(dtype)


def front_end(what: str, golden: Golden) -> Pairs:
    """A wave of 0.73 s and one of 25 ms: 80 mel bands; 7 frames stacked, 6 apart; shifted and scaled."""
    case = golden.tensors("frontend")
    encoder = SpeechEncoder(SpeechEncoderConfig(dim=32, ffn=32, blocks=1, tp_blocks=1, ctc_vocabulary=8))
    encoder.cmvn.copy_(case["cmvn"])
    for clip in "ab":
        wave = Waveform(case[f"{clip}.wave"].numpy(), 16000)
        if what == "lfr":
            yield from each(stack_frames(case[f"{clip}.fbank"]), case[f"{clip}.lfr"])
        else:
            yield fbank(wave) if what == "fbank" else encoder.features(wave), case[f"{clip}.{what}"]


def positions(golden: Golden) -> Pairs:
    """The sinusoidal table [T, dim]."""
    table = golden.tensors("sensevoice_tiny", "pos.")["f32"]
    yield sinusoid(*table.shape), table


def encoded(name: str, what: str, golden: Golden) -> Pairs:
    """Two recordings of 9 and 14 frames in one padded batch; 4 query frames stand in front of each."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
    case, encoder = golden.tensors("sensevoice_tiny", "short."), speech_encoder(golden, dtype)
    lengths = (case["feature_lengths"] + len(QUERIES)).tolist()
    rows = encoder(case["features"], case["feature_lengths"])
    if what == "projected":
        rows = _adapter(golden, dtype)(rows)
    for row, wanted, length in zip(rows, case[f"{name}.{what}"], lengths):
        yield row[:length], wanted[:length]


def encoded_lengths(golden: Golden) -> Pairs:
    """How many rows `forward` reports as valid."""
    case = golden.tensors("sensevoice_tiny", "short.")
    for name in ("f32", "bf16"):
        yield from each(case["feature_lengths"] + len(QUERIES), case[f"{name}.encoder_lengths"])


def _adapter(golden: Golden, dtype: torch.dtype) -> SpeechAdapter:
    weights = golden.tensors("sensevoice_tiny", "weights.audio_projection.")
    hidden, speech = weights["mlp.0.weight"].shape
    adapter = SpeechAdapter(DenoiserConfig(hidden_size=hidden, num_attention_heads=1, num_key_value_heads=1,
                                           speech_dim=speech)).requires_grad_(False)
    strict_load(adapter, weights)
    return adapter.to(dtype)


# --- speech tokens --------------------------------------------------------------------------------------------------


@torch.no_grad()
def speech_tokens(name: str, what: str, golden: Golden) -> Pairs:
    """ "one": 72 frames; "batch": two of at most 96, which is not a multiple of the block of 8 tokens after pooling."""
    case, tokenizer = golden.tensors("glmtok_tiny", f"{name}."), SpeechTokenizer(GLM_TOKENIZER).eval()
    strict_load(tokenizer, golden.tensors("glmtok_tiny", "weights."))
    features, mask = case["input_features"], case["attention_mask"]
    heard, counted = mask[:, ::2].bool(), case["token_mask"].bool()
    out = tokenizer(features, mask)
    if what == "states":
        yield tokenizer.states(features, mask)[heard], case["layer3_out"][heard]
    elif what == "hidden":
        yield out.hidden[counted], case["last_hidden_state"][counted]
    else:
        yield from each(out.valid, counted)
        yield from each(out.ids[counted], case["token_ids"][counted])


# --- speech said ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def flow_decoder(golden: Golden = GOLDEN) -> Flow:
    """The tiny flow with the recorded weights. Shared: do not change it."""
    flow = Flow(GLM_DECODER.flow, GLM_DECODER.codes)
    strict_load(flow, golden.tensors("glmdec_tiny", "weights.flow."))
    return flow.requires_grad_(False)


def flow_conditions(golden: Golden) -> Pairs:
    """What conditions the flow: encoded tokens, mu and the speaker."""
    case, flow = golden.tensors("glmdec_tiny", "flow."), flow_decoder(golden)
    yield flow.encoder(flow.input_embedding(case["token"])), case["encoder_out"]
    yield flow.mu(case["token"], frame_count(case["token"].shape[1])), case["mu"]
    yield flow.speaker(torch.zeros(1, 192)), case["spk"]


def flow_velocity(golden: Golden) -> Pairs:
    """The estimator's output at one time."""
    case, flow = golden.tensors("glmdec_tiny", "flow."), flow_decoder(golden)
    known = torch.zeros_like(case["mu"])
    yield (flow.decoder.estimator(case["noise"], torch.tensor([0.3]), case["mu"], case["spk"], known),
           case["estimator_at_t0.3"])


def flow_mel(golden: Golden) -> Pairs:
    """The mel after ten guided steps."""
    case = golden.tensors("glmdec_tiny", "flow.")
    yield flow_decoder(golden).sample(case["token"], case["noise"]), case["mel_10"]


def flow_prompted(golden: Golden) -> Pairs:
    """No prompted mel was recorded. This one is integrated by hand from the released mu and speaker with the estimator
    that the row above checks: the first 60 frames known, both sides of the guidance run separately."""
    case, flow = golden.tensors("glmdec_tiny", "flow."), flow_decoder(golden)
    prompt, x, nothing = case["mel_10"][..., :60], case["noise"], torch.zeros_like(case["mu"])
    known = torch.cat((prompt, nothing[..., 60:]), -1)
    times = cosine_time(torch.linspace(0, 1, 11))
    for now, then in zip(times[:-1], times[1:]):
        guided = flow.decoder.estimator(x, now[None], case["mu"], case["spk"], known)
        free = flow.decoder.estimator(x, now[None], nothing, torch.zeros_like(case["spk"]), nothing)
        x = x + (then - now) * (1.7 * guided - 0.7 * free)
    yield flow.sample(case["token"], case["noise"], prompt=prompt), x


@lru_cache(maxsize=2)
def vocoder(golden: Golden = GOLDEN) -> HiFT:
    """The tiny vocoder with the recorded weights. Shared: do not change it."""
    hift = HiFT(GLM_DECODER.vocoder)
    strict_load(hift, golden.tensors("glmdec_tiny", "weights.hift."))
    return hift.requires_grad_(False)


def pitch(golden: Golden) -> Pairs:
    """F0 in Hz of each mel frame."""
    case = golden.tensors("glmdec_tiny", "hift.")
    yield vocoder(golden).f0_predictor(case["mel"]), case["f0"]


def voicing(golden: Golden) -> Pairs:
    """Which samples are voiced."""
    case = golden.tensors("glmdec_tiny", "hift.")
    f0 = vocoder(golden).f0_predictor(case["mel"])
    return each(voiced(f0[:, None].repeat_interleave(256, -1)), case["uv"])


def wave(golden: Golden) -> Pairs:
    """The released excitation source is random, and therefore given."""
    case = golden.tensors("glmdec_tiny", "hift.")
    yield vocoder(golden).synthesize(case["mel"], case["source"]), case["wav"]


CASES = (
    Case("MAGVIT-v2", "two pictures", "z before its sign", 1e-4, picture_z),
    Case("MAGVIT-v2", "two pictures", "codes", 0, picture_codes),
    Case("MAGVIT-v2", "two pictures", "pixels from codes", 1e-3, partial(picture_from_codes, "square")),
    Case("MAGVIT-v2", "random codes", "pixels from codes", 1e-3, partial(picture_from_codes, "random")),
    Case("quantizer", "signs, +0 and -0, bit order", "codes and vectors", 0, sign_rule),
    Case("front end", "0.73 s and 25 ms", "fbank", 1e-3, partial(front_end, "fbank")),
    Case("front end", "0.73 s and 25 ms", "stacked frames", 0, partial(front_end, "lfr")),
    Case("front end", "0.73 s and 25 ms", "normalised features", 2e-3, partial(front_end, "features")),
    Case("positions", "304 rows", "sinusoids", 1e-6, positions),
    Case("speech lengths", "9 and 14 frames", "rows of the output", 0, encoded_lengths),
    Case("SenseVoice", "9 and 14 frames, float32", "encoder output", 1e-4, partial(encoded, "f32", "encoder_out")),
    Case("SenseVoice", "9 and 14 frames, float32", "projected", 1e-4, partial(encoded, "f32", "projected")),
    Case("SenseVoice", "9 and 14 frames, bfloat16", "encoder output", 0.1, partial(encoded, "bf16", "encoder_out")),
    Case("SenseVoice", "9 and 14 frames, bfloat16", "projected", 0.1, partial(encoded, "bf16", "projected")),
    *(Case("GLM tokenizer", name, label, tolerance, partial(speech_tokens, case, what))
      for case, name in (("one", "one recording"), ("batch", "two, padded"))
      for what, label, tolerance in (("states", "states before the codebook", 1e-4), ("ids", "mask and ids", 0),
                                     ("hidden", "code vectors", 1e-5))),
    Case("flow", "27 tokens", "encoder, mu, speaker", 1e-4, flow_conditions),
    Case("flow", "27 tokens", "velocity at t = 0.3", 1e-4, flow_velocity),
    Case("flow", "27 tokens", "mel after 10 guided steps", 2e-3, flow_mel),
    Case("flow", "27 tokens, 60 frames known", "mel", 2e-3, flow_prompted, against=OWN),
    Case("HiFT", "40 frames", "pitch, Hz", 1e-3, pitch),
    Case("HiFT", "40 frames", "voicing", 0, voicing),
    Case("HiFT", "40 frames", "wave", 1e-4, wave))
