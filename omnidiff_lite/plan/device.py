"""The most a device can do, measured: bytes moved and multiplications per second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from omnidiff_lite.evaluation.statistics import Estimate, median_interval
from omnidiff_lite.measure import seconds_of
from omnidiff_lite.plan.parts import PlanError


def device_of(name: str | torch.device, needed: int = 0) -> torch.device:
    """The device; `PlanError` if it does not exist or has fewer than `needed` bytes free."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PlanError(f"device {str(name)!r}: give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise PlanError(f"device {name}: not on this machine; times are taken on cpu or cuda")
    free = _free_bytes(device)
    if free < needed:
        raise PlanError(f"device {name}: the weights take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free; "
                        "name a larger device or a smaller preset")
    return device


def _free_bytes(device: torch.device) -> int:
    import psutil

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def device_name(device: torch.device) -> str:
    """For a GPU its model; for the CPU how many threads torch uses."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"


@dataclass(frozen=True)
class Rates:
    """The highest rates reached: `bandwidth` in bytes per second, `matmul` in FLOP per second."""

    bandwidth: Estimate
    matmul: Estimate


def seconds_at(amount: float, rate: Estimate) -> Estimate:
    """Seconds that `amount` takes at a measured rate; the interval is the rate's, inverted."""
    return Estimate(amount / rate.value, amount / rate.high, amount / rate.low, rate.n)


@torch.no_grad()
def measure_rates(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Rates:
    """`bandwidth`: of one large copy, counting bytes read and written; `matmul`: of one large square product, on a CPU
    in `dtype` or in float32, whichever is faster: without instructions for bfloat16, one that large takes longest.

    Each repeat does the work several times, so that launching it does not count. Both are rates that a program
    reaches, a few percent below the data sheet.
    """
    large = device.type == "cuda"
    count, side, times = (2**30, 8192, 20) if large else (2**26, 1024, 1)
    source = torch.zeros(count, dtype=dtype, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes * times

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    def multiply(left: Tensor, product: Tensor) -> None:
        for _ in range(times):
            torch.mm(left, left, out=product)

    def rate(work: Callable[[], None], amount: float) -> Estimate:
        work()  # to warm up
        return median_interval([amount / s for s in seconds_of(work, device, repeats)])

    squares = [torch.randn(side, side, device=device).to(kind)
               for kind in ([dtype] if large else [dtype, torch.float32])]
    products = [rate(partial(multiply, left, torch.empty_like(left)), 2 * side**3 * times) for left in squares]
    return Rates(rate(copy, moved), max(products, key=lambda product: product.value))
