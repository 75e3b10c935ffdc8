"""The denoiser and the sampler against the released ones: logits, loss, gradients, and the canvas of every step.

A model of hidden width 64, 2 layers and 600 ids with random weights, under the released names. Its weights are drawn
from a wide distribution, so that no decision depends on rounding: the recorded canvases must be reproduced exactly.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnidiff_lite.backbone import PADDING, Denoiser
from omnidiff_lite.diffusion.decoding import DecodeResult, DecodingConfig, decode
from omnidiff_lite.diffusion.loss import masked_cross_entropy
from omnidiff_lite.parity.compare import Case, Pairs
from omnidiff_lite.parity.golden import GOLDEN, Golden

MASK, BEGIN_OF_AUDIO = 566, 584
ALGORITHMS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy", "entropy-penalty": "entropy"}
# TIE_boa_block16 depends on the order in which topk returns equal -inf; the recording has a CPU's.
SAMPLES = (
    "TIE_boa_block16", "block16", "block16_steps24", "boa", "boa_entpen15", "cfg2_s2i", "entpen12", "entpen15",
    "entpen15_topknone", "entropy", "entropy_steps24", "entropy_topknone", "entropy_topp09", "entropy_topp09_topknone",
    "maskgit_plus", "maskgit_steps10", "maskpred_entropy", "n104_maskgit_pos13", "n136_entpen12_topp09", "n136_entropy",
    "n136_entropy_pos05", "n136_entropy_pos2", "n136_margin_pos2", "n136_maskgit", "n136_maskgit_pos2", "topk_margin")


def released_directory(directory: Path, golden: Golden = GOLDEN) -> Path:
    """A checkpoint directory in the released form: config.json of model_type "Dream", one safetensors file."""
    shutil.copy(golden.path("dream_tiny_config.json"), directory / "config.json")
    shutil.copy(golden.path("dream_tiny.safetensors"), directory / "model.safetensors")
    return directory


@lru_cache(maxsize=2)
def released_denoiser(golden: Golden = GOLDEN) -> Denoiser:
    """The tiny model, loaded like a released checkpoint. Shared: do not change it."""
    with tempfile.TemporaryDirectory() as directory:
        return Denoiser.from_pretrained(released_directory(Path(directory), golden))


def forward_case(name: str, golden: Golden = GOLDEN) -> dict[str, Tensor]:
    """The recorded inputs and outputs of one forward pass, by name."""
    return golden.tensors("dream_forward", f"{name}.")


# --- forward --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def full_attention(name: str, golden: Golden) -> Pairs:
    """Logits [B, L, vocab] where every token sees all."""
    case = forward_case(name, golden)
    yield released_denoiser(golden)(case["input_ids"], position_ids=case.get("position_ids")).logits, case["logits"]


@torch.no_grad()
def padded_batch(golden: Golden) -> Pairs:
    """The three prompts at once, padded to one length; no token sees segment -1."""
    cases = [forward_case(name, golden) for name in ("infer_len1", "infer_len7", "infer_posids")]
    shape = len(cases), max(case["input_ids"].shape[1] for case in cases)
    ids, positions, segments = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, PADDING)
    for row, case in enumerate(cases):
        n = case["input_ids"].shape[1]
        ids[row, :n], segments[row, :n] = case["input_ids"], 0
        positions[row, :n] = case.get("position_ids", torch.arange(n))
    logits = released_denoiser(golden)(ids, position_ids=positions, segment_ids=segments).logits
    for row, case in zip(logits, cases):
        yield row[None, :case["input_ids"].shape[1]], case["logits"]


def released_packed_mask(case: dict[str, Tensor]) -> Tensor:
    """The released training mask: own segment only, pad queries see nothing, but pad *keys* are seen."""
    segment = (case["position_ids"] == 0).cumsum(-1)
    same = segment[:, :, None] == segment[:, None]
    return (same & case["attention_mask"].bool()[:, :, None])[:, None]


def packed_logits(golden: Golden) -> Tensor:
    """The kit's logits [B, L, vocab] of the packed row under the released mask."""
    case = forward_case("packed", golden)
    return released_denoiser(golden)(case["input_ids"], position_ids=case["position_ids"],
                                     attention_mask=released_packed_mask(case)).logits


def packed_row(golden: Golden) -> Pairs:
    """Those logits against the released ones."""
    yield packed_logits(golden), forward_case("packed", golden)["logits"]


def packed_loss(golden: Golden) -> Pairs:
    """The loss of those logits over the labels."""
    case = forward_case("packed", golden)
    yield masked_cross_entropy(packed_logits(golden), case["labels"]), case["loss"]


def packed_gradients(golden: Golden) -> Pairs:
    """The gradients of that loss: for each listed parameter its norm, or all of it."""
    case, parameters = forward_case("packed", golden), dict(released_denoiser(golden).named_parameters())
    listed = [key.split(".", 1) for key in case if key.startswith("grad")]
    loss = masked_cross_entropy(packed_logits(golden), case["labels"])
    for (kind, name), found in zip(listed, torch.autograd.grad(loss, [parameters[name] for _, name in listed])):
        yield found.norm() if kind == "grad_norm" else found, case[f"{kind}.{name}"]


