"""Moments that DeepSpeed's ZeRO-2 keeps in flat parts, one per process, as whole tensors by weight, and back.

So its checkpoints are like those of any other run: any number of processes can resume them, with or without DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from omnidiff_lite.processes import is_first

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def is_partitioned(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether DeepSpeed has taken over the optimizer."""
    return any(type(optimizer).__module__.startswith("deepspeed.") for optimizer in optimizers)


def moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """`<weight>.<moment>`, and `<weight>.step`, whole and on the CPU; 0 before the first step.

    All processes must call it, as each contributes its part of every tensor; only the first gets them.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    zero, found = _begun(optimizers), {}
    step = zero.optimizer.state[zero.single_partition_of_fp32_groups[0]]["step"]
    for name, parameter in _trained(model):
        for key in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, key)
            if is_first():
                found[f"{name}.{key}"] = whole.cpu()
        found[f"{name}.step"] = torch.as_tensor(float(step))
    return found if is_first() else {}


def restore(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
            moments_of: Callable[[str, nn.Parameter], dict[str, Tensor]]) -> None:
    """Put moments in place, and the model's current weights into the flat parts.

    `moments_of(name, weight)`: one weight's `exp_avg` and `exp_avg_sq`, shaped like it, and `step`, one number.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero, step = _begun(optimizers), 0.0
    for name, parameter in _trained(model):
        kept = moments_of(name, parameter)
        safe_set_full_fp32_param(parameter, parameter.data)
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, kept[key].to(parameter.device), key)
        step = float(kept["step"])
    for part in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[part]["step"].fill_(step)


def _begun(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """DeepSpeed's optimizer, with moments of 0 if AdamW, which creates them at its first step, has none yet."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    (zero,) = optimizers
    for group, part in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        if not zero.optimizer.state[part]:
            zero.optimizer.state[part] = {"step": torch.zeros((), device=part.device),
                                          **{key: torch.zeros_like(part) for key in MOMENTS}}
            lazy_init_hp_params_optimizer_state(group, part, zero.optimizer.state)
    return zero


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
