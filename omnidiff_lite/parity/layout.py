"""What can be compared without weights: ids, prompts, training layout, masking, packing; and all names at full size."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import torch

from omnidiff_lite.backbone import Denoiser, DenoiserConfig
from omnidiff_lite.chat import ChatEncoder, SpeechTokens, build_messages, released_inference_messages
from omnidiff_lite.config import ImageTokenizerConfig, SpeechDecoderConfig, SpeechEncoderConfig, SpeechTokenizerConfig
from omnidiff_lite.data.encode import EncodedSample
from omnidiff_lite.data.packing import pack_released
from omnidiff_lite.diffusion.corruption import corrupt, sample_time
from omnidiff_lite.parity.compare import Case, Pairs
from omnidiff_lite.parity.golden import Golden
from omnidiff_lite.tokenizers.image import ImageTokenizer
from omnidiff_lite.tokenizers.speech_decoder import SpeechDecoder
from omnidiff_lite.tokenizers.speech_encoder import SpeechEncoder
from omnidiff_lite.tokenizers.speech_tokenizer import SpeechTokenizer
from omnidiff_lite.vocabulary import Vocabulary

PAD = 151643

# --- names ----------------------------------------------------------------------------------------------------------

PARTS = {  # list of the released names: (the full-size module, prefix of its part, tensors that may be absent)
    "omni_diffusion_7b": (lambda: Denoiser(DenoiserConfig()), "", ("model.audio_model.",)),
    "magvit_v2": (lambda: ImageTokenizer(ImageTokenizerConfig()), "", ()),
    "sensevoice_small": (lambda: SpeechEncoder(SpeechEncoderConfig()), "", ("cmvn",)),  # in am.mvn in the release
    "glm4voice_tokenizer": (lambda: SpeechTokenizer(SpeechTokenizerConfig()), "", ("ema_",)),  # training statistics
    "glm4voice_flow": (lambda: SpeechDecoder(SpeechDecoderConfig()), "flow.", ()),
    "glm4voice_hift": (lambda: SpeechDecoder(SpeechDecoderConfig()), "vocoder.", ())}


def names(part: str, golden: Golden) -> Pairs:
    """Instantiated at full size on the meta device: shapes without memory."""
    make, prefix, absent = PARTS[part]
    with torch.device("meta"):
        state = make().state_dict()
    own = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    listed = golden.listed(part)
    for name in own | listed:
        if not name.startswith(absent):
            shape, dtype = listed.get(name, (None, ""))
            yield (name, *_seen(own.get(name), dtype)), (name, shape, dtype)


def _seen(tensor: torch.Tensor | None, dtype: str) -> tuple[tuple[int, ...] | None, str]:
    """Shape and, where the list gives one, dtype."""
    if tensor is None:
        return None, ""
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.") if dtype else ""


# --- ids and prompts ------------------------------------------------------------------------------------------------


def vocabulary_ids(golden: Golden) -> Pairs:
    """Size, first image id and every special id; for codes the name of their id."""
    layout, vocabulary = golden.json("vocab_layout"), Vocabulary.released()
    yield vocabulary.size, layout["after_magvit"]
    yield vocabulary.image_range.start, layout["after_update_tokenizer"]
    for name, token in layout["ids"].items():
        code = re.fullmatch(r"<\|(audio|image)_(\d+)\|>", name)
        yield vocabulary.name(token) if code else vocabulary.ids.get(name), name[2:-2] if code else token


def prompts(golden: Golden) -> Pairs:
    """The inference prompt of each task, as text."""
    texts = {"TTS": "HELLO", "T2I": "A CAT", "VQA": "QUESTION"}
    for name, wanted in golden.json("vocab_layout")["prompts"].items():
        messages = released_inference_messages(build_messages(name.lower(), texts.get(name)))
        turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        yield turns + "<|im_start|>assistant\n", wanted


class _Words:
    """The toy tokenizer of the recording: words, spaces and newlines, with Qwen's ids where it had them, else 1000."""

    ids = {"\n": 198, " ": 1032, "user": 872, "assistant": 77091, "system": 8948}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [self.ids.get(word, 1000) for word in re.findall(r"\s|\S+", text)]


def training_layout(golden: Golden) -> Pairs:
    """One sample of each of six tasks as ids and labels. The recorded word ids, 1000 to 1996, are made up, hence all
    1000 here; pictures are 1,024 times code 3 when seen and 256 times code 4 when drawn; tail pads are random, and
    copied."""
    encoder = ChatEncoder(Vocabulary.released(), _Words())
    for recorded in golden.json("forward_process")["preprocess_layout"]["tasks"].values():
        sample, pads = recorded["sample"], recorded["unmasked_input_ids_runs"][-1][1]
        content = {m["role"]: m["content"] for m in sample["messages"]}
        images = [[3] * 1024 if "<|image|>" in content["user"] else [4] * 256] * len(sample.get("images", ()))
        heard = [SpeechTokens(frames=10 + 4)] * content["user"].count("<|audio|>")
        said = [SpeechTokens(codes=[5, 6, 7, 8])] * content["assistant"].count("<|audio|>")
        ids, labels = encoder.sample(sample["messages"], images, heard + said)
        yield ids + [PAD] * pads, _flat(recorded["unmasked_input_ids_runs"])
        yield labels + [PAD] * pads, _flat(recorded["labels_if_everything_masked_runs"])


