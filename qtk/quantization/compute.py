"""What a quantization computes on and in: the device that the options name, the dtype that suits it."""

from __future__ import annotations

import re

import torch

from qtk.errors import InputError, MachineError
from qtk.machine import chosen_compute_dtype, fast_matmul_dtype


def compute_device(name: str) -> torch.device:
    """The device that --device names. InputError for what is not a device, MachineError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise InputError(f"--device {name}: there are auto, cpu, cuda, and cuda:N for GPU number N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(match.group(1) or 0) >= count:
        seen = f"{count} GPU{'s' if count > 1 else ''}, the first is cuda:0" if count else "no GPU"
        raise MachineError(f"--device {name}: torch sees {seen} on this machine. Use --device cpu.")
    return torch.device(name)


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of activations and their products: bfloat16 where it is fast, or else float32.

    QTK_COMPUTE_DTYPE decides instead where it is set (`machine.chosen_compute_dtype`).
    """
    if device.type == "cpu":
        return fast_matmul_dtype()
    return chosen_compute_dtype() or (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32)
