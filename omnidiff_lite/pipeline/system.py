"""`OmniDiffusion`: any set of text, speech and image in, any set of them out, in one call (section 3 of the paper).

    model = OmniDiffusion.from_pretrained("results/smoke/checkpoint")
    model.generate([Speech("question.wav"), Image("scene.png")], to=("text", "speech"), seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from omnidiff_lite.pipeline.answers import Answer, read_answer
from omnidiff_lite.artifacts import results_root
from omnidiff_lite.autoregression import decode_autoregressive
from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.chat import ChatEncoder, SpeechTokens, build_messages, released_inference_messages
from omnidiff_lite.config import Preset, to_dict
from omnidiff_lite.diffusion.canvas import Canvas, inpainting_canvas
from omnidiff_lite.diffusion.decoding import DecodeResult, decode
from omnidiff_lite.diffusion.settings import DecodingConfig
from omnidiff_lite.media import Image, Part, Waveform, as_part, load_image
from omnidiff_lite.pipeline.loading import SYSTEM, load_denoiser, load_tokenizers, locate
from omnidiff_lite.pipeline.requests import MODALITIES, Request, RequestError, read_request
from omnidiff_lite.pipeline.settings import (WORLD_NOTE, Decoding, SystemSettings, answer_canvas_of, decoding_config,
                                             decoding_style, image_side, newline_id)
from omnidiff_lite.tokenizers import Tokenizers
from omnidiff_lite.tokenizers.image import centre_square, prepare
from omnidiff_lite.weights import CheckpointError, write_json


class OmniDiffusion:
    """A denoiser, the tokenizers around it, and the settings that belong to both.

    A causal denoiser, the autoregressive twin, is used the same way and answers from left to right: settings that
    order a canvas's decisions (steps, blocks, pre-filling and the like) have no effect on it.
    """

    def __init__(self, denoiser: Denoiser, tokenizers: Tokenizers, settings: SystemSettings) -> None:
        if denoiser.config.vocab_size != tokenizers.vocabulary.size:
            raise CheckpointError(f"the denoiser has {denoiser.config.vocab_size} ids, the tokenizers "
                                  f"{tokenizers.vocabulary.size}: they are of different systems")
        self.denoiser, self.tokenizers, self.settings = denoiser.eval(), tokenizers, settings
        self.chat = ChatEncoder(tokenizers.vocabulary, tokenizers.text)
        # Fills a canvas; may be replaced by one with the same arguments, such as `diffusion.plain.decode_plain`.
        self.decoder = decode_autoregressive if self.denoiser.config.is_causal else decode

    @classmethod
    def from_pretrained(cls, where: str | Path, device: str | torch.device | None = None, device_map: Any = None,
                        dtype: torch.dtype | str = torch.float32) -> OmniDiffusion:
        """A directory that `save_pretrained` wrote, released parts side by side, a `system.yaml`, or a hub id.

        `device`: for everything; by default a GPU if there is one. `device_map`: spreads the denoiser instead, as
        transformers does ("auto", or a map); the tokenizers then go to `device` or its first device. `dtype`: the
        denoiser's ("auto": as stored); the tokenizers compute in float32. No weights are held twice: those that need
        no conversion are read from the files as needed, so leave the files in place meanwhile. Raises
        `CheckpointError` naming what is missing or does not fit, `ConfigError` for a misspelt setting.
        """
        located = locate(where)
        tokenizers = load_tokenizers(located)
        if device_map is None:
            device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            device_map = None if device.type == "cpu" else {"": device}
        denoiser = load_denoiser(located.places["denoiser"], tokenizers, dtype, device_map)
        return cls(denoiser, tokenizers.to(device or denoiser.device), located.settings)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = torch.bfloat16) -> Path:
        """Write all parts side by side, weights in `dtype` (None: as they are).

        The settings come last, so that a half-written system is not mistaken for a whole one.
        """
        directory = Path(directory)
        (directory / SYSTEM).unlink(missing_ok=True)
        self.tokenizers.save_pretrained(directory, dtype)
        kept = {n: t.to(dtype) if dtype and t.is_floating_point() else t
                for n, t in self.denoiser.state_dict().items()}
        self.denoiser.save_pretrained(directory / "denoiser", state_dict=kept)
        write_json(directory / SYSTEM, to_dict(self.settings))
        return directory

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def side(self) -> int:
        """Tokens along one side of a picture in an answer."""
        return image_side(self.settings, self.tokenizers)

    @property
    def world_note(self) -> str:
        """What this system knows, for someone who brings their own picture."""
        return WORLD_NOTE if self.settings.note else ""

    # --- any to any ---------------------------------------------------------------------------------------------------

    def generate(self, inputs: Any, to: str | Sequence[str] = "text", task: str | None = None,
                 decoding: Decoding = None, seed: int = 0) -> Answer:
        """Answer one request.

        `inputs`: a part or a list of parts (`Text`, `Image`, `Speech`, or plain strings, PIL images, waveforms).
        `to`: one or more of "text", "speech", "image". `task` is inferred from both unless named. `decoding`: fields
        of `DecodingConfig` that differ from the task's own, e.g. {"steps": 10}; or "released", for the released
        script's prompts, settings and unrestricted canvas ({"style": "released", "steps": 10} for both). Raises
        `RequestError`, `MediaError`, `ConfigError`.
        """
        parts = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        return self.generate_many([parts], to, task, decoding, seed)[0]

    def generate_many(self, requests: Sequence[Sequence[Part | Any]], to: str | Sequence[str] = "text",
                      task: str | None = None, decoding: Decoding = None, seed: int = 0,
                      batch_size: int = 16) -> list[Answer]:
        """Answer many requests of one kind, `batch_size` at a time.

        Request i draws from seed + i: it gets the answer it would get alone with that seed, whatever its neighbours.
        """
        outputs = _outputs(to)
        read = [read_request([as_part(p) for p in parts], outputs, task) for parts in requests]
        # One task at a time, as tasks decode differently; neighbours of similar size need little padding.
        order = sorted(range(len(read)), key=lambda i: (read[i].task or "", read[i].size))
        answers: dict[int, Answer] = {}
        for _, group in groupby(order, key=lambda i: read[i].task):
            numbers = list(group)
            for start in range(0, len(numbers), batch_size):
                chunk = numbers[start:start + batch_size]
                seeds = [seed + i for i in chunk]
                answers |= zip(chunk, self._answer([read[i] for i in chunk], outputs, decoding, seeds))
        return [answers[i] for i in range(len(read))]

    @torch.inference_mode()
    def _answer(self, requests: list[Request], outputs: tuple[str, ...], decoding: Decoding, seeds: list[int]
                ) -> list[Answer]:
        released = decoding_style(self.settings, decoding)[0] == "released"
        config = decoding_config(self.settings, requests[0].task, outputs, decoding, self.chat, self.side)
        # Left to right, speech begins where the text ends: a fixed place would cut the text or come too late.
        prefill = {} if self.denoiser.config.is_causal else config.prefill
        # The released script decodes plain masks, any of which may become any id.
        canvases = None if released else [answer_canvas_of(self.settings, self.tokenizers, r, outputs, prefill)
                                          for r in requests]
        result = self._decode(self.prompts(requests, released), canvases, config, seeds)
        return [read_answer(result, i, self.side, self.tokenizers, outputs, seed, released)
                for i, seed in enumerate(seeds)]

    def _decode(self, prompts: list[tuple[list[int], Tensor]], canvases: list[Canvas] | None, config: DecodingConfig,
                seeds: list[int]) -> DecodeResult:
        ids = [torch.tensor(p, device=self.device) for p, _ in prompts]
        embeds = [self.denoiser.embed(i[None], f[None].to(self.device))[0] for i, (_, f) in zip(ids, prompts)]
        v = self.tokenizers.vocabulary
        ends = (v.im_end,) if self.denoiser.config.is_causal else (v.im_end, v.end_of_audio)
        return self.decoder(self.denoiser, ids, config, prompt_embeds=embeds, canvas=canvases, seeds=seeds, ends=ends)

    # --- from media to a prompt ---------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prompts(self, requests: Sequence[Request], released: bool = False) -> list[tuple[list[int], Tensor]]:
        """Ids [P] and aligned speech frames [P, dim] of each request; media encoded in one batch per kind.

        `released`: worded as in the released inference script, which differs from training.
        """
        pictures = iter(self.image_codes([i for r in requests for i in r.images], self.settings.understanding_size))
        recordings = iter(self._heard([w for r in requests for w in r.speech]))
        prompts = []
        for request in requests:
            images = [next(pictures) for _ in request.images]
            heard = [next(recordings) for _ in request.speech]
            messages = released_inference_messages(request.messages) if released else request.messages
            ids = self.chat.prompt(messages, images, [tokens for tokens, _ in heard])
            prompts.append((ids, self._aligned(ids, [frames for _, frames in heard])))
        return prompts

    def _heard(self, recordings: list[Waveform]) -> list[tuple[SpeechTokens, Tensor]]:
        """A user's speech as the denoiser was trained to hear it: its tokens, and its frames [k, dim]."""
        if self.denoiser.config.speech_input == "discrete":
            none = torch.zeros(0, self.tokenizers.speech_encoder.config.dim)
            return [(SpeechTokens(codes=codes.tolist()), none)
                    for codes in self.tokenizers.speech_tokenizer.encode_many(recordings)]
        return [(SpeechTokens(frames=len(frames)), frames)
                for frames in self.tokenizers.speech_encoder.encode(recordings)]

    def _aligned(self, ids: list[int], frames: list[Tensor]) -> Tensor:
        aligned = torch.zeros(len(ids), self.tokenizers.speech_encoder.config.dim)
        if frames:
            here = torch.tensor(ids) == self.tokenizers.vocabulary.context_of_audio
            aligned[here] = torch.cat(frames).float().cpu()
        return aligned

    @torch.inference_mode()
    def image_codes(self, images: Sequence[PIL.Image.Image], size: int) -> list[list[int]]:
        """Row-major codes of pictures, each cropped to `size` x `size` pixels."""
        if not images:
            return []
        pixels = torch.stack([prepare(image, size) for image in images]).to(self.device)
        return [codes.flatten().tolist() for codes in self.tokenizers.image.encode(pixels)]

    # --- inpainting ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def inpaint(self, image: Image | PIL.Image.Image | str | Path, mask: np.ndarray | PIL.Image.Image,
                prompt: str = "", decoding: Decoding = None, seed: int = 0) -> Answer:
        """Redraw what `mask` covers (bool [H, W], or a PIL picture, white = redraw), guided by `prompt`.

        The covered tokens become [MASK] and the others stay (figure 6 of the paper; no extra training). A causal
        denoiser paints row by row and sees only what comes before: above, and to the left. The mask is cropped like the
        picture: shorter side, centred. Raises `RequestError` for a mask of the wrong shape or an empty one.
        """
        picture = image.load() if isinstance(image, Image) else load_image(image)
        size, factor = self.settings.generation_size, self.tokenizers.image.config.factor
        hidden = token_mask(mask, picture.size, size, factor)
        codes = torch.tensor(self.image_codes([picture], size)[0]).view(hidden.shape)
        canvas = inpainting_canvas(self.tokenizers.vocabulary, codes, hidden, newline_id(self.tokenizers))
        request = Request(build_messages("t2i", prompt), "t2i", prompt)
        config = decoding_config(self.settings, "t2i", ("image",), decoding, self.chat, self.side)
        result = self._decode(self.prompts([request]), [canvas], config, [seed])
        return read_answer(result, 0, self.side, self.tokenizers, ("image",), seed)


