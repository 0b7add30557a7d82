"""What fine-tuning does on SmolLM2, with two tasks made from Python's standard library: figures for docs/finetuning.md.

python bench/finetune_experiments.py data MODEL -o DIR [--large 400] [--small 20] [--tokens 160]
python bench/finetune_experiments.py balance MODEL -o DIR [--steps 40] [--batch 12]      case1 beside case3, tasks 20:1
python bench/finetune_experiments.py qlora MODEL -o DIR [--steps 20] [--batch 12]        merges of an NF4-trained adapter

Task `describe`: a signature and its docstring, and the function is to be written. Task `complete`: the first lines of a
function, and the rest is to be written. Functions are those of modules that are not held out; no function is in both tasks.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qtk.adapters.merge import merge
from qtk.adapters.options import MergeOptions
from qtk.calibration.held_out import standard_library_modules
from qtk.finetuning.finetune import finetune
from qtk.finetuning.frozen_base import BaseStorage, load_base, open_base
from qtk.finetuning.metrics import read_metrics
from qtk.finetuning.options import FinetuneOptions
from qtk.finetuning.record import FinetuneReport
from qtk.models.tokenizer import TextTokenizer

TASKS = ("describe", "complete")


def functions() -> Iterator[tuple[str, str, str]]:
    """(signature, docstring, source) of the functions and methods of the standard library that have a docstring."""
    for _, path in standard_library_modules(held_out=False):
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                source = textwrap.dedent(" " * node.col_offset + (ast.get_source_segment(text, node) or ""))
                body = node.body[1:]
                if body and len(source.splitlines()) > 4:
                    yield f"def {node.name}({ast.unparse(node.args)}):", doc.splitlines()[0], source


def write_tasks(model: Path, out: Path, counts: dict[str, int], tokens: int) -> None:
    """A JSONL file for each task, of rows of at most `tokens` tokens."""
    tokenizer = TextTokenizer(model)
    found = [f for f in functions() if len(tokenizer.encode(f[2])) < 0.7 * tokens]
    random.Random(0).shuffle(found)
    rows: dict[str, list[dict[str, str]]] = {task: [] for task in TASKS}
    for signature, doc, source in found:
        task = next((task for task in reversed(TASKS) if len(rows[task]) < counts[task]), None)
        if task is None:
            break
        lines = source.splitlines(keepends=True)
        half = len(lines) // 2
        prompt, answer = {
            "describe": (f"Write this Python function.\n{signature}\n{doc}", source),
            "complete": (f"Complete this code.\n{''.join(lines[:half])}", "".join(lines[half:])),
        }[task]
        rows[task].append({"prompt": prompt, "answer": answer})
    out.mkdir(parents=True, exist_ok=True)
    for task, lines_of_task in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in lines_of_task)
        (out / f"{task}.jsonl").write_text(text, encoding="utf-8")
        print(f"{task}: {len(lines_of_task)} rows")


def options(out: Path, steps: int, batch: int, **changes: Any) -> FinetuneOptions:
    """What the experiments have in common."""
    common = {
        "data": tuple(str(out / f"{task}.jsonl") for task in TASKS),
        "data_split": "80,20,0",
        "seq_len": 160,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "learning_rate": 5e-4,
        "min_lr": 5e-5,
        "batch_size": batch,
        "micro_batch": 4,
        "max_steps": steps,
        "evaluate_every": max(1, steps // 4),
        "evaluation_rows": 12,
        "early_stopping": 0,
    }
    return FinetuneOptions.model_validate({**common, **changes})


def train(model: Path, out: Path, name: str, chosen: FinetuneOptions) -> FinetuneReport:
    return finetune(model, out / name, chosen, overwrite=True)


def balance(model: Path, out: Path, steps: int, batch: int) -> dict[str, Any]:
    """Held-back losses of each task by case1 and by case3, from the same data, order and start."""
    result: dict[str, Any] = {}
    for case in ("case1", "case3"):
        report = train(model, out, case, options(out, steps, batch, weighted_loss=case, epochs=20))
        result[case] = {
            task.name: {"rows": task.train, "before": task.loss_before, "after": last_loss(out / case, task.name)}
            for task in report.tasks
        } | {"tokens_per_second": report.tokens_per_second, "steps": report.steps}
    return result


def last_loss(directory: Path, task: str) -> float:
    """The held-back loss after the last step, not after the best, so that both cases are compared at the same step."""
    return [line for line in read_metrics(directory) if "held_back" in line][-1]["tasks"][task]


def qlora(model: Path, out: Path, steps: int, batch: int) -> dict[str, Any]:
    """KL of each merge from the model that was trained (the NF4 base with the adapter beside it), on held-out code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report = train(model, out, "qlora", options(out, steps, batch, qlora=True))
    rows = held_out_tokens(model)
    storage = BaseStorage(torch.float32, torch.device("cpu"), nf4=True)
    held = load_base(open_base(model, nf4=True), storage).eval()
    wanted = log_probabilities(PeftModel.from_pretrained(held, out / "qlora").eval(), rows)
    result: dict[str, Any] = {"steps": report.steps, "before": report.loss_before, "after": report.loss}
    for choice in ("auto", "none"):
        merge(model, [out / "qlora"], out / f"merged-{choice}", MergeOptions(qlora_base=choice), overwrite=True)
        merged = AutoModelForCausalLM.from_pretrained(out / f"merged-{choice}", dtype=torch.float32).eval()
        result[f"KL of --qlora-base {choice}"] = divergence(wanted, log_probabilities(merged, rows))
    return result


def held_out_tokens(model: Path) -> torch.Tensor:
    """[4, 128] token ids of modules that nothing was trained on."""
    tokenizer = TextTokenizer(model)
    rows = []
    for _, path in standard_library_modules(held_out=True):
        ids = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace")[:2000])[:128]
        rows += [ids] if len(ids) == 128 else []
    return torch.tensor(rows[:: max(1, len(rows) // 4)][:4])


@torch.no_grad()
def log_probabilities(model: Any, rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(row[None]).logits.float().log_softmax(-1) for row in rows])


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(reference || other), in nats a token."""
    return float((reference.exp() * (reference - other)).sum(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["data", "balance", "qlora"])
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--large", type=int, default=400)
    parser.add_argument("--small", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=12)
    given = parser.parse_args()
    if given.experiment == "data":
        write_tasks(given.model, given.out, {"describe": given.large, "complete": given.small}, given.tokens)
        return
    work = {"balance": balance, "qlora": qlora}[given.experiment]
    print(json.dumps(work(given.model, given.out, given.steps, given.batch), indent=2))


if __name__ == "__main__":
    main()
