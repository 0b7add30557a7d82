"""What starts a bundle: for each runtime, the exact commands and a service for docker compose.

To add a runtime, or another way to start one, write a function here that takes a `Startable` and register it in STARTERS.
Commands are written for a shell in the bundle's directory.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from qtk.engines.description import EngineDescription
from qtk.release.triton import TRITON_FOLDER, triton_files

COMPOSE_NAME = "compose.yaml"
_INSIDE = "/bundle"  # where a container sees the bundle
_PROMPT = "def fibonacci(n):"


@dataclass(frozen=True)
class Startable:
    """What is to be started. name: of the bundle. engine: its description; None for a checkpoint. gguf: the file of a checkpoint
    in that container. float_model: a checkpoint that is not quantized. gpu: what a checkpoint was quantized for."""

    name: str
    runtime: str
    engine: EngineDescription | None = None
    gguf: str = ""
    float_model: bool = False
    gpu: str | None = None


@dataclass(frozen=True)
class Start:
    """commands: in their order. service: of docker compose, None where no image is known that runs it. files: more files of the
    bundle, path -> text. notes: sentences for the card."""

    commands: tuple[str, ...]
    service: Mapping[str, Any] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def compose(self, name: str) -> str | None:
        """The content of compose.yaml for the bundle `name`."""
        if self.service is None:
            return None
        project = "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-") or "model"
        content = yaml.safe_dump(
            {"name": project, "services": {"model": dict(self.service)}}, sort_keys=False, width=1000
        )
        return f"# docker compose up: starts {name}. Not run by qtk.\n{content}"


def start_of(what: Startable) -> Start:
    """How the artefact is started. An engine that is prepared only is built first, on the machine that it is for."""
    if what.engine is not None and not what.engine.built:
        engine = f"../{what.name.removesuffix('-unbuilt')}-engine"
        return Start(
            (_line("qtk", "build-engine", ".", "-o", engine), _line("qtk", "generate", engine, "--prompt", _PROMPT)),
            notes=("This is prepared, not built: the first command builds the engine, on the machine that it is for.",),
        )
    return STARTERS[what.runtime](what)


def _vllm(what: Startable) -> Start:
    words = ("--served-model-name", what.name)
    service = _service(
        "${VLLM_IMAGE:-vllm/vllm-openai:latest}", ["vllm", "serve", _INSIDE, *words], port=8000, gpu=True
    )
    return Start((_line("vllm", "serve", ".", *words),), {**service, "ipc": "host"})


def _llama_cpp(what: Startable) -> Start:
    words = ("-c", "0", "--alias", what.name)  # the context that the model has; by default its file would be its name
    entry = ["-m", f"{_INSIDE}/{what.gguf}", *words, "--host", "0.0.0.0", "--port", "8080"]  # noqa: S104 - in a container
    service = _service("${LLAMA_CPP_IMAGE:-ghcr.io/ggml-org/llama.cpp:server}", entry, port=8080, entrypoint=False)
    return Start((_line("llama-server", "-m", what.gguf, *words, "--port", "8080"),), service)


def _tensorrt_llm(what: Startable) -> Start:
    """A modelopt checkpoint by the PyTorch backend (1.0 and later); an engine by the version that built it (1.2 at most)."""
    if what.engine is None:
        words: tuple[str, ...] = ()
        place, version = "", "${TENSORRT_LLM_VERSION:?1.0 or later}"
    else:
        limits = what.engine.limits
        place, version = "/engine", what.engine.versions.get("tensorrt-llm", "${TENSORRT_LLM_VERSION:?of the engine}")
        # Before 1.0 engines were what it served by default, and the option had no such value.
        backend = () if version.startswith("0.") else ("--backend", "tensorrt")
        words = (
            *("--tokenizer", "{bundle}", *backend),
            *("--max_batch_size", str(limits.max_batch), "--max_seq_len", str(limits.max_positions)),
        )

    def command(bundle: str, *more: str) -> list[str]:
        return [
            "trtllm-serve",
            f"{bundle}{place}",
            *(word.format(bundle=bundle) for word in words),
            *more,
            "--port",
            "8000",
        ]

    inside = command(_INSIDE, "--host", "0.0.0.0")  # noqa: S104 - in a container
    image = f"${{TENSORRT_LLM_IMAGE:-nvcr.io/nvidia/tensorrt-llm/release:{version}}}"
    return Start((_line(*command(".")),), {**_service(image, inside, port=8000, gpu=True), "ipc": "host"})


def _through_qtk(what: Startable) -> Start:
    """Engines that qtk runs itself, on a processor or a GPU."""
    if what.engine is None:
        return _build_first(what)
    limits = what.engine.limits
    tokens = str(min(128, limits.max_output_len))
    words = ("--prompt", _PROMPT, "--max-new-tokens", tokens)
    on_gpu = what.engine.gpu != "cpu"
    image = "${QTK_IMAGE:?an image with qtk and the runtime of this engine}" if on_gpu else "${QTK_IMAGE:-qtk}"
    served = ("--model-name", what.name)
    inside = ["qtk", "serve", _INSIDE, *served, "--host", "0.0.0.0"]  # noqa: S104 - in a container
    service = _service(image, inside, port=8000, gpu=on_gpu)
    # The key is that of the shell that starts it, and answers that have begun are finished.
    service |= {"environment": ["QTK_API_KEY"], "stop_grace_period": "2m"}
    notes = (
        f"It takes prompts of up to {limits.max_input_len} tokens and gives up to {limits.max_output_len}, "
        f"{limits.max_batch} at a time. `qtk serve` needs qtk's extra `serve`, and asks for a key where QTK_API_KEY is set.",
        *(() if on_gpu else ("`docker build -t qtk .` in a checkout of qtk makes the image.",)),
    )
    files: Mapping[str, str] = {}
    if what.runtime.startswith("tensorrt"):
        files = triton_files(what.name, on_gpu=on_gpu)
        notes += (
            f"`{TRITON_FOLDER}/` is a model repository of Triton Inference Server, whose Python backend needs qtk beside it: "
            f"`tritonserver --model-repository {TRITON_FOLDER}`.",
        )
    commands = (_line("qtk", "generate", ".", *words), _line("qtk", "serve", ".", *served))
    return Start(commands, service, files, notes)


def _edge_llm(what: Startable) -> Start:
    """By its own server, which takes a checkpoint and builds its engine when it first starts, or through qtk."""
    words: tuple[str, ...] = (".",)
    if what.engine is None:
        through_qtk = _build_first(what)
    else:
        through_qtk, limits = _through_qtk(what), what.engine.limits
        words = (
            *("./checkpoint", "--max-input-len", str(limits.max_input_len), "--max-batch-size", str(limits.max_batch)),
            *("--max-kv-cache-capacity", str(limits.max_positions)),
        )
    serve = (
        "tensorrt-edgellm-serve",
        *words,
        "--served-model-name",
        what.name,
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
    )
    note = (
        "`tensorrt-edgellm-serve` builds an engine of its own from the checkpoint when it first starts; not run by qtk."
    )
    return replace(through_qtk, commands=(*through_qtk.commands, _line(*serve)), notes=(*through_qtk.notes, note))


def _build_first(what: Startable) -> Start:
    """A checkpoint whose runtime takes engines only."""
    engine, gpu = f"../{what.name}-engine", what.gpu or ("cpu" if what.runtime == "onnxruntime" else "GPU")
    build = ("qtk", "build-engine", ".", "-o", engine, "--gpu", gpu, "--backend", what.runtime)
    return Start((_line(*build), _line("qtk", "generate", engine, "--prompt", _PROMPT)))


def _genai(what: Startable) -> Start:
    build = ("python", "-m", "onnxruntime_genai.models.builder", "-i", ".", "-o", f"../{what.name}-genai")
    return Start((_line(*build, "-p", "int4", "-e", "cpu"),), notes=("Its own builder makes the model that it runs.",))


STARTERS: dict[str, Callable[[Startable], Start]] = {
    "vllm": _vllm,
    "llama.cpp": _llama_cpp,
    "tensorrt-llm": _tensorrt_llm,
    "tensorrt-edgellm": _edge_llm,
    "tensorrt": _through_qtk,
    "tensorrt-full": _through_qtk,
    "onnxruntime": _through_qtk,
    "onnxruntime-genai": _genai,
}


def _line(*words: str) -> str:
    return shlex.join(words)


def _service(
    image: str, words: list[str], *, port: int | None = None, gpu: bool = False, entrypoint: bool = True
) -> dict[str, Any]:
    """A service that sees the bundle, which it cannot write. entrypoint: the words take the place of the image's own."""
    service: dict[str, Any] = {
        "image": image,
        "entrypoint" if entrypoint else "command": [w.replace("$", "$$") for w in words],
    }
    service["volumes"] = [f".:{_INSIDE}:ro"]
    if port is not None:
        service["ports"] = [f"127.0.0.1:{port}:{port}"]
    if gpu:
        devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return service
