"""Run by ModelOpt's Python: exports a checkpoint of its own, and packs our codes with its own packing.

owners_modelopt.py FLOAT OURS OUT GROUP    writes OUT/export (theirs), OUT/meant.safetensors (the weights that their export
stands for) and OUT/repacked.safetensors (our dequantized weights, packed by them with our scales).
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path


def main(source: str, ours: str, out: str, group: str) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    config = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in config["quant_cfg"]:
        if "block_sizes" in (entry.get("cfg") or {}):
            entry["cfg"]["block_sizes"][-1] = int(group)
    model = mtq.quantize(model, config)
    meant = {
        name: module.weight_quantizer(module.weight).float().contiguous()
        for name, module in model.named_modules()
        if getattr(module, "weight_quantizer", None) is not None and module.weight_quantizer.is_enabled
    }
    save_file(meant, Path(out) / "meant.safetensors")
    with torch.no_grad():
        export_hf_checkpoint(model, dtype=torch.float16, export_dir=Path(out) / "export")

    stored, repacked = load_file(Path(ours) / "model.safetensors"), {}
    floats = load_file(Path(ours) / "dequantized.safetensors")
    for name, scale in stored.items():
        if name.endswith(".weight_scale"):
            module = name.removesuffix(".weight_scale")
            repacked[module] = pack_int4_in_uint8(floats[module], scale, int(group))
    save_file(repacked, Path(out) / "repacked.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
