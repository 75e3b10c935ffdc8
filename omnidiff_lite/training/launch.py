"""What a launcher set up, checked against what was requested, before anything trains.

A launcher that does not find its hardware often fails silently: processes train alone and write the same files, or use
data parallelism instead of sharding. So the run compares, and stops with what to change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, is_deepspeed_available, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy

from omnidiff_lite.config import TrainingConfig
from omnidiff_lite.precision import matrix_dtype
from omnidiff_lite.training.step import TrainingError

Kind = Literal["single", "ddp", "fsdp2", "zero2", "deepspeed"]
ZERO_USUAL = {"ZERO_STAGE": "2", "CONFIG_FILE": "none", "OFFLOAD_OPTIMIZER_DEVICE": "none",
              "OFFLOAD_PARAM_DEVICE": "none"}  # what a launcher may ask of DeepSpeed
ZERO_BUCKET = 50_000_000  # gradients that DeepSpeed averages at a time: 200 MB
LAYERS = ["Qwen2DecoderLayer", "Denoiser"]  # sharded and gathered one by one; the second: embeddings, head, adapter


@dataclass(frozen=True)
class Expected:
    """What a run was meant to get; None if anything will do."""

    processes: int | None = None
    kind: Kind | None = None
    device: str | None = None  # "cuda", "cpu"

    @classmethod
    def of(cls, words: Sequence[str]) -> Expected:
        """From words in any order: a number of processes, a kind, a device. Raises `ValueError`."""
        found: dict[str, int | str] = {}
        for word in words:
            key = "processes" if word.isdigit() else "kind" if word in get_args(Kind) else "device"
            if key in found or key == "device" and word not in ("cpu", "cuda", "xpu", "npu", "hpu"):
                raise ValueError(f"--expect {' '.join(words)}: give at most one number of processes, one of "
                                 f"{', '.join(get_args(Kind))}, and one device (cuda, cpu)")
            found[key] = int(word) if key == "processes" else word
        return cls(**found)


def begin(config: TrainingConfig, rows: int, expected: Expected = Expected()) -> Accelerator:
    """Join the processes that a launcher started (`accelerate launch` or `torchrun`); without one, train alone.

    `rows` per step are divided among them. `AnswerLoss` handles mixed precision itself, except for sharded weights,
    which are gathered in it and whose gradients are averaged in float32. Raises `TrainingError` if the processes, their
    kind or their device are not what the launcher was told to start, or not the `expected` ones.
    """
    if parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"):
        raise TrainingError("Megatron keeps optimizer states that these checkpoints cannot hold; "
                            "omnidiff_lite/configs/zero2.yaml shares them among the GPUs by torch alone")
    started = int(os.environ.get("WORLD_SIZE", 1))
    if rows % started:
        raise TrainingError(f"{rows} rows a step do not divide among {started} processes; change the stage's rows")
    sharded, partitioned = (parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED"))
    if sharded and partitioned:
        raise TrainingError("ACCELERATE_USE_FSDP and ACCELERATE_USE_DEEPSPEED are both set: choose one")
    fsdp = _sharding(config) if sharded else None
    zero = _deepspeed(config, rows // started) if partitioned else None
    accelerator = Accelerator(mixed_precision="no", fsdp_plugin=fsdp)
    join()
    if plugin := fsdp or zero:
        _put_in_force(plugin, accelerator, config)
    _compare(accelerator, expected)
    return accelerator


def join() -> int:
    """The number of processes that a launcher started and that now form one group; 1 without a launcher.

    Raises `TrainingError` if they found no common device and would each do all of the work.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes != started:
        raise TrainingError(f"the launcher started {started} processes, but they found no GPU and would each work "
                            "alone, over the same files; with ACCELERATE_USE_CPU=true they share the work on the CPU")
    return started


