"""The `tensorrt-full` backend: the same graph compiled by NVIDIA's full TensorRT on the GPU it is for. Untested: no GPU."""

from __future__ import annotations

from qtk.engines.tensorrt import backend as tensorrt_backend
from qtk.engines.tensorrt.library import FULL


class Backend(tensorrt_backend.Backend):
    """Backend "tensorrt-full"."""

    def __init__(self) -> None:
        super().__init__(FULL)
