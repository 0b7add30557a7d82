"""Compiles one ONNX graph into a TensorRT plan, in a process of its own: `python -m qtk.engines.tensorrt.worker REQUEST`.

A process of its own bounds memory to one stage, and a crash in native code does not end qtk. REQUEST is the path of a JSON
file (see `CompileRequest`). Progress goes to stdout, one JSON object a line; the last line holds the peak memory. The plan
and the list of parsed layers are written beside the graph.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import onnx
from pydantic import BaseModel, ConfigDict

from qtk.peak_memory import most_resident_bytes

# Exit code where the machine is at fault and not the graph.
MACHINE_LACKS = 4


class CompileRequest(BaseModel):
    """library: tensorrt_rtx, which compiles for `compute_capability` without a GPU, or tensorrt, which compiles for the
    GPU it finds. Dimensions by name: `frozen` become constants, `ranges` are (least, usual, most)."""

    model_config = ConfigDict(frozen=True)
    library: str
    graph: Path
    plan: Path
    layers: Path
    compute_capability: str
    frozen: dict[str, int]
    ranges: dict[str, tuple[int, int, int]]


def main(request_path: str) -> int:
    """Exit code 0; else, with the reasons on stderr, 1 where TensorRT refuses, MACHINE_LACKS where the machine lacks something."""
    request = CompileRequest.model_validate_json(Path(request_path).read_bytes())
    start = time.monotonic()
    try:
        version = compile_plan(request)
    except ImportError as error:
        print(f"{request.library} cannot be imported: {error}", file=sys.stderr)
        return MACHINE_LACKS
    except MemoryError:
        print(f"There is not enough memory to compile {request.graph.name}.", file=sys.stderr)
        return MACHINE_LACKS
    except OSError as error:
        print(error, file=sys.stderr)
        return MACHINE_LACKS
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return MACHINE_LACKS if "bad_alloc" in str(error) else 1
    seconds = round(time.monotonic() - start, 2)
    say(event="done", version=version, seconds=seconds, peak_memory_bytes=most_resident_bytes())
    return 0


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def compile_plan(request: CompileRequest) -> str:
    """Parses, writes the layer list, builds and writes the plan. Returns the library's version.

    RuntimeError with TensorRT's own reasons.
    """
    trt = importlib.import_module(request.library)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = frozen_model(request.graph, request.frozen)
    if not parser.parse(model.SerializeToString(), str(request.graph)):
        reasons = "\n".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f"TensorRT's parser refuses {request.graph.name}:\n{reasons}")
    request.layers.write_text(json.dumps(layer_list(network), indent=1) + "\n", encoding="utf-8")
    config = builder.create_builder_config()
    config.progress_monitor = progress_monitor(trt)
    if hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        name = f"SM{request.compute_capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    config.add_optimization_profile(shape_profile(builder, model, request.ranges))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(f"TensorRT could not build {request.graph.name}; its messages are above.")
    request.plan.write_bytes(plan)
    # From the module: a distribution's metadata may have another name, or be absent as in NVIDIA's containers.
    return str(trt.__version__)


def frozen_model(path: Path, sizes: dict[str, int]) -> onnx.ModelProto:
    """The graph with named dimensions of its inputs and outputs turned into numbers; weights stay in their file."""
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    return model


def shape_profile(builder: Any, model: onnx.ModelProto, ranges: dict[str, tuple[int, int, int]]) -> Any:
    """One optimization profile from the least to the most of every named dimension."""
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        shapes = [
            tuple(ranges[d.dim_param][which] if d.dim_param else d.dim_value for d in dimensions) for which in range(3)
        ]
        profile.set_shape(value.name, *shapes)
    return profile


def layer_list(network: Any) -> list[dict[str, object]]:
    """Name, kind and output types of each parsed layer: what can be inspected without a GPU."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        layers.append(
            {
                "name": layer.name,
                "kind": str(layer.type).rpartition(".")[2],
                "inputs": [str(tensor.dtype).rpartition(".")[2] for tensor in inputs if tensor is not None],
                "outputs": [str(tensor.dtype).rpartition(".")[2] for tensor in outputs],
            }
        )
    return layers


def progress_monitor(trt: Any) -> Any:
    """TensorRT's progress callbacks, printed as JSON lines."""

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                say(event="phase", name=phase, steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            say(event="step", name=phase, step=step)
            return True

        def phase_finish(self, phase: str) -> None:
            pass

        def __init__(self) -> None:
            super().__init__()

    return Monitor()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
