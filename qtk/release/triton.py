"""A model repository of Triton Inference Server that serves an engine through qtk's own loop.

A plan of TensorRT is one step of decoding: it takes and gives the whole cache. Triton's backend for plans would send that cache
through each request, so its Python backend runs the loop instead, beside the plan. Format: Triton's "Model Configuration" and
"Python Backend" (decoupled), with the names of its generate extension, text_input and text_output.
"""

from __future__ import annotations

import json
from importlib.resources import files

TRITON_FOLDER = "triton"


def triton_files(name: str, *, on_gpu: bool) -> dict[str, str]:
    """The files of the repository, path in the bundle -> text. name: of the model."""
    model = files("qtk.release").joinpath("templates/triton_model.py.txt").read_text(encoding="utf-8")
    return {f"{TRITON_FOLDER}/{name}/config.pbtxt": _config(name, on_gpu), f"{TRITON_FOLDER}/{name}/1/model.py": model}


def _config(name: str, on_gpu: bool) -> str:
    optional = {"max_tokens": "INT32", "temperature": "FP32", "top_p": "FP32", "seed": "UINT64"}
    inputs = ['  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }']
    inputs += [
        f'  {{ name: "{key}" data_type: TYPE_{kind} dims: [ 1 ] optional: true }}' for key, kind in optional.items()
    ]
    listed = ",\n".join(inputs)
    return f"""# One request at a time; its text comes in pieces.
name: {json.dumps(name)}
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
{listed}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: {"KIND_GPU" if on_gpu else "KIND_CPU"} }} ]
"""
