"""Muon for many small matrices: those of the same shape in one stack, and each process takes its share of the stack.

torch's own Muon goes matrix by matrix. On a GPU, which with a small network keeps waiting for Python, that took most of
a step; on a CPU, where every process of a group would compute every update, nearly a third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from omnidiff_lite.precision import matrix_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values to 1 (Jordan et al., 2024)
ROUNDS = 5
AT_ONCE = 2**26  # numbers in one stack, so that large matrices are processed one by one


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: the same state and, up to rounding, the same updates.

    In a process group the gradients must be the same everywhere, as DDP leaves them, and all must step together.
    Sharded matrices (FSDP2) are DTensors, which gather what a product needs: torch's own step handles them one by one.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every matrix that has a gradient; returns the result of `closure`, which is called first."""
        matrices = [p for group in self.param_groups for p in group["params"]]
        if any(isinstance(p, DTensor) for p in matrices):
            return super().step(closure)
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, alike in by_shape.items():
                some = max(1, AT_ONCE // shape.numel())
                for part in (alike[i:i + some] for i in range(0, len(alike), some)):
                    self._update(part, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})
        return loss

    def _update(self, alike: Sequence[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        """Update matrices of one shape; the rate is scaled to the size of AdamW's steps."""
        updates = shared(torch.stack(self._directions(alike, momentum))).to(alike[0].dtype)
        torch._foreach_mul_(alike, 1 - lr * weight_decay)
        torch._foreach_add_(alike, list(updates.unbind()), alpha=-lr * 0.2 * max(alike[0].shape) ** 0.5)

    def _directions(self, matrices: Sequence[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov momentum: the gradients, pulled towards their running means."""
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        means, gradients = [self.state[p]["momentum_buffer"] for p in matrices], [p.grad for p in matrices]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, means, momentum))


def orthogonal(stack: Tensor) -> Tensor:
    """Matrices [n, a, b] with singular values driven to about 1 by Newton-Schulz rounds in bfloat16, or in float32 if
    the hardware does not multiply bfloat16."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).to(matrix_dtype("bf16", stack.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def shared(stack: Tensor) -> Tensor:
    """`orthogonal(stack)`; each process of a group computes its share."""
    if not dist.is_initialized() or (world := dist.get_world_size()) == 1:
        return orthogonal(stack)
    size = -(-len(stack) // world)
    own = stack[dist.get_rank() * size:][:size]
    padded = torch.zeros(size, *stack.shape[1:], dtype=matrix_dtype("bf16", stack.device), device=stack.device)
    if len(own):
        padded[:len(own)] = orthogonal(own)
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:len(stack)]
