"""Writes an ONNX model in one pass: nodes are kept in memory, weights go straight to the external data file.

ONNX lets an initializer name a file, an offset and a length instead of holding bytes (external data). So a model of
any size is written with no more memory than its largest single tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from qtk.errors import InputError

OPSET = 24
# ONNX Runtime maps external data into memory, which needs page-aligned starts.
_ALIGNMENT = 4096
ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}

Dimension = int | str


class GraphFile:
    """A graph that is being written, to directory/NAME.onnx, and its weights to directory/NAME.onnx.data.

    Use it as a context manager; `save` writes the graph when all weights are there.
    """

    def __init__(self, directory: Path, name: str = "model") -> None:
        self.path = directory / f"{name}.onnx"
        self.data_path = directory / f"{name}.onnx.data"
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._data = open(self.data_path, "wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> GraphFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._data.close()

    def __contains__(self, name: str) -> bool:
        return name in self._initializers

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[Dimension]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: torch.dtype, shape: Sequence[Dimension]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], shape))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds one node with one output, which also names the node. Returns the output's name."""
        return self.multi_node(kind, inputs, [output], **attributes)[0]

    def multi_node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Adds one node with several outputs, the first of which names it. Returns the outputs' names."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return list(outputs)

    def constant(self, name: str, values: Sequence[int]) -> str:
        """A small int64 vector held in the graph itself (a shape, axes), added once for each name."""
        if name not in self._initializers:
            self._initializers[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))
        return name

    def tensor(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> str:
        """A weight, converted to `dtype`. InputError, with the weight's name, when a value does not fit `dtype`."""
        dtype = dtype or tensor.dtype
        return self.tensor_in_rows(name, tuple(tensor.shape), dtype, [tensor])

    def tensor_in_rows(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, pieces: Iterable[torch.Tensor]
    ) -> str:
        """A weight of `shape` that comes as pieces along its first dimension."""
        offset = self._begin()
        for piece in pieces:
            self._data.write(_bytes(_converted(piece, dtype, name)))
        return self._declare(name, ONNX_TYPES[dtype], shape, offset)

    def packed(self, name: str, onnx_type: int, shape: tuple[int, ...], raw: torch.Tensor) -> str:
        """A tensor of a type that torch lacks (4-bit integers), given as uint8 bytes in ONNX's layout."""
        offset = self._begin()
        self._data.write(_bytes(raw))
        return self._declare(name, onnx_type, shape, offset)

    def int8_in_columns(self, name: str, shape: tuple[int, int], strips: Iterable[tuple[int, torch.Tensor]]) -> str:
        """An int8 matrix that comes as (first column, strip [rows, some columns]) pieces covering it."""
        offset = self._begin()
        rows, columns = shape
        self._data.truncate(offset + rows * columns)
        for first, strip in strips:
            whole = memoryview(_bytes(strip))
            width = strip.shape[1]
            for row in range(rows):
                self._data.seek(offset + row * columns + first)
                self._data.write(whole[row * width : (row + 1) * width])
        self._data.seek(offset + rows * columns)
        return self._declare(name, TensorProto.INT8, shape, offset)

    def _begin(self) -> int:
        here = self._data.tell()
        offset = -(-here // _ALIGNMENT) * _ALIGNMENT
        self._data.seek(offset)
        return offset

    def _declare(self, name: str, onnx_type: int, shape: tuple[int, ...], offset: int) -> str:
        if name in self._initializers:
            raise ValueError(f"{name} is already in the graph")
        proto = TensorProto(name=name, data_type=onnx_type, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (
            ("location", self.data_path.name),
            ("offset", str(offset)),
            ("length", str(self._data.tell() - offset)),
        ):
            proto.external_data.add(key=key, value=value)
        self._initializers[name] = proto
        return name

    def save(self, name: str, facts: dict[str, str]) -> None:
        """Writes the model file. `facts` go into its metadata."""
        self._data.flush()
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name="qtk"
        )
        helper.set_model_props(model, facts)
        self.path.write_bytes(model.SerializeToString())


def _converted(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    result = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and not torch.isfinite(result).all():
        raise InputError(
            f"{name} holds values up to {tensor.abs().max():.3g}, and float16 ends at 65504. Build with --dtype float32."
        )
    return result


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")  # type: ignore[arg-type]
