"""Classifier-free guidance: the correct form, and the released one, whose two sides are misaligned.

Aligned: both sides are read at the same answer position, u + s (c - u); scale 1 changes nothing.
Released (generation_utils.py:505-526): the shorter unconditional sequence is padded at its end with zero vectors, which
every position sees, and the sides are combined index by index. With prompts of P and u tokens they are P - u answer
positions apart; and the difference has weight scale + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from omnidiff_lite.chat import AUDIO, ChatEncoder, build_messages


def combine(conditional: Tensor, unconditional: Tensor, scale: float, alignment: str) -> Tensor:
    """Guided logits; `alignment` "aligned": u + s (c - u), "released": u + (s + 1) (c - u)."""
    weight = scale + 1 if alignment == "released" else scale
    return unconditional + weight * (conditional - unconditional)


def unconditional_prompt(task: str, encoder: ChatEncoder, length: int | None = None,
                         generator: torch.Generator | None = None) -> list[int]:
    """The ids of a prompt that asks for a picture of nothing in particular.

    "s2i": the system turn and an empty user turn. "t2i": the instruction with an empty description or, given the
    `length` of the conditional prompt, with random text filling it up to that length, as the released code intends
    (generation_utils.py:473-488). Raises `ValueError` for other tasks, and if `length` is too short.
    """
    if task not in ("s2i", "t2i"):
        raise ValueError(f"task {task!r} has no unconditional prompt; 's2i' and 't2i' have")
    messages = build_messages(task, "")
    ids = encoder.prompt([{**m, "content": m["content"].replace(AUDIO, "")} for m in messages])
    if task == "s2i" or length is None:
        return ids
    if length < len(ids):
        raise ValueError(f"length {length} is below the {len(ids)} fixed tokens of the unconditional prompt")
    filler = torch.randperm(encoder.vocabulary.text, generator=generator)[:length - len(ids)].tolist()
    end = len(ids) - 1 - ids[::-1].index(encoder.vocabulary.im_end)
    return ids[:end] + filler + ids[end:]
