"""A base that is spread over the devices by PyTorch's FSDP (`fully_shard`): each holds a part of every weight, and the others'
parts of a block while it runs. Frozen weights of 4 bits are buffers, and stay whole on each device."""

from __future__ import annotations

from typing import Any

import torch


def shard(model: Any, device: torch.device) -> Any:
    """A peft.PeftModel spread over all processes, block by block, so that no device ever holds it whole."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    base = model.get_base_model()
    blocks = set(base._no_split_modules or ())
    for module in list(base.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Whether `shard` made it."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each device holds a part, put together; any other as it is. All devices call it together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, spread as `other` is, where that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor):
        return value
    # Every device has the value, and keeps its own part of it.
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
