"""Options of other tools, and of qtk's other commands, that a user may try: each is answered with what it is called here."""

from __future__ import annotations

_MODEL = "The model is an argument without a name"
_SCHEME = "W4A16 is --bits 4, with --group-size and --sym or --asym"
_SPLIT = "A model is split over GPUs when its engine is built: qtk build-engine --tp"

# command -> option -> the answer, a sentence without its full stop
_ANSWERS = {
    "quantize": {
        "--dataset": "Calibration text is --calibration",
        "--data": "Calibration text is --calibration",
        "--rows": "Rows of calibration text are --samples",
        "--limit": "Rows of calibration text are --samples",
        "--scheme": _SCHEME,
        "--desc-act": "qtk never reorders columns by activation, so that every runtime reads what it writes",
        "--act-order": "qtk never reorders columns by activation, so that every runtime reads what it writes",
        "--iters": "How long blocks are tuned is --effort fast, default or best",
        "--ignore": "Linears are left in float by --override 'PATTERN=skip'",
        "--tp": _SPLIT,
        "--pp": f"{_SPLIT} and --pp",
    },
    "plan": {"--scheme": _SCHEME},
    "merge": {"--adapter": "Adapters are arguments without a name, after the base model: qtk merge BASE ADAPTER"},
    "build-engine": {
        "--quantization": "Weights are quantized before: qtk quantize MODEL -o int4",
        "--bits": "Weights are quantized before: qtk quantize MODEL -o int4 --bits 4",
    },
    "bench divergence": {
        "--calibration": "The text to measure on is --data",
        "--dataset": "The text to measure on is --data",
        "--samples": "Rows of each text are --rows",
        "--limit": "Rows of each text are --rows",
    },
    "bench accuracy": {
        "--tasks": "What is scored is --suite: a name from `qtk list suites`, or lm-eval:TASK",
        "--dataset": "What is scored is --suite, and the folder of its files is --data",
        "--rows": "The number of tasks is --limit",
        "--num-fewshot": "Prompts are the suites' own; a task of lm-eval may say its number: --suite lm-eval:TASK.yaml",
    },
}
_EVERYWHERE = {
    "--model": _MODEL,
    "--model-path": _MODEL,
    "--output-dir": "The directory to write is -o",
    "--verbose": "Progress is always shown; -q silences it, and --debug shows the traceback of an error",
    "--log-level": "-q silences progress, and --debug shows the traceback of an error",
}


def answer(command: str, option: str) -> str | None:
    """What to say to an option that the command ("bench accuracy") does not have; None where nothing is known of it."""
    found = _ANSWERS.get(command, {}).get(option) or _EVERYWHERE.get(option)
    return None if found is None else f"{found}."