@torch.no_grad()
def packed_segments(golden: Golden) -> Pairs:
    """The kit's own packing: the same for segments 1 and 2; the third sees the tail pads in the release, not here."""
    yield own_packed_logits(golden)[:, :25], forward_case("packed", golden)["logits"][:, :25]


def own_packed_logits(golden: Golden = GOLDEN) -> Tensor:
    """The kit's logits [B, L, vocab] of the packed row under its own segments."""
    case = forward_case("packed", golden)
    segment = (case["position_ids"] == 0).cumsum(-1).masked_fill(case["attention_mask"] == 0, PADDING)
    return released_denoiser(golden)(case["input_ids"], position_ids=case["position_ids"], segment_ids=segment).logits


def speech_adapter(golden: Golden) -> Pairs:
    """Frames of one recording, projected to [1, n, hidden]."""
    case = forward_case("audio", golden)
    yield released_denoiser(golden).project_speech(case["frames0"])[None], case["projected0"]


@torch.no_grad()
def injected_speech(golden: Golden) -> Pairs:
    """Frames of two recordings, projected into the positions that the released code lists."""
    case, model = forward_case("audio", golden), released_denoiser(golden)
    embeddings = model.embed(case["input_ids"]).clone()
    for n in "01":
        batch, place = case[f"indices{n}"].flatten(1)
        embeddings[batch, place] = model.project_speech(case[f"frames{n}"])
    yield model(inputs_embeds=embeddings).logits, case["logits"]


# --- decoding -------------------------------------------------------------------------------------------------------


def sample_case(name: str, golden: Golden = GOLDEN) -> tuple[dict[str, Any], DecodingConfig, dict[str, Tensor]]:
    """The released call's arguments, the kit's settings for the same, and the recorded tensors."""
    file, metadata = f"dream_sample_{name}", golden.metadata(f"dream_sample_{name}")
    call, used = (json.loads(metadata[key]) for key in ("call", "effective_generation_config"))
    recorded = golden.tensors(file)
    return call, DecodingConfig(
        length=used["max_new_tokens"], steps=used["steps"], algorithm=ALGORITHMS[call["alg"]], eps=used["eps"],
        temperature=used["temperature"], top_p=used["top_p"], top_k=used["top_k"],
        repetition_penalty=call.get("repeat_penalty", 1.0), position_penalty=call.get("max_position_penalty", 1.0),
        prefill={0.2: BEGIN_OF_AUDIO} if call.get("add_boa_token") else {}, block_length=call.get("block_size"),
        guidance_alignment="released", guidance_scale=call.get("cfg", 0.0),
        guidance_prompt_ids=recorded.get("uncond_prompt_ids")), recorded


def canvases(name: str, golden: Golden) -> Pairs:
    """The canvas after each step, then the answer."""
    recorded = sample_case(name, golden)[-1]
    prompt, result = recorded["prompt_ids"], decoded(name, golden)
    histories = recorded["histories"][:, prompt.shape[1]:].tolist()
    found = [canvas[0].tolist() for canvas in result.history]
    for step in range(max(len(found), len(histories))):
        yield found[step] if step < len(found) else None, histories[step] if step < len(histories) else None
    yield result.ids.tolist(), recorded["final"][:, prompt.shape[1]:].tolist()


def decoded(name: str, golden: Golden = GOLDEN) -> DecodeResult:
    """The kit's answer to a recorded call."""
    call, config, recorded = sample_case(name, golden)
    return decode(_sharper(released_denoiser(golden), call.get("lm_head_scale", 1)), recorded["prompt_ids"], config)


def _sharper(model: Denoiser, scale: float) -> Denoiser:
    """A copy that shares all weights except the output head, which is `scale` times as large."""
    if scale == 1:
        return model
    copy = Denoiser(model.config)
    copy.model = model.model
    copy.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * scale)
    return copy


PART = "denoiser"
CASES = (
    Case(PART, "1 token", "logits", 1e-5, partial(full_attention, "infer_len1")),
    Case(PART, "7 tokens", "logits", 1e-5, partial(full_attention, "infer_len7")),
    Case(PART, "odd positions up to 2000", "logits", 1e-5, partial(full_attention, "infer_posids")),
    Case(PART, "the three in a padded batch", "logits", 1e-5, padded_batch),
    Case(PART, "packed row, released mask", "logits", 1e-5, packed_row),
    Case(PART, "packed row, released mask", "loss", 1e-5, packed_loss),
    Case(PART, "packed row, released mask", "6 gradients, relative", 1e-4, packed_gradients, relative=True),
    Case(PART, "packed row, own segments, rows 0-24", "logits", 1e-5, packed_segments),
    Case("speech adapter", "9 frames", "projected frames", 1e-5, speech_adapter),
    Case("speech adapter", "two recordings injected", "logits", 1e-5, injected_speech),
    *(Case("decoding", name, "canvases, step by step", 0, partial(canvases, name)) for name in SAMPLES))
