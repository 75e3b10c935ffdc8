"""Memory of one GPU in training: weights, gradients, optimizer, activations, under three ways to share them.

Counted tensor by tensor from what autograd keeps for the kit's own `AnswerLoss`; the tests measure the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnidiff_lite.backbone import DenoiserConfig
from omnidiff_lite.plan.parts import PlanError, attention_widths, denoiser_parameters

GIB = 2**30
Strategy = Literal["ddp", "fsdp2", "zero2"]
Numbers = Literal["fp32", "autocast", "bf16"]

# Set aside: the CUDA context, NCCL, cuBLAS workspaces; and a share for the allocator's fragments. Both are assumptions.
RESERVED, FRAGMENTS = 2 * GIB, 0.05


@dataclass(frozen=True)
class Widths:
    """Bytes of one number of each kind that autograd keeps."""

    work: int  # outputs of linear layers
    residual: int  # the stream between layers, normalised and not yet scaled
    attention_inputs: int  # copies of the normalised stream, for q, k and v
    feed_forward_inputs: int  # for gate and up


# Autocast casts the input of each linear layer anew (3 for q, k, v; 2 for gate, up) and leaves the stream in float32;
# weights that are bfloat16 themselves (FSDP2's policy, the released script's DeepSpeed) make the stream bfloat16 and
# share one input.
NUMBERS: dict[Numbers, Widths] = {
    "fp32": Widths(4, 4, 4, 4), "autocast": Widths(2, 4, 3 * 2, 2 * 2), "bf16": Widths(2, 2, 2, 2)}


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro batch. `saved`: kept at the end of the forward pass; `peak`: the most at any time."""

    saved: int
    peak: int


