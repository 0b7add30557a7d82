"""Run by a peer's own Python: quantizes a float model with the peer's public API, on rows of token ids that are given.

peer_quantizer.py SETTINGS.json     (written by compare_quantizers.py; imports nothing of qtk)

Whatever SETTINGS leaves open is the peer's default. What it wrote lies in `out`, in a layout that qtk reads; `report`
says how long loading, quantizing and saving took, each without the imports, and which versions took part.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def gptqmodel(settings: dict[str, Any], rows: list[list[int]], clock: Clock) -> None:
    """GPTQModel's GPTQ."""
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=4, group_size=settings["group_size"], sym=settings["symmetric"])
    clock.start()
    model = GPTQModel.load(settings["model"], config, device="cpu")
    clock.lap("load")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    clock.lap("quantize")
    model.save(settings["out"])
    clock.lap("save")


def llm_compressor(settings: dict[str, Any], rows: list[list[int]], clock: Clock) -> None:
    """llm-compressor's GPTQ, saved as compressed-tensors."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    weights = QuantizationArgs(
        num_bits=4, type="int", symmetric=settings["symmetric"], strategy="group", group_size=settings["group_size"]
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    clock.start()
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="auto")
    clock.lap("load")
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
    )
    clock.lap("quantize")
    model.save_pretrained(settings["out"], save_compressed=True)
    clock.lap("save")


def autoround(settings: dict[str, Any], rows: list[list[int]], clock: Clock) -> None:
    """AutoRound, saved in AutoGPTQ's layout."""
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    clock.start()
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="auto")
    clock.lap("load")
    quantizer = AutoRound(
        model,
        AutoTokenizer.from_pretrained(settings["model"]),
        bits=4,
        group_size=settings["group_size"],
        sym=settings["symmetric"],
        iters=settings["autoround_iters"],
        dataset=[{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row)).long()} for row in rows],
        nsamples=len(rows),
        seqlen=max(map(len, rows)),
        device_map="cpu",
    )
    quantizer.quantize()
    clock.lap("quantize")
    quantizer.save_quantized(settings["out"], format="auto_gptq")
    clock.lap("save")


def autoawq_reference(settings: dict[str, Any], rows: list[list[int]], clock: Clock) -> None:
    """AutoAWQ's search in float32 (autoawq_reference.py), saved rounded but in float."""
    import autoawq_reference as reference
    from transformers import AutoModelForCausalLM, AutoTokenizer

    clock.start()
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    clock.lap("load")
    reference.quantize(model, torch.tensor(rows), settings["group_size"], settings["symmetric"])
    clock.lap("quantize")
    model.save_pretrained(settings["out"])
    AutoTokenizer.from_pretrained(settings["model"]).save_pretrained(settings["out"])
    clock.lap("save")


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = round(now - self._last, 2), now


PEERS = {
    "gptqmodel": (gptqmodel, "GPTQModel"),
    "llm-compressor": (llm_compressor, "llmcompressor"),
    "autoround": (autoround, "auto-round"),
    "autoawq-reference": (autoawq_reference, "torch"),
}


def main(settings_path: Path) -> None:
    """Reads the settings and the rows, runs the peer, writes its report."""
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    tokens = load_file(settings["rows"])
    lengths = tokens["lengths"].tolist()
    rows = [row[:length] for row, length in zip(tokens["tokens"].tolist(), lengths, strict=True)]
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    run, distribution = PEERS[settings["peer"]]
    clock = Clock()
    run(settings, rows, clock)
    versions = {name: importlib.metadata.version(name) for name in (distribution, "torch", "transformers")}
    report = {"seconds": clock.seconds, "versions": versions}
    Path(settings["report"]).write_text(json.dumps(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
