"""Run by another environment's Python: GPTQModel quantizes a checkpoint with its defaults.

owners_gptqmodel.py FLOAT OUT GROUP
"""

from __future__ import annotations

import sys


def main(source: str, out: str, group: str) -> None:
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(source, QuantizeConfig(bits=4, group_size=int(group)), device="cpu")
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(2, 258, (128,)).tolist(), "attention_mask": [1] * 128} for _ in range(8)]
    model.quantize(rows, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