def _flat(runs: list[list[int]]) -> list[int]:
    made_up = set(range(1000, 1997)) - {1032}
    return [1000 if value in made_up else value for value, count in runs for _ in range(count)]


# --- masking --------------------------------------------------------------------------------------------------------


def _masked(golden: Golden, gamma: float) -> tuple[torch.Tensor, dict[str, Any]]:
    """20,000 draws over a row of 22 ordinary labels and 8 pads, with t drawn per token."""
    released, generator = golden.json("forward_process"), torch.Generator().manual_seed(0)
    labels = torch.tensor(released["labels"]).expand(released["runs"], -1)
    masked = corrupt(labels, labels == PAD, sample_time(labels, "token", generator), gamma, generator)
    return masked, released[f"special_mask_ratio_{gamma}"]


def masks_exactly(golden: Golden) -> Pairs:
    """The released draws: one unused number, then t and u for the span of labels."""
    released = golden.json("forward_process")
    labels = torch.tensor(released["labels"])
    first, last = (labels >= 0).nonzero().flatten()[[0, -1]].tolist()
    span = labels[first:last + 1]
    for example in released["exact_examples_ratio_0.6"]:
        generator = torch.Generator().manual_seed(example["torch_manual_seed"])
        torch.rand(1, generator=generator)
        masked = corrupt(span, span == PAD, sample_time(span, "token", generator), 0.6, generator)
        yield (masked.nonzero().flatten() + first).tolist(), example["masked_positions"]


def mask_rates(gamma: float, golden: Golden) -> Pairs:
    """How often each position is masked, [L]."""
    masked, expected = _masked(golden, gamma)
    yield masked.float().mean(0), torch.tensor(expected["rate_per_position"])


def mean_mask_rates(gamma: float, golden: Golden) -> Pairs:
    """The same over ordinary positions, and over pads."""
    masked, expected = _masked(golden, gamma)
    yield masked[:, 6:28].float().mean(), torch.tensor(expected["rate_normal"])
    yield masked[:, 28:36].float().mean(), torch.tensor(expected["rate_pad"])


def mask_count_variance(gamma: float, golden: Golden) -> Pairs:
    """5.5 with t drawn per token; t drawn per sequence would give 44."""
    masked, expected = _masked(golden, gamma)
    yield masked[:, 6:28].sum(1).float().var(), torch.tensor(expected["masked_normals_variance"])


def never_masked(golden: Golden) -> Pairs:
    """The positions that no draw masks are the same as in the release."""
    masked, expected = _masked(golden, 0.6)
    rates = zip(masked.float().mean(0).tolist(), expected["rate_per_position"])
    return [(rate == 0, wanted == 0) for rate, wanted in rates]


# --- packing --------------------------------------------------------------------------------------------------------


def packing(golden: Golden) -> Pairs:
    """One buffer per source, emitted when the next sample does not fit; samples that are too long are dropped."""
    recorded = golden.json("packing")
    rows = list(pack_released(_samples(recorded), recorded["max_length"], PAD))
    yield len(rows), len(recorded["emitted"])
    for row, expected in zip(rows, recorded["emitted"]):
        fields = {"tokens": "input_ids"}
        yield row and {name: getattr(row, fields.get(name, name)) for name in expected}, expected or None


def _samples(recorded: dict[str, Any]) -> list[tuple[int, EncodedSample]]:
    """Ids 1..n, the first half of them the prompt."""
    found = []
    for source, length in recorded["samples_source_and_length"]:
        ids = np.arange(1, length + 1, dtype=np.int32)
        labels = np.where(np.arange(length) < length // 2, -100, ids).astype(np.int32)
        found.append((source, EncodedSample(ids, labels, np.zeros((0, 4), np.float16), "text_qa")))
    return found


CASES = (
    *(Case("names at full size", part, "names and shapes", 0, partial(names, part)) for part in PARTS),
    Case("vocabulary", "176,264 ids", "places of the special ids", 0, vocabulary_ids),
    Case("prompts", "7 tasks", "strings", 0, prompts),
    Case("training layout", "6 tasks", "ids and labels", 0, training_layout),
    Case("masking", "seeds 0, 1, 2", "masked positions", 0, masks_exactly),
    *(Case("masking", f"20,000 draws, gamma {gamma:g}", what, tolerance, partial(check, gamma), relative)
      for gamma in (0.6, 0.1)
      for what, tolerance, check, relative in (
          ("rate of each position", 0.015, mask_rates, False), ("mean rates", 0.003, mean_mask_rates, False),
          ("variance of the count, relative", 0.05, mask_count_variance, True))),
    Case("masking", "20,000 draws", "prompt and end never masked", 0, never_masked),
    Case("packing", "9 samples of 2 sources", "rows sent off", 0, packing))
