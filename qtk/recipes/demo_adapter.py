"""The demo's adapter: LoRA trained on Python's standard library source, a real adapter in a quarter of a minute on 2 cores.

What it learns is plain next-token prediction on the modules that are not held out, so that the divergence measurement, which
reads the held-out ones, sees text that neither adapter nor quantizer was fitted to. The same options give the same adapter on
the same machine. The losses before and after, on rows that it was not trained on, stand in training.json and the manifest.
"""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from qtk.calibration.held_out import standard_library_modules
from qtk.checkpoint.manifest import ManifestRecorder, output_files
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError, MachineError
from qtk.machine import fast_matmul_dtype, limit_threads, package_versions
from qtk.models.tokenizer import TextTokenizer
from qtk.peak_memory import PeakMemory
from qtk.progress import Progress, note

if TYPE_CHECKING:
    import torch

RECORD_NAME = "training.json"
_NEEDED = ("peft", "transformers")
_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TrainingOptions(BaseModel):
    """How the adapter is trained: `steps` steps of rows_per_step rows of tokens_per_row tokens; check_rows rows more, which
    it never sees, give the losses."""

    model_config = ConfigDict(frozen=True)

    steps: int = 8
    rows_per_step: int = 1
    tokens_per_row: int = 128
    check_rows: int = 3
    rank: int = 16
    learning_rate: float = 2e-3
    seed: int = 0


class TrainingRecord(BaseModel):
    """What training.json holds. Losses: mean over the check rows, in nats per token."""

    model_config = ConfigDict(frozen=True)
    options: TrainingOptions
    loss_before: float
    loss_after: float
    dtype: str
    seconds: float
    packages: dict[str, str]


def require_trainer() -> None:
    """MachineError, with the pip line, where a package that trains is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(f"Training the demo's adapter needs more packages: pip install {' '.join(missing)}")


def train_demo_adapter(
    base: Path, out: Path, options: TrainingOptions | None = None, *, overwrite: bool = False
) -> TrainingRecord:
    """Trains a LoRA adapter for the model in `base` and writes it into the new directory `out`. Errors as of
    `require_trainer`; InputError where the standard library has too few rows."""
    require_trainer()
    options = options or TrainingOptions()
    recorder = ManifestRecorder("trained-adapter", options.model_dump())
    with PeakMemory() as memory, staged_directory(out, overwrite=overwrite, inputs=[base]) as directory:
        recorder.add_input("base", base, output_files(base))
        record = _train(base, directory, options)
        (directory / RECORD_NAME).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        recorder.notes |= {"loss_before": record.loss_before, "loss_after": record.loss_after}
        recorder.write(directory, out, memory.peak_bytes)
    note(f"Loss on unseen rows: {record.loss_before:.3f} before, {record.loss_after:.3f} with the adapter.")
    return record


def _train(base: Path, directory: Path, options: TrainingOptions) -> TrainingRecord:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    limit_threads(None)
    torch.manual_seed(options.seed)
    rows = _rows(TextTokenizer(base), options)
    check, rows = rows[: options.check_rows], rows[options.check_rows :]
    # On a processor without kernels for bfloat16 that dtype takes up to sixty times as long.
    dtype = fast_matmul_dtype()
    base_model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=_LINEARS, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers, which is not the user's matter
        model = get_peft_model(base_model, lora)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=0.2
    )
    with Progress("train the adapter", options.steps, "steps") as progress:
        before = _loss(model, check)
        model.train()
        for batch in rows.split(options.rows_per_step):
            loss = _forward(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.advance(1, f"loss {loss.item():.3f}")
        after = _loss(model, check)
    # The name that the base states, or its directory's, not the path where it lies just now.
    model.peft_config["default"].base_model_name_or_path = _stated_name(base)
    model.save_pretrained(str(directory), save_embedding_layers=False)  # else it looks the base up on the hub
    return TrainingRecord(
        options=options,
        loss_before=before,
        loss_after=after,
        dtype=str(dtype).removeprefix("torch."),
        seconds=round(time.monotonic() - start, 1),
        packages=package_versions("torch", *_NEEDED),
    )


def _stated_name(base: Path) -> str:
    return str(json.loads((base / "config.json").read_text(encoding="utf-8")).get("_name_or_path") or base.name)


def _rows(tokenizer: TextTokenizer, options: TrainingOptions) -> torch.Tensor:
    """[check rows and training rows, tokens_per_row] token ids: one row a module, from shuffled modules, so that check rows
    are unseen."""
    import torch

    modules = standard_library_modules(held_out=False)
    count, length = options.check_rows + options.steps * options.rows_per_step, options.tokens_per_row
    rows: list[list[int]] = []
    for index in torch.randperm(len(modules), generator=torch.Generator().manual_seed(options.seed)).tolist():
        text = modules[index][1].read_text(encoding="utf-8", errors="replace")[: 8 * length]
        ids = tokenizer.encode(text)[:length]
        if len(ids) == length:
            rows.append(ids)
        if len(rows) == count:
            return torch.tensor(rows)
    raise InputError(f"Only {len(rows)} rows of {length} tokens were found in Python's library, {count} are needed.")


def _forward(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a batch [rows, tokens], in nats."""
    import torch

    lower = next(model.parameters()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        loss: torch.Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def _loss(model: Any, rows: torch.Tensor) -> float:
    """Mean next-token loss over the rows, which are not trained on."""
    import torch

    model.eval()
    with torch.no_grad():
        return float(_forward(model, rows))
