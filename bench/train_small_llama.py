"""Trains a small Llama on Python source: a model born in float, whose sizes all divide by 128, to measure quantizers on.

python bench/train_small_llama.py OUT [--minutes 60] [--threads 2] [--seed 0]

What it reads is the calibration side of the standard library and the source of the installed packages; never the
modules that are held out for measuring, nor a package's file that repeats lines of them. The time is the processor's
over the threads, so that other work on the machine costs nothing, and the learning rate follows it: a faster machine
trains on more text, and two runs never give the same weights. OUT-training holds its state: the same command goes on
after a stop. OUT/training.json says what was reached. What a package brings to the text depends on what is installed:
the weights are a means, not a result.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from qtk.bench.held_out_rows import held_out_rows
from qtk.bench.options import CODE, ENGLISH
from qtk.calibration.held_out import standard_library_modules
from qtk.machine import limit_threads, machine, package_versions
from qtk.models.tokenizer import TextTokenizer

CONFIG = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
END_OF_TEXT = "<|endoftext|>"
SEQ_LEN = 512
ROWS_PER_STEP = 4
LEARNING_RATE = 6e-3
WARM_UP = 0.02  # of the time
CHECK_ROWS = 12
SECONDS_BETWEEN_CHECKPOINTS = 300
BYTES_IN_ALL = 60_000_000
BYTES_OF_A_PACKAGE = 6_000_000  # else two packages would be most of the text
BYTES_FOR_TOKENIZER = 10_000_000
LONG_LINE = 40  # characters; shorter lines are alike everywhere
SHARED_LINES = 8  # a file with so many of the held-out text's long lines is taken for a copy


def training_texts(seed: int) -> Iterator[str]:
    """Source files in an order shuffled by the seed, none of them held out or a copy of what is."""
    held_out: set[str] = set()
    for _, path in standard_library_modules(held_out=True):
        held_out |= _long_lines(path.read_text(encoding="utf-8", errors="replace"))
    files = [path for _, path in standard_library_modules(held_out=False)]
    packages = Path(sysconfig.get_paths()["purelib"])
    files += sorted(packages.rglob("*.py"))
    spent: dict[str, int] = {}
    left = BYTES_IN_ALL
    for index in torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist():
        path = files[index]
        package = path.relative_to(packages).parts[0] if path.is_relative_to(packages) else "standard library"
        size = path.stat().st_size
        # Very short files are empty packages, very long ones tables that a program wrote.
        if not 300 < size < 300_000 or spent.get(package, 0) + size > BYTES_OF_A_PACKAGE:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(_long_lines(text) & held_out) >= SHARED_LINES:
            continue
        spent[package] = spent.get(package, 0) + size
        left -= size
        yield text
        if left < 0:
            return


def _long_lines(text: str) -> set[str]:
    return {line for line in map(str.strip, text.splitlines()) if len(line) >= LONG_LINE}


def prepare(work: Path, seed: int) -> torch.Tensor:
    """The tokenizer in `work`, and all training rows [rows, SEQ_LEN] int16; made once."""
    rows_file = work / "rows.safetensors"
    if not rows_file.is_file():
        texts = list(training_texts(seed))
        write_tokenizer(work, texts)
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        ids = array.array("h")
        for start in range(0, len(texts), 500):
            for encoding in tokenizer.encode_batch_fast(texts[start : start + 500]):
                ids.append(tokenizer.token_to_id(END_OF_TEXT))
                ids.extend(encoding.ids)
        count = len(ids) // SEQ_LEN
        rows = torch.frombuffer(ids, dtype=torch.int16, count=count * SEQ_LEN).view(count, SEQ_LEN)
        save_file({"rows": rows}, work / "rows.partial")
        os.rename(work / "rows.partial", rows_file)
    return load_file(rows_file)["rows"]


def write_tokenizer(directory: Path, texts: list[str]) -> None:
    """A byte-level BPE tokenizer learned on the first of the texts, as the two files that transformers reads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total, count = 0, 0
    while total < BYTES_FOR_TOKENIZER and count < len(texts):
        total += len(texts[count])
        count += 1
    tokenizer.train_from_iterator(texts[:count], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": SEQ_LEN, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Trainer:
    """The model, its optimizer and where it stands; `seconds` is the processor time a thread spent training so far."""

    def __init__(self, work: Path, rows: torch.Tensor, budget: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.work, self.rows, self.budget = work, rows, budget
        self.order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + 1))
        self.model = LlamaForCausalLM(LlamaConfig(**CONFIG))
        # Muon learns in a third of AdamW's time what a model this size can learn in an hour; it is made for the matrices
        # of the blocks. Its rate is scaled to the size of AdamW's steps, so that one rate serves both.
        linears = [p for p in self.model.model.layers.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if all(p is not q for q in linears)]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(linears, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        )
        self.step, self.seconds = 0, 0.0
        tokenizer = TextTokenizer(work)
        self.checks = {name: held_out_rows(name, tokenizer, CHECK_ROWS, SEQ_LEN).tokens for name in (CODE, ENGLISH)}
        if (work / "state.safetensors").is_file():
            self._load()

    def train(self) -> None:
        """Goes on until the time is spent."""
        saved = last = _seconds_a_thread()
        recent: list[float] = []
        while self.seconds < self.budget:
            recent.append(self._one_step())
            now = _seconds_a_thread()
            self.seconds, last = self.seconds + now - last, now
            if self.step % 50 == 0:
                mean, recent = sum(recent) / len(recent), []
                tokens = self.step * ROWS_PER_STEP * SEQ_LEN / 1e6
                report(f"step {self.step}, {tokens:.2f} M tokens, {self.seconds / 60:.1f} min: loss {mean:.4f}")
            if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.held_out_losses().items())
                report(f"step {self.step}: held-out loss {losses}")
                saved = now
        self._save()

    def _one_step(self) -> float:
        done = min(1.0, self.seconds / self.budget)
        rate = LEARNING_RATE * min(1.0, max(done, 1e-4) / WARM_UP) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        first = self.step * ROWS_PER_STEP
        batch = self.rows[self.order[[(first + i) % len(self.order) for i in range(ROWS_PER_STEP)]]].long()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Mean next-token loss in nats on rows that nothing is ever trained on."""
        losses = {}
        for name, rows in self.checks.items():
            with torch.autocast("cpu", torch.bfloat16):
                each = [float(self.model(input_ids=row[None], labels=row[None]).loss) for row in rows]
            losses[name] = sum(each) / len(each)
        return losses

    def _save(self) -> None:
        tensors = {}
        for index, parameter in enumerate(self.model.parameters()):
            tensors[f"{index}.weight"] = parameter.detach()
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{index}.{key}"] = value
        partial = self.work / "state.partial"
        save_file(tensors, partial, {"step": str(self.step), "seconds": str(self.seconds)})
        os.rename(partial, self.work / "state.safetensors")

    def _load(self) -> None:
        from safetensors import safe_open

        with safe_open(self.work / "state.safetensors", "pt") as state:
            self.step = int(state.metadata()["step"])
            self.seconds = float(state.metadata()["seconds"])
            parameters = list(self.model.parameters())
            for key in list(state.keys()):
                index, of = key.split(".")
                parameter = parameters[int(index)]
                if of == "weight":
                    parameter.data.copy_(state.get_tensor(key))
                    continue
                optimizer = self.optimizers[0 if of == "momentum_buffer" else 1]
                optimizer.state[parameter][of] = state.get_tensor(key)
        report(f"goes on at step {self.step}, {self.seconds / 60:.1f} min")


def _seconds_a_thread() -> float:
    return time.process_time() / torch.get_num_threads()


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_model(trainer: Trainer, out: Path, settings: dict[str, object]) -> dict[str, object]:
    """The model in bfloat16, its tokenizer and training.json, under its final name once all is there."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer.model.to(torch.bfloat16).save_pretrained(partial)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trainer.work / name, partial / name)
    record: dict[str, object] = {
        "settings": settings,
        "steps": trainer.step,
        "tokens": trainer.step * ROWS_PER_STEP * SEQ_LEN,
        "rows_of_text": len(trainer.rows),
        "seconds": round(trainer.seconds, 1),
        "held_out_loss": trainer.held_out_losses(),
        "machine": machine().as_dict(),
        "packages": package_versions("torch", "transformers", "tokenizers"),
    }
    (partial / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.rename(partial, out)
    return record


def main() -> None:
    """Prepares the text, trains until the time is spent, writes the model."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="model directory to write")
    parser.add_argument("--minutes", type=float, default=60, help="time to train for (default: 60)")
    parser.add_argument("--threads", type=int, help="processor threads (default: all usable)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if (asked.out / "training.json").is_file():
        print(f"{asked.out}: there already")
        return
    limit_threads(asked.threads)
    work = asked.out.with_name(asked.out.name + "-training")
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(work, prepare(work, asked.seed), asked.minutes * 60, asked.seed)
    report(f"{sum(p.numel() for p in trainer.model.parameters()) / 1e6:.1f} M parameters, {len(trainer.rows)} rows")
    trainer.train()
    record = write_model(trainer, asked.out, {"minutes": asked.minutes, "seed": asked.seed, "config": CONFIG})
    print(f"{asked.out}: {record['tokens']} tokens, held-out loss {record['held_out_loss']}")


if __name__ == "__main__":
    main()
