"""Run by another environment's Python: loads checkpoints with transformers and the packages that own their containers.

owners_logits.py TOKENS.safetensors OUT.safetensors NAME=DIRECTORY...    writes float32 logits under each name.
"""

from __future__ import annotations

import sys


def main(tokens_file: str, out_file: str, *named: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    tokens, logits = load_file(tokens_file)["tokens"], {}
    for name, directory in (pair.split("=", 1) for pair in named):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu")
        with torch.no_grad():
            logits[name] = model(tokens).logits.float()
        print(name, type(model.model.layers[0].mlp.up_proj).__name__)
    save_file(logits, out_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
