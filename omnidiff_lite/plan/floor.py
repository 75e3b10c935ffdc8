"""The least work decoding must do: weight bytes read and multiplications, from the sizes and the schedule alone."""

from __future__ import annotations

from dataclasses import dataclass

from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.diffusion.schedule import plan
from omnidiff_lite.plan.compute import flops
from omnidiff_lite.plan.parts import denoiser_parameters


@dataclass(frozen=True)
class DecodingWork:
    """The work of one answer. Divided by a device's rates: seconds that no cacheless implementation can undercut."""

    bytes: float
    flops: float


def decoding_work(config: DenoiserConfig, prompt: int, length: int, steps: int, unconditional: int | None = None,
                  number_bytes: int = 2, allowed: int | None = None) -> DecodingWork:
    """An answer of `length` masks after `prompt` tokens in `steps` steps, one sequence at a time.

    Each step reads every weight once, except the speech adapter and the embedding, of which it needs single rows;
    passes prompt and answer through the layers; and projects the positions still masked onto the `allowed` ids (how
    many; None: all), for which it needs their rows of the head. With guidance the `unconditional` prompt and the answer
    pass through too, in the same reading of the weights. Left out: activations, logits, filters and sampling.
    `number_bytes`: per weight.
    """
    count = denoiser_parameters(config)
    table = config.vocab_size * config.hidden_size
    adapter = config.speech_dim * config.hidden_size + config.hidden_size**2 + 2 * config.speech_dim
    ids = config.vocab_size if allowed is None else allowed
    idle = table + adapter + (config.vocab_size - ids) * config.hidden_size
    read = (count.total - idle) * number_bytes
    total, left = 0.0, length
    sequences = [prompt + length] + ([] if unconditional is None else [unconditional + length])
    schedule = plan(length, length, steps)
    for step in schedule:
        total += sum(flops(config, 1, tokens, left, ids=ids).forward for tokens in sequences)
        left -= min(step.count(left), left)
    return DecodingWork(read * len(schedule), total)