def kind_of(accelerator: Accelerator) -> Kind:
    """How the processes share the work."""
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        return "deepspeed"
    if accelerator.distributed_type is DistributedType.FSDP:
        return "fsdp2" if accelerator.state.fsdp_plugin.reshard_after_forward else "zero2"
    return "single" if accelerator.num_processes == 1 else "ddp"


def _device() -> str:
    """Where the processes will train; accelerate says so only after its plugins are made."""
    return "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available() else "cuda"


def _sharding(config: TrainingConfig) -> FullyShardedDataParallelPlugin:
    """FSDP2 for this denoiser. The launcher's file decides whether weights are freed after the forward pass."""
    bf16 = matrix_dtype(config.precision, _device()) is torch.bfloat16
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, mixed_precision_policy=policy, auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=LAYERS, activation_checkpointing=False, cpu_ram_efficient_loading=False)


def _deepspeed(config: TrainingConfig, rows: int) -> DeepSpeedPlugin:
    """ZeRO-2 with float32 weights (`AnswerLoss` computes in bfloat16); `rows`: per process and step.

    Another stage, offloading or a configuration file of DeepSpeed's own is refused: none has been tested here.
    """
    if not is_deepspeed_available():
        raise TrainingError("DeepSpeed is not installed (pip install 'deepspeed<0.20'); "
                            "omnidiff_lite/configs/zero2.yaml shares the same among the GPUs by torch alone")
    other = {name: value for name, usual in ZERO_USUAL.items()
             if (value := os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", usual).lower()) not in (usual, "none")}
    if other:
        raise TrainingError("of DeepSpeed, stage 2 without offloading and without a file of its own is set up here; "
                            f"the launcher asks for {other}: use omnidiff_lite/configs/deepspeed.yaml")
    if config.optimizer != "adamw":
        raise TrainingError("DeepSpeed takes one optimizer, and Muon brings AdamW for what is no inner matrix; use "
                            "--set training.optimizer=adamw, or omnidiff_lite/configs/zero2.yaml, which takes both")
    if _device() == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it would take a GPU that is there
    plugin = DeepSpeedPlugin(zero_stage=2, gradient_accumulation_steps=1, gradient_clipping=config.clip)
    plugin.set_mixed_precision("no")
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.micro_rows or rows
    plugin.deepspeed_config["zero_optimization"] |= {"overlap_comm": _device() != "cpu",
                                                     "reduce_bucket_size": ZERO_BUCKET}
    return plugin


def _put_in_force(plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin, accelerator: Accelerator,
                  config: TrainingConfig) -> None:
    """Put the plugin into effect: on a CPU accelerate silently drops either, though both also work over gloo."""
    if accelerator.num_processes == 1:
        raise TrainingError("one process has nothing to share; start it without accelerate launch, or more of them")
    if config.compile:
        raise TrainingError("training.compile compiles the whole network, which is taken apart where it is shared; use "
                            "--set training.compile=false")
    state = accelerator.state
    if isinstance(plugin, DeepSpeedPlugin):
        PartialState().distributed_type = state.distributed_type = DistributedType.DEEPSPEED
        state.deepspeed_plugins = {"default": plugin}
        plugin.select(_from_accelerator_state=True)
    else:
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin


def _compare(accelerator: Accelerator, expected: Expected) -> None:
    found = {"processes": accelerator.num_processes, "kind": kind_of(accelerator), "device": accelerator.device.type}
    wrong = [f"{key} {getattr(expected, key)!r} expected, {value!r} found" for key, value in found.items()
             if getattr(expected, key) not in (None, value)]
    if wrong:
        raise TrainingError(f"this is not the run that was asked for: {'; '.join(wrong)}. Start it with accelerate "
                            f"launch --config_file omnidiff_lite/configs/{expected.kind or found['kind']}.yaml "
                            f"--num_processes {expected.processes or found['processes']}, where each process has a "
                            "GPU (ACCELERATE_USE_CPU=true: on the CPU)")
