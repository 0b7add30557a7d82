"""A random INT4 Llama of a real model's shape, as a gptq checkpoint: what large engines are compiled from in benchmarks.

python bench/random_int4_llama.py 7b|33b OUT          (about 4 GB and 18 GB of disk)

The weights mean nothing; sizes, groups and layout are those of the real thing. Written tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from qtk.checkpoint.writer import CheckpointWriter, TensorSpec
from qtk.models.registry import spec_from_config
from qtk.models.spec import LM_HEAD_MODULE
from qtk.quantization.formats.gptq import GptqFormat
from qtk.quantization.quantized_linear import QuantizedLinear
from qtk.quantization.scheme_model import LinearScheme, QuantizationScheme

COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32256,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000,
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "hidden_act": "silu",
    "torch_dtype": "float16",
    "eos_token_id": 2,
}
# DeepSeek-Coder's shapes: 6.7B, and the 33B that CodeFuse-DeepSeek-33B is made of.
SHAPES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "33b": {
        "hidden_size": 7168,
        "intermediate_size": 19200,
        "num_hidden_layers": 62,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
    },
}
SCHEME = LinearScheme(4, 128, True)


def write(given: Mapping[str, object], out: Path) -> None:
    """The checkpoint of the model that this config.json describes."""
    container = GptqFormat()
    config = dict(given)
    spec = spec_from_config(config, "config")
    linears = {name: shape for name, shape in spec.module_shapes().items() if name != LM_HEAD_MODULE}
    specs: dict[str, TensorSpec] = {}
    for name, size in spec.all_tensors().items():
        module = name.removesuffix(".weight")
        if module in linears:
            specs |= container.specs(module, linears[module], SCHEME)
        else:
            specs[name] = TensorSpec(torch.float16, size)
    scheme = QuantizationScheme(SCHEME, dict.fromkeys(linears, SCHEME))
    config["quantization_config"] = container.quantization_config(scheme, "random")
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(out, specs) as writer:
        for name, size in spec.all_tensors().items():
            module = name.removesuffix(".weight")
            if module not in linears:
                values = (
                    torch.ones(size) if name.endswith("norm.weight") else torch.randn(size, generator=generator) * 0.02
                )
                writer.write(name, values.half())
                continue
            codes = torch.randint(0, 16, size, dtype=torch.uint8, generator=generator)
            scales = torch.rand(size[0], size[1] // SCHEME.group_size, generator=generator) * 0.004 - 0.002
            packed = container.pack(module, QuantizedLinear(codes, scales.half(), None, 4, SCHEME.group_size))
            for tensor_name, tensor in packed.items():
                writer.write(tensor_name, tensor)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(COMMON | SHAPES[arguments.shape], arguments.out)