def activations(config: DenoiserConfig, rows: int, length: int, scored: int, numbers: Numbers = "bf16",
                recompute: bool = False) -> Activations:
    """Activations of `rows` packed rows of `length` tokens, with `scored` positions in all.

    With T = rows x length tokens, widths H, A (queries; keys and values are repeated to A, as the kernels want them
    with a mask) and F, w bytes per number:

    - a norm keeps its input and a reciprocal root in float32, the normalised stream, and the inputs of what follows;
    - attention keeps q, k, v, its output: 4 T A w; a log per head and token; the mask as numbers, T x length x w;
    - the feed-forward keeps gate, its SiLU, up and their product: 4 T F w;
    - the head keeps its input and the log-probabilities, M V in float32, for M scored positions;
    - with recomputation, only each layer's input, and one layer anew during the backward pass.

    The peak is at the end of autocast, at the loss (log-probabilities, their gradient and that of the logits, all in
    float32), at the gradient of the head's weight, or in the feed-forward of a layer's backward pass. Left out: the
    speech frames and their adapter, below a hundredth of the layers. Compare Korthikanti et al. 2022 (arXiv 2205.05198,
    equation 2): s b h (34 + 5 a s / h) for a GPT layer with two-byte numbers, dropout and stored attention scores.
    """
    w, layers, tokens = NUMBERS[numbers], config.num_hidden_layers, rows * length
    hidden, (attention, _), feed = config.hidden_size, attention_widths(config), config.intermediate_size
    norm = tokens * (hidden * (4 + w.residual) + 4)
    layer = (2 * norm + tokens * hidden * (w.attention_inputs + w.feed_forward_inputs)
             + 4 * tokens * (attention + feed) * w.work
             + 4 * tokens * config.num_attention_heads + tokens * length * w.work)
    stack = norm + (layers * tokens * hidden * w.residual if recompute
                    else layers * layer + 2 * tokens * config.head_dim * w.residual)
    logits = scored * config.vocab_size  # numbers
    copies = 2 * denoiser_parameters(config).multiplied if numbers == "autocast" else 0
    head_copy = min(copies, 2 * config.vocab_size * hidden)
    kept = head_copy if recompute else copies
    saved = stack + kept + scored * hidden * w.work + 4 * logits
    # --- Candidates for the peak, besides the stack and the copies ----------------------------------------------------
    gradient = w.work + (4 if numbers == "autocast" else 0)  # bytes per weight: bfloat16 of autocast, its float32 cast
    after_forward = copies + scored * hidden * w.work + w.work * logits - kept
    at_loss = scored * hidden * w.work + 3 * 4 * logits
    at_head = max(scored * hidden * w.work + w.work * logits + config.vocab_size * hidden * w.work,
                  config.vocab_size * hidden * gradient - head_copy)
    again = layer + 2 * denoiser_parameters(config).layer * (numbers == "autocast")
    in_layer = (recompute * again - norm - head_copy + tokens * hidden * w.residual  # the ends are done with
                + max(2 * tokens * feed * w.work, tokens * feed * w.work + hidden * feed * gradient))
    return Activations(saved, peak=stack + kept + max(after_forward, at_loss, at_head, in_layer))


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at its fullest. `working`: gathered weights and gradients on their way."""

    strategy: Strategy
    recompute: bool
    rows: int  # the micro batch: packed rows per forward pass
    weights: int
    gradients: int
    optimizer: int
    working: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.working + self.activations


def memory(config: DenoiserConfig, strategy: Strategy, gpus: int, rows: int, length: int, scored: int,
           recompute: bool = False) -> Memory:
    """What one of `gpus` holds. `scored`: positions of one row.

    AdamW in mixed precision keeps at least 16 bytes per parameter (Rajbhandari et al. 2020, arXiv 1910.02054, section
    3):

    - ddp, as the kit trains: weights, gradients and moments in float32, 4 + 4 + 8, autocast's bfloat16 copies among the
      activations, and beyond one GPU DDP's buckets, as large as the gradients (`gradient_as_bucket_view=False`);
    - fsdp2 in bfloat16, as the kit sets it up: the same 16 bytes over N GPUs; working: the ends of the network and two
      layers (one prefetched) gathered in bfloat16, and their gradients in bfloat16 and, for averaging, in float32;
    - zero2 is fsdp2 that keeps what it gathered until the backward pass is over: whole bfloat16 weights, 2, besides the
      same 16 over N. DeepSpeed's ZeRO-2, with which the released script trains, shares in the same way; as the kit sets
      it up (configs/deepspeed.yaml) its weights are float32, which adds 4 bytes per parameter to the 2.
    """
    count = denoiser_parameters(config)
    whole, passing = count.total, count.ends + 2 * count.layer
    shard = -(-whole // gpus)
    if strategy == "ddp":
        held = dict(weights=4 * whole, gradients=4 * whole, optimizer=8 * whole, working=4 * whole * (gpus > 1))
    else:
        gathered = whole if strategy == "zero2" else passing
        held = dict(weights=4 * shard, gradients=4 * shard, optimizer=8 * shard, working=2 * gathered + 6 * passing)
    kept = activations(config, rows, length, rows * scored, "autocast" if strategy == "ddp" else "bf16", recompute)
    return Memory(strategy, recompute, rows, **held, activations=kept.peak)


def usable(gpu_memory: float) -> int:
    """Bytes that tensors may use on a GPU of `gpu_memory` GiB."""
    return max(0, int(gpu_memory * GIB * (1 - FRAGMENTS)) - RESERVED)


def largest_micro_batch(config: DenoiserConfig, strategy: Strategy, gpus: int, gpu_memory: float, rows_per_step: int,
                        length: int, scored: int, recompute: bool = False) -> Memory | None:
    """The plan with the most rows per forward pass that fits `gpu_memory` GiB; None if not even one row does.

    Only divisors of a GPU's share of the `rows_per_step` are tried, so that micro batches are equal. Raises `PlanError`
    if the rows do not divide among the GPUs.
    """
    if rows_per_step % gpus:
        raise PlanError(f"{rows_per_step} rows a step do not divide among {gpus} GPUs; change --gpus or the stages' "
                        "rows (--set training.stage1.rows=...)")
    share = rows_per_step // gpus
    for rows in (n for n in range(share, 0, -1) if share % n == 0):
        plan = memory(config, strategy, gpus, rows, length, scored, recompute)
        if plan.total <= usable(gpu_memory):
            return plan
    return None
