"""Runs tasks of lm-evaluation-harness on a session: by its name, or a YAML file of the user's own."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtk.bench.accuracy.options import ModelOptions
from qtk.bench.accuracy.programs.answers import write_line
from qtk.bench.accuracy.programs.language_run import complete_rows
from qtk.bench.accuracy.results.harness_scores import HarnessMetric, HarnessScore
from qtk.checkpoint.manifest import canonical_digest
from qtk.engines.sessions.session import DecoderSession
from qtk.errors import InputError, MachineError
from qtk.progress import note

DOCUMENTS_NAME, SCORES_NAME = "lm-eval-documents.jsonl", "lm-eval-scores.jsonl"
_IN_SANDBOX = "qtk's own suites run them in one: --suite humaneval, mbpp, humaneval-x or multipl-e."
_SEED = 1234  # of examples and metrics: that harness's default
_RESAMPLES = 1000  # for standard errors of metrics that are no means


def harness_scores(
    session: DecoderSession, options: ModelOptions, tasks: list[str], limit: int | None, directory: Path, *, hub: bool
) -> list[HarnessScore]:
    """The scores of the tasks, each written when it is done; those that an earlier, stopped run wrote are not run again.

    Data is taken from files and the local cache only, unless `hub`. InputError for tasks that do not exist or cannot be
    loaded; MachineError where lm-evaluation-harness is not installed.
    """
    finished: dict[str, list[dict[str, Any]]] = {}
    for row in complete_rows(directory / SCORES_NAME):
        finished.setdefault(row["asked"], []).append(row["score"])
    for name in tasks:
        if name in finished:
            continue
        found, documents = _run(session, options, name, limit, hub=hub)
        with open(directory / DOCUMENTS_NAME, "a", encoding="utf-8") as stream:
            for document in documents:
                write_line(stream, document)
        with open(directory / SCORES_NAME, "a", encoding="utf-8") as stream:
            for score in found:
                write_line(stream, {"asked": name, "score": json.loads(score.model_dump_json())})
        finished[name] = [json.loads(score.model_dump_json()) for score in found]
    return [HarnessScore.model_validate(score) for name in tasks for score in finished[name]]


def _run(
    session: DecoderSession, options: ModelOptions, name: str, limit: int | None, *, hub: bool
) -> tuple[list[HarnessScore], list[dict[str, object]]]:
    with _network(hub):
        try:
            from lm_eval.evaluator import evaluate
            from lm_eval.tasks import TaskManager

            from qtk.bench.accuracy.harness.model import EngineLM
        except ImportError as error:
            raise MachineError(
                f"lm-eval:{name} needs lm-evaluation-harness: pip install 'qtk[eval]' ({error})."
            ) from None
        path = Path(name)
        own = path.suffix in (".yaml", ".yml")
        if own and not path.is_file():
            raise InputError(f"{path}: no such file of a task.")
        # Reading the index of all shipped tasks takes seconds, which a task file of the user's own does not need.
        manager = TaskManager(include_path=str(path.absolute().parent) if own else None, include_defaults=not own)
        try:
            loaded = manager.load([str(path.absolute()) if own else name])
        except Exception as error:  # the library and the hub's client raise many kinds
            raise InputError(_refusal(name, error, hub=hub)) from None
        unsafe = [task for task, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]
        if unsafe:
            raise InputError(
                f"lm-eval:{', '.join(unsafe)} would run generated programs without a sandbox. {_IN_SANDBOX}"
            )
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_SEED)
        # Metrics and their standard errors may draw from these.
        random.seed(0)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        model = EngineLM(session, options)
        chat = options.prompt == "chat"
        results = evaluate(
            lm=model,
            task_dict=loaded,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
        )
    assert results is not None
    if model.cut:
        note(f"qtk: lm-eval:{name}: {model.cut} requests were longer than the engine holds and lost their beginning.")
    scores = [_score(results, task, model.cut) for task in results["samples"]]
    return scores, [
        {"task": task, **{key: sample.get(key) for key in ("doc_id", "filter", "resps", "filtered_resps", "target")}}
        | {metric: sample[metric] for metric in sample["metrics"]}
        for task, samples in results["samples"].items()
        for sample in samples
    ]


def _score(results: Any, task: str, cut: int) -> HarnessScore:
    figures, samples = results["results"][task], results["samples"][task]
    metrics = []
    for key, value in figures.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{name}_stderr,{filtered}")
        own = {str(sample["doc_id"]): sample.get(name) for sample in samples if sample["filter"] == filtered}
        metrics.append(
            HarnessMetric(
                name=name,
                filter=filtered,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                higher_is_better=bool(results["higher_is_better"].get(task, {}).get(name, True)),
                documents={doc: float(v) for doc, v in own.items() if isinstance(v, int | float)},
            )
        )
    digests = {str(sample["doc_id"]): f"{sample['doc_hash']} {sample['prompt_hash']}" for sample in samples}
    return HarnessScore(
        language=task,
        version=str(results["versions"].get(task, "")),
        examples=int(results["n-shot"].get(task) or 0),
        file_sha256=canonical_digest(digests),
        cut=cut,
        metrics=metrics,
        tasks=digests,
    )


def _refusal(name: str, error: Exception, *, hub: bool) -> str:
    if "code_eval" in str(error):  # tasks of that metric fetch it when they are loaded
        return f"lm-eval:{name} would run generated programs without a sandbox. {_IN_SANDBOX}"
    hint = "" if hub else " Its data is looked for in files and the local cache only; --hub lets it be downloaded."
    return f"lm-eval:{name} cannot be loaded: {type(error).__name__}: {error}.{hint}"


@contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """Keeps the hub's clients off the network, whether they are imported already or not; and their bars off stderr."""
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
        raise MachineError(f"lm-eval tasks need the package datasets: pip install 'qtk[eval]' ({error}).") from None
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
