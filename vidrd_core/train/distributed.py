"""One process or several: the set-up of accelerate, and sharded tensors.

The number of processes and the kind of parallelism (DDP, FSDP, DeepSpeed) are accelerate's configuration.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn

from ..models.inflate import build_empty
from ..runtime.allocator import keep_freed_memory
from .settings import TrainSettings

Module = TypeVar("Module", bound=nn.Module)


def make_accelerator(settings: TrainSettings, may_skip_parameters: bool) -> Accelerator:
    """The ``Accelerator`` of a run, on the devices and processes of its launcher.

    Raises:
        ValueError: the batch cannot be divided evenly, or the precision or kind of sharding is not supported.
    """
    AcceleratorState._reset_state()  # of an earlier run in this process, perhaps of another precision
    precision = "no" if settings.precision == "fp32" else settings.precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=may_skip_parameters)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    keep_freed_memory(accelerator.device)
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision is 'fp16', which a CPU does not train in: use 'bf16' or 'fp32'")
    _, accelerator.gradient_accumulation_steps = settings.micro_batches(accelerator.num_processes)
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.distributed_type == DistributedType.FSDP and plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version is {plugin.fsdp_version}; expected 2: set it in accelerate's configuration")
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if settings.optimizer == "muon" and sharded:
        kind = accelerator.distributed_type.value
        raise ValueError(f"optimizer is 'muon', which needs whole matrices; {kind} shards them: use DDP")
    deepspeed: Any = getattr(accelerator.state, "deepspeed_plugin", None)
    if is_deepspeed(accelerator):
        if deepspeed.zero_stage > 2:
            raise ValueError(f"zero_stage is {deepspeed.zero_stage}; expected 0 to 2: use FSDP to shard the weights")
        deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = settings.micro_batches(
            accelerator.num_processes
        )[0]
        deepspeed.deepspeed_config["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps
        deepspeed.deepspeed_config["gradient_clipping"] = settings.clip_norm
    return accelerator


def is_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def prepare(
    accelerator: Accelerator, calls: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, nn.Module], Any]:
    """Wrap the modules with trained parameters, and the optimiser.

    Raises:
        ValueError: several modules are trained under FSDP or DeepSpeed.
    """
    trained = {name: call for name, call in calls.items() if any(p.requires_grad for p in call.parameters())}
    if len(trained) > 1 and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"{accelerator.distributed_type.value} shards one model, this task trains {sorted(trained)}: use DDP"
        )
    *wrapped, optimizer = accelerator.prepare(*trained.values(), optimizer)
    return dict(zip(trained, wrapped, strict=True)), optimizer


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; every process must call it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def shared_like(tensor: Tensor, model: Tensor) -> Tensor:
    """``tensor`` on the device of ``model``, and sharded like it."""
    mesh = getattr(model, "device_mesh", None)
    if mesh is None:
        return tensor.to(model.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), mesh, model.placements)  # type: ignore[attr-defined]


def gathered(module: Module) -> Module:
    """A diffusers model with full weights: itself, or a copy where it is sharded; every process must call it."""
    if not any(hasattr(p, "full_tensor") for p in module.parameters()):
        return module
    state = {name: whole(value).cpu() for name, value in module.state_dict().items()}
    config: Any = module.config
    copy = build_empty(type(module), dict(config))
    copy.load_state_dict(state, assign=True)
    return copy
