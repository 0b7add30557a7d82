"""`qtk finetune` beside transformers' Trainer with peft: one task, case1, the same rows in the same order, the same start.

python bench/compare_finetune.py MODEL DATA.jsonl [--steps 12] [--batch 8] [--micro 4] [--rounds 2] [--seq-len 160] [--json FILE]

Each trains in a process of its own, by turns. Both get the token ids that qtk makes, both accumulate over the step, both
normalise by its tokens (Trainer does since 4.46), without dropout, warm-up and weight decay. Compared are the loss of each
step, the seconds of the training without loading, and the peak resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RANK, RATE = 16, 2e-4


def settings(given: argparse.Namespace) -> Any:
    from qtk.finetuning.options import FinetuneOptions

    return FinetuneOptions(
        data=(str(given.data),),
        data_split="100,0,0",
        seq_len=given.seq_len,
        weighted_loss="case1",
        rank=RANK,
        alpha=2 * RANK,
        dropout=0.0,
        learning_rate=RATE,
        min_lr=0.0,
        warmup=0.0,
        weight_decay=0.0,
        batch_size=given.batch,
        micro_batch=given.micro,
        max_steps=given.steps,
        checkpoint_every=1_000_000,
        device="cpu",
    )


def by_qtk(given: argparse.Namespace) -> dict[str, Any]:
    from qtk.finetuning.finetune import finetune
    from qtk.finetuning.metrics import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        report = finetune(given.model, Path(folder, "adapter"), settings(given))
        losses = [line["loss"] for line in read_metrics(Path(folder, "adapter")) if "loss" in line]
    return {"losses": losses, "seconds": report.seconds, "peak_memory_bytes": report.peak_memory_bytes}


def by_trainer(given: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from qtk.finetuning.batches import DataOrder
    from qtk.finetuning.training_data import training_data
    from qtk.machine import limit_threads
    from qtk.models.tokenizer import TextTokenizer
    from qtk.peak_memory import PeakMemory

    options = settings(given)
    limit_threads(None)
    data = training_data(TextTokenizer(given.model), options, 8192)
    order = DataOrder(len(data.train), given.batch, options.seed)
    rows = [data.train[i][0].row for step in range(given.steps) for i in order.step(step)]
    examples = [
        {
            "input_ids": row.ids.tolist(),
            "attention_mask": [1] * len(row),
            "labels": [
                id if learnt else -100 for id, learnt in zip(row.ids.tolist(), row.learnt.tolist(), strict=True)
            ],
        }
        for row in rows
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(examples)

    with PeakMemory() as memory, tempfile.TemporaryDirectory() as folder:
        base = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
        lora = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        torch.manual_seed(options.seed)
        model = get_peft_model(base, lora)
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=given.micro,
            gradient_accumulation_steps=given.batch // given.micro,
            max_steps=given.steps,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        collate = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)
        trainer = InOrder(model=model, args=arguments, train_dataset=examples, data_collator=collate)
        result = trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = result.metrics["train_runtime"]
    return {"losses": losses, "seconds": seconds, "peak_memory_bytes": memory.peak_bytes}


WORKERS = {"qtk": by_qtk, "trainer": by_trainer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=160)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print("RESULT " + json.dumps(WORKERS[given.worker](given)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WORKERS}
    for _ in range(given.rounds):
        for name, found in runs.items():
            words = [sys.executable, *sys.argv, "--worker", name]
            output = subprocess.run(words, capture_output=True, text=True)
            lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                raise SystemExit(f"{name} failed:\n{output.stderr[-3000:]}")
            found.append(json.loads(lines[-1].removeprefix("RESULT ")))
    curves = {name: found[0]["losses"] for name, found in runs.items()}
    apart = max(abs(a / b - 1) for a, b in zip(curves["qtk"], curves["trainer"], strict=True))
    best = {
        name: {key: min(run[key] for run in found) for key in ("seconds", "peak_memory_bytes")}
        for name, found in runs.items()
    }
    result = {"largest_difference_of_a_loss": apart, "best": best, "losses": curves}
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
