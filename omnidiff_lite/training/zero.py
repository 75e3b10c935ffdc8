"""Moments that DeepSpeed's ZeRO-2 keeps in flat parts, one a process, as whole tensors by weight, and back.

So its checkpoints are those of any other run: any number of processes resumes them, with DeepSpeed or without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def is_partitioned(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether DeepSpeed has taken over the optimizer."""
    return any(hasattr(optimizer, "single_partition_of_fp32_groups") for optimizer in optimizers)


def moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """`<weight>.<moment>`, and `<weight>.step`, whole on every process; all must call it. 0 before the first step."""
    from deepspeed.utils import safe_get_full_optimizer_state

    zero, found = _begun(optimizers), {}
    step = zero.optimizer.state[zero.single_partition_of_fp32_groups[0]]["step"]
    for name, parameter in _trained(model):
        found |= {f"{name}.{key}": safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        found[f"{name}.step"] = torch.as_tensor(float(step))
    return found


def restore(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], kept: Mapping[str, Tensor]) -> None:
    """Put what `moments` gave back in place, and the model's weights, as they now are, into the flat parts."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero = _begun(optimizers)
    for name, parameter in _trained(model):
        safe_set_full_fp32_param(parameter, parameter.data)
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, kept[f"{name}.{key}"].to(parameter.device), key)
        steps = kept[f"{name}.step"]
    for part in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[part]["step"].fill_(float(steps))


def _begun(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """DeepSpeed's optimizer, with moments of 0 where AdamW, which makes them at its first step, has none."""
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
