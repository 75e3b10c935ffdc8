"""Left-to-right decoding with cached keys and values: how the autoregressive twin answers.

The twin is a denoiser with causal attention (`DenoiserConfig.is_causal`), trained on the same rows to predict the next
token. It decodes on the same canvases as the diffusion, so both give an answer the same length, markers and allowed
ids; and it samples through the same filters. Only the order differs: step k decides position k of every answer in the
batch at once, and sees nothing after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from omnidiff_lite.backbone import Denoiser
from omnidiff_lite.config import ConfigError
from omnidiff_lite.diffusion import filters, guidance
from omnidiff_lite.diffusion.allowed import allowed_table
from omnidiff_lite.diffusion.canvas import Canvas
from omnidiff_lite.diffusion.decoding import starting_canvases
from omnidiff_lite.diffusion.layout import Layout, embed_prompts
from omnidiff_lite.diffusion.result import DecodeResult
from omnidiff_lite.diffusion.settings import DecodingConfig


@torch.no_grad()
def decode_autoregressive(model: Denoiser, prompt_ids: Tensor | Sequence[Any] | None, config: DecodingConfig,
                          prompt_embeds: Tensor | Sequence[Tensor] | None = None,
                          canvas: Canvas | Sequence[Canvas] | None = None, lengths: int | Sequence[int] | None = None,
                          seeds: Sequence[int] | None = None, ends: Collection[int] = (), use_cache: bool = True
                          ) -> DecodeResult:
    """Decode one answer per prompt, token by token.

    Prompts, `canvas`, `lengths` and `seeds` are as in `diffusion.decoding.decode`. Masked positions of a canvas are
    drawn; the others are copied in when their turn comes. `ends`: ids that end an answer; the pad id always does. The
    positions from there to the next given token hold the pad id; if none is given, the answer is over. `use_cache`:
    False reruns everything for each token, which gives the same answer more slowly.

    Only the parts of `config` that shape a single draw are used: temperature, top_p, top_k, repetition_penalty,
    allowed_ids, the guidance (aligned: both sides are always at the same position), and `algorithm` as the measure of
    confidence. Those that choose an order are not: steps, blocks, thresholds, position penalties, and pre-filling.

    The result's `decided` is the position itself, -1 where nothing was drawn; `history` has a canvas [B,N] for each
    position up to the last one drawn; an answer's entry in `lengths` counts up to its end id. Raises `ConfigError` for
    a bidirectional denoiser, an empty prompt, and whatever `decode` refuses.
    """
    if not model.config.is_causal:
        raise ConfigError("decode_autoregressive needs a causal denoiser (is_causal: true); this one sees both ways, "
                          "which is for diffusion.decoding.decode")
    prompts = embed_prompts(model, prompt_ids, prompt_embeds)
    canvases = starting_canvases(config, model.config.mask_token_id, len(prompts), canvas, lengths)
    seeds = [config.seed + b for b in range(len(prompts))] if seeds is None else list(seeds)
    cache = DynamicCache(config=model.config) if use_cache else None
    return _Decoder(model, _aligned(config), prompts, canvases, seeds, ends, cache).run()


class _Decoder:
    """One call to `decode_autoregressive`: the canvas, its bookkeeping, and the cache."""

    def __init__(self, model: Denoiser, config: DecodingConfig, prompts: list[Tensor], canvases: list[Canvas],
                 seeds: list[int], ends: Collection[int], cache: DynamicCache | None) -> None:
        self.model, self.config, self.cache, self.pad = model, config, cache, model.config.pad_token_id
        self.ends = torch.tensor([self.pad, *ends])
        self.lengths = [len(c) for c in canvases]
        valid = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        self.canvas = torch.nn.utils.rnn.pad_sequence([c.ids.cpu().long() for c in canvases], batch_first=True,
                                                      padding_value=self.pad)
        self.passes = 0
        self.open = valid & (self.canvas == model.config.mask_token_id)  # to be drawn
        self.given = valid & ~self.open
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.decided = torch.full_like(self.canvas, -1)
        self.confidence = torch.full(self.canvas.shape, torch.nan)
        self.allowed = allowed_table(config.allowed_ids, canvases, model.config.vocab_size)
        self.layout = Layout(model, config, prompts, valid)
        if (self.layout.starts == self.layout.first).any():
            raise ConfigError("left-to-right decoding continues a prompt: give each one at least one token")

    def run(self) -> DecodeResult:
        history: list[Tensor] = []
        for place in range(self.canvas.shape[1]):
            if not self.open[:, place:].any():
                break
            rows = self.open[:, place].nonzero().flatten()
            if len(rows):
                self._decide(place, rows)
            history.append(self.canvas.clone())
        return DecodeResult(self.canvas, history, self.decided, self.confidence, self.lengths, self.passes)

    def _decide(self, place: int, rows: Tensor) -> None:
        """Draw the token at `place` in the answers `rows` [M]."""
        tokens, sure = self._draw(place, rows)
        self.canvas[rows, place], self.confidence[rows, place] = tokens, sure
        self.decided[rows, place] = place
        for row in rows[torch.isin(tokens, self.ends)].tolist():
            self._end(row, place + 1)

    def _end(self, row: int, start: int) -> None:
        """Draw nothing more before the next given token; if there is none, end the answer at `start`."""
        following = self.given[row, start:].nonzero().flatten().tolist()
        stop = start + following[0] if following else self.lengths[row]
        self.canvas[row, start:stop] = self.pad
        self.open[row, start:stop] = False
        if not following:
            self.lengths[row] = start

    def _draw(self, place: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token and confidence of each answer in `rows`, [M] both, on the CPU."""
        config, allowed = self.config, None
        if self.allowed is not None:
            table, group = self.allowed
            allowed = table[group[rows, place]]
        said = filters.said(self.canvas, self.decided >= 0)[rows]
        logits = self._logits(place)[rows]
        probabilities = filters.filtered(logits, config, allowed, said).softmax(-1)
        if config.temperature > 0:
            uniform = torch.cat([torch.rand(1, generator=self.generators[row]) for row in rows.tolist()])
            tokens = filters.draw(probabilities, uniform.to(probabilities.device))
        else:
            tokens = probabilities.argmax(-1)
        return tokens.cpu(), filters.confidence(probabilities, tokens, config.algorithm).cpu()

    def _logits(self, place: int) -> Tensor:
        """Float32 logits [B,V] for `place` in every answer, read at the token before it.

        All answers begin at the same column, so the token before is the last one in the pass. With a cache, a pass
        runs only the tokens since the last call: first the prompts, then those just drawn and any given after them.
        """
        self.passes += 1
        layout, stop = self.layout, self.layout.left + place
        start = 0 if self.cache is None else self.cache.get_seq_length()
        told = self.canvas[:, max(start - layout.left, 0):place].repeat(1 + layout.guided, 1)
        asked = layout.embeds[:, start:layout.left]
        embeds = torch.cat([asked, self.model.embed(told.to(asked.device)).to(asked.dtype)], dim=1)
        hidden = self.model(inputs_embeds=embeds, past_key_values=self.cache, hidden_only=True,
                            segment_ids=None if layout.segments is None else layout.segments[:, :stop],
                            position_ids=None if layout.positions is None else layout.positions[:, start:stop]).hidden
        logits = self.model.lm_head(hidden[:, -1]).float()
        if not layout.guided:
            return logits
        return guidance.combine(*logits.chunk(2), self.config.guidance_scale, self.config.guidance_alignment)


def _aligned(config: DecodingConfig) -> DecodingConfig:
    """Released guidance in aligned form: its two sides are offset only on a canvas, and its scale is one less."""
    if config.guidance_alignment == "aligned":
        return config
    return config.replace(guidance_alignment="aligned", guidance_scale=config.guidance_scale + 1)
