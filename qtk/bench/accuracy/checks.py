"""What is checked before anything is generated or run, and what tells one run from another."""

from __future__ import annotations

from pathlib import Path

from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.accuracy.programs.compatibility import require_processor, require_rules
from qtk.bench.accuracy.suites.suites import Part
from qtk.checkpoint.manifest import MANIFEST_NAME, canonical_digest, file_digest, output_files
from qtk.engines.description import is_engine, read_description
from qtk.engines.sessions.session import SESSIONS
from qtk.errors import InputError

HARNESS = "lm-eval:"


def require_sense(
    parts: list[Part],
    harness_tasks: list[str],
    options: AccuracyOptions,
    asked: ModelOptions | None,
    answers: Path | None,
) -> None:
    """InputError for rules that a suite has not, for what needs a model where there is none, for a pass@k of too few
    samples, and for what is asked for twice."""
    if answers is not None and (names := _of_probabilities(parts, harness_tasks)):
        raise InputError(
            f"A model or an engine is needed for {', '.join(names)}: a file of answers has no probabilities."
        )
    if wrong := [k for k in options.k if k < 1]:
        raise InputError(f"--k {wrong[0]}: pass@k needs a k of 1 or more.")
    if asked is not None and max(options.k) > asked.samples and any(part.suite.kind == "programs" for part in parts):
        raise InputError(
            f"pass@{max(options.k)} needs {max(options.k)} samples of every task: --samples {max(options.k)}."
        )
    if asked is not None and asked.prompt == "codefuse" and harness_tasks:
        raise InputError(
            f"--prompt codefuse is not known to lm-evaluation-harness, which renders the chats of "
            f"{HARNESS}{harness_tasks[0]} itself. Give --prompt plain or chat, or run it by itself."
        )
    for part in parts:
        if part.suite.kind == "programs":
            require_rules(part.suite, options.rules)
            if asked is not None:
                require_processor(options.rules)
    names = [f"{part.suite.name} {part.name}" for part in parts] + [f"lm-eval {name}" for name in harness_tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"Asked for twice: {', '.join(sorted(twice))}.")


def require_programs(parts: list[Part]) -> None:
    """InputError when answers are to be kept and nothing is asked for that has any."""
    if not any(part.suite.kind == "programs" for part in parts):
        raise InputError(
            "--save-generations keeps the programs that a model writes, and none of these suites asks for programs. "
            "Leave it out; answers to questions are in the files of the output directory."
        )


def require_logits(model: Path, parts: list[Part], harness_tasks: list[str]) -> None:
    """InputError for suites that read probabilities, on an engine whose runtime gives tokens only."""
    names = _of_probabilities(parts, harness_tasks)
    if names and is_engine(model) and (backend := read_description(model).backend) in SESSIONS:
        raise InputError(
            f"{', '.join(names)} reads probabilities, and {backend} gives tokens only. Run it on the checkpoint, or on an "
            "engine of --backend onnxruntime or tensorrt."
        )


def _of_probabilities(parts: list[Part], harness_tasks: list[str]) -> list[str]:
    names = [part.suite.name for part in parts if part.suite.kind != "programs"]
    return list(dict.fromkeys([*names, *(f"{HARNESS}{name}" for name in harness_tasks)]))


def content_digest(model: Path) -> str:
    """What tells a model's content from another's without reading all of it.

    Its manifest, which holds every file's digest, and the sizes; without a manifest the times of the files too.
    """
    manifest = model / MANIFEST_NAME
    known = file_digest(manifest).sha256 if manifest.is_file() else None
    files = [
        (str(path.relative_to(model)), path.stat().st_size, None if known else path.stat().st_mtime_ns)
        for path in output_files(model)
    ]
    return canonical_digest([known, files])