def token_mask(mask: np.ndarray | PIL.Image.Image, image_size: tuple[int, int], size: int, factor: int) -> Tensor:
    """A pixel mask as bool [h, w] over tokens: a token is redrawn if any of its pixels is covered."""
    if not isinstance(mask, PIL.Image.Image):
        mask = PIL.Image.fromarray(np.asarray(mask, dtype=bool).astype(np.uint8) * 255)
    if mask.size != image_size:
        raise RequestError(f"the mask is {mask.size[0]} x {mask.size[1]} pixels, the picture {image_size[0]} x "
                           f"{image_size[1]}: give a mask of the picture's size")
    covered = centre_square(mask.convert("L").convert("F"), size, PIL.Image.Resampling.BOX)  # F: any coverage counts
    hidden = (torch.from_numpy(np.array(covered)) > 0
              ).view(size // factor, factor, size // factor, factor).any(3).any(1)
    if not hidden.any():
        raise RequestError("the mask covers nothing that is left after cutting the picture square: nothing to redraw")
    return hidden


def _outputs(to: str | Sequence[str]) -> tuple[str, ...]:
    given = [to] if isinstance(to, str) else list(to)
    wrong = [name for name in given if name not in MODALITIES]
    if wrong or not given:
        raise RequestError(f"to={to!r}: give one or several of {', '.join(MODALITIES)}")
    return tuple(name for name in MODALITIES if name in given)


def default_checkpoint() -> Path:
    """The shipped system of the largest preset in `results/`."""
    root = results_root()
    for preset in ("gpu", "cpu", "smoke"):
        if (root / preset / "checkpoint" / SYSTEM).exists():
            return root / preset / "checkpoint"
    raise CheckpointError(f"{root} holds no checkpoint: run make reproduce, or name one with --checkpoint")


def settings_of(preset: Preset, **changes: Any) -> SystemSettings:
    """The settings of a preset's system."""
    return SystemSettings(preset=preset.name, understanding_size=preset.image_tokenizer.understanding_size,
                          generation_size=preset.image_tokenizer.generation_size, decoding=preset.decoding,
                          note="" if preset.name == "full" else WORLD_NOTE, **changes)
