"""Runs a task of lm-evaluation-harness on a session: one of its own by name, or a YAML file of the user's."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.jsonl import complete_rows, write_row
from qtk.bench.accuracy.results.harness import HarnessMetric, HarnessScore
from qtk.checkpoint.manifest import canonical_digest
from qtk.errors import InputError, MachineError
from qtk.install_hints import install_hint
from qtk.progress import warn

DOCUMENTS_NAME, SCORES_NAME = "lm-eval-documents.jsonl", "lm-eval-scores.jsonl"
_IN_SANDBOX = "The suites of qtk run programs in a sandbox: --suite humaneval, mbpp, humaneval-x or multipl-e."
_SEED = 1234  # of examples and metrics: that harness's default
_RESAMPLES = 1000  # for the standard errors of metrics that are not means


def harness_scores(
    model: AskedModel, name: str, directory: Path, *, limit: int | None, hub: bool
) -> list[HarnessScore]:
    """The scores of a task, or of every task of a group. They are written when the task is done; a task that an earlier,
    stopped run has written is not run again.

    Data is taken from files and the local cache alone, unless `hub`. InputError for a task that does not exist or cannot
    be loaded; MachineError where lm-evaluation-harness is not installed.
    """
    finished = [row["score"] for row in complete_rows(directory / SCORES_NAME) if row["task"] == name]
    if finished:
        return [HarnessScore.model_validate(score) for score in finished]
    scores, documents = _run(model, name, limit, hub=hub)
    with open(directory / DOCUMENTS_NAME, "a", encoding="utf-8") as stream:
        for document in documents:
            write_row(stream, document)
    with open(directory / SCORES_NAME, "a", encoding="utf-8") as stream:
        for score in scores:
            write_row(stream, {"task": name, "score": score.model_dump(mode="json")})
    return scores


def _run(
    asked_model: AskedModel, name: str, limit: int | None, *, hub: bool
) -> tuple[list[HarnessScore], list[dict[str, object]]]:
    with _network(hub):
        try:
            from lm_eval.evaluator import evaluate

            from qtk.bench.accuracy.harness.model import EngineLM
        except ImportError as error:
            raise MachineError(
                f"lm-eval:{name} needs lm-evaluation-harness ({error}): {install_hint('eval', 'lm-eval', 'datasets')}"
            ) from None
        tasks = _load(name, hub=hub)
        # Metrics and their standard errors may draw from these.
        random.seed(0)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        model = EngineLM(asked_model)
        chat = asked_model.options.chat_format == "model"
        results = evaluate(
            lm=model,
            task_dict=tasks,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
        )
    assert results is not None
    if model.cut:
        warn(
            f"lm-eval:{name}: {model.cut} requests were longer than the engine holds, so their beginnings were cut off."
        )
    scores = [_score(results, task, model.cut) for task in results["samples"]]
    return scores, [
        {"task": task, **{key: sample.get(key) for key in ("doc_id", "filter", "resps", "filtered_resps", "target")}}
        | {metric: sample[metric] for metric in sample["metrics"]}
        for task, samples in results["samples"].items()
        for sample in samples
    ]


def _load(name: str, *, hub: bool) -> Any:
    """The task as the harness loads it. InputError when it cannot be loaded, or would run programs without a sandbox."""
    from lm_eval.tasks import TaskManager

    path = Path(name)
    is_file = path.suffix in (".yaml", ".yml")
    # Reading the index of all shipped tasks takes seconds, which a task file of the user's own does not need.
    folder = str(path.absolute().parent) if is_file else None
    manager = TaskManager(include_path=folder, include_defaults=not is_file)
    try:
        loaded = manager.load([str(path.absolute()) if is_file else name])
    except Exception as error:  # the library and the hub's client raise many kinds
        raise InputError(_refusal(name, error, hub=hub)) from None
    unsafe = [key for key, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise InputError(f"lm-eval:{', '.join(unsafe)} would run generated programs without a sandbox. {_IN_SANDBOX}")
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _score(results: Any, task: str, cut: int) -> HarnessScore:
    figures, samples = results["results"][task], results["samples"][task]
    metrics = []
    for key, value in figures.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{name}_stderr,{filtered}")
        values = {str(sample["doc_id"]): sample.get(name) for sample in samples if sample["filter"] == filtered}
        metrics.append(
            HarnessMetric(
                name=name,
                filter=filtered,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                higher_is_better=bool(results["higher_is_better"].get(task, {}).get(name, True)),
                documents={doc: float(v) for doc, v in values.items() if isinstance(v, int | float)},
            )
        )
    digests = {str(sample["doc_id"]): f"{sample['doc_hash']} {sample['prompt_hash']}" for sample in samples}
    return HarnessScore(
        name=task,
        version=str(results["versions"].get(task, "")),
        examples=int(results["n-shot"].get(task) or 0),
        file_sha256=canonical_digest(digests),
        whole=results.get("n-samples", {}).get(task, {}).get("original"),
        cut=cut,
        metrics=metrics,
        tasks=digests,
    )


def _refusal(name: str, error: Exception, *, hub: bool) -> str:
    if "code_eval" in str(error):  # tasks with that metric download it when they are loaded
        return f"lm-eval:{name} would run generated programs without a sandbox. {_IN_SANDBOX}"
    hint = "" if hub else " Without --hub nothing is downloaded: its data must be in files or in the local cache."
    return f"lm-eval:{name} cannot be loaded: {type(error).__name__}: {error}.{hint}"


@contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Keeps the hub's clients off the network unless `allowed`, even if they are imported already; hides their progress bars."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    if allowed:
        yield
        return
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        from datasets import config
        from huggingface_hub import constants
    except ImportError as error:
        raise MachineError(
            f"lm-eval tasks need the package datasets ({error}): {install_hint('eval', 'datasets')}"
        ) from None
    was = (constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = was
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
