"""Trains a LoRA adapter on Python's standard library source: a real adapter for the demo, in a minute or two on 2 cores.

python recipes/train_adapter.py BASE OUT [--steps 40]     (needs: pip install peft)

What it learns is plain next-token prediction on the modules that are not held out, so that the divergence
measurement, which reads the held-out ones, sees text that neither adapter nor quantizer was fitted to. The same
command gives the same adapter on the same machine; the losses before and after stand in OUT/training.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

from qtk.calibration.held_out import standard_library_modules
from qtk.machine import fast_matmul_dtype, limit_threads, package_versions

RANK = 16
ROWS_PER_STEP = 2
TOKENS_PER_ROW = 256
LEARNING_RATE = 3e-4
CHECK_ROWS = 8


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="model directory")
    parser.add_argument("out", type=Path, help="adapter directory to write")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    settings = {
        "steps": arguments.steps,
        "seed": arguments.seed,
        "rank": RANK,
        "rows_per_step": ROWS_PER_STEP,
        "tokens_per_row": TOKENS_PER_ROW,
        "learning_rate": LEARNING_RATE,
        "base": _identity(arguments.base),
    }
    if _made_with(arguments.out, settings):
        print(f"{arguments.out}: there already")
        return
    record = train(arguments.base, arguments.out, settings)
    print(
        f"{arguments.out}: loss on unseen rows {record['loss_before']:.4f} -> {record['loss_after']:.4f}, "
        f"{record['seconds']:.0f} s"
    )


def _identity(base: Path) -> str:
    """Tells one base from another: the digest of its config and its weights."""
    digest = hashlib.sha256((base / "config.json").read_bytes())
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _made_with(out: Path, settings: dict[str, object]) -> bool:
    try:
        return json.loads((out / "training.json").read_text())["settings"] == settings
    except (OSError, ValueError, KeyError):
        return False


def train(base: Path, out: Path, settings: dict[str, object]) -> dict[str, object]:
    """Trains and saves the adapter; returns what is written to training.json."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = time.monotonic()
    limit_threads(None)
    torch.manual_seed(int(settings["seed"]))
    tokenizer = AutoTokenizer.from_pretrained(base)
    # On a processor without kernels for bfloat16 that dtype takes up to sixty times as long.
    dtype = fast_matmul_dtype()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=linears, task_type="CAUSAL_LM")
    )
    steps = int(settings["steps"])
    rows = _rows(tokenizer, steps * ROWS_PER_STEP + CHECK_ROWS, int(settings["seed"]))
    check, rows = rows[:CHECK_ROWS], rows[CHECK_ROWS:]

    before = _loss(model, check)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        batch = rows[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1}/{steps}: loss {loss.item():.4f}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    record: dict[str, object] = {
        "settings": settings,
        "loss_before": before,
        "loss_after": _loss(model, check),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": round(time.monotonic() - start, 1),
        "packages": package_versions("torch", "transformers", "peft"),
    }
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.rename(partial, out)
    return record


def _rows(tokenizer, count: int, seed: int):
    """[count, TOKENS_PER_ROW] token ids: one row a module, from shuffled modules, so that check rows are unseen."""
    import torch

    modules = standard_library_modules(held_out=False)
    order = torch.randperm(len(modules), generator=torch.Generator().manual_seed(seed)).tolist()
    rows: list[list[int]] = []
    for index in order:
        text = modules[index][1].read_text(encoding="utf-8", errors="replace")[: 8 * TOKENS_PER_ROW]
        ids = tokenizer(text)["input_ids"][:TOKENS_PER_ROW]
        if len(ids) == TOKENS_PER_ROW:
            rows.append(ids)
        if len(rows) == count:
            return torch.tensor(rows)
    sys.exit(f"Only {len(rows)} rows of {TOKENS_PER_ROW} tokens were found, {count} are needed: fewer --steps.")


def _loss(model, rows) -> float:
    """Mean next-token loss in nats over the rows."""
    import torch

    model.eval()
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return sum(model(input_ids=row[None], labels=row[None]).loss.item() for row in rows) / len(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
