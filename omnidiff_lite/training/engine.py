"""How a step's gradient is gathered and applied: by accelerate with torch's optimizers, or by DeepSpeed's engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Engine:
    """Single process, DDP and FSDP2: gradients are clipped, checked, and given to each optimizer."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
                 clip: float) -> None:
        """`module`, `optimizers`: as prepared by `accelerator`. `clip`: the largest gradient norm."""
        self.accelerator, self.module, self.optimizers, self.clip = accelerator, module, optimizers, clip

    def averaging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context for one micro-batch, forward and backward. Gradients are averaged over the processes only after the
        last one; sharded ones after each, as until then every GPU holds a gradient of the whole network. The sum is
        the same either way."""
        if last or self.accelerator.distributed_type is DistributedType.FSDP:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's scalar `loss` to the step's."""
        self.accelerator.backward(loss)

    def update(self, rate: float, look: Callable[[float], None]) -> float:
        """One step of the optimizers at a learning rate; returns the gradient norm before clipping.

        `look` gets that norm first, and may raise: the weights are then unchanged.
        """
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        look(norm)
        for optimizer in self.optimizers:
            _set_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def close(self) -> None:
        """Release what is attached to the module."""


class ZeroEngine(Engine):
    """DeepSpeed's, which itself reduces, clips (as its plugin says) and updates the part that each process keeps."""

    @contextlib.contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        """DeepSpeed averages after each micro-batch, only into each process's own part, and steps after the last."""
        self.module.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """As above."""
        self.module.backward(loss)

    def update(self, rate: float, look: Callable[[float], None]) -> float:
        """As above, but `look` comes after the step. DeepSpeed itself skips one whose gradient is not finite, and the
        norm is then infinite."""
        for optimizer in self.optimizers:
            _set_rate(optimizer, rate)
        self.module.step()
        norm = float(self.module.get_global_grad_norm())
        look(norm)
        return norm

    def close(self) -> None:
        """Remove its hooks and flat parts, which would interfere with another stage of the same denoiser."""
        self.module.destroy()


def engine_of(accelerator: Accelerator, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], clip: float
              ) -> Engine:
    """The engine that the launcher chose."""
    kind = ZeroEngine if accelerator.distributed_type is DistributedType.DEEPSPEED else Engine
    return kind(accelerator, module, optimizers, clip)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
