"""What is broken in these tests: a tiny model, an adapter, quantized models, an engine and the files of settings, made once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.confined import Confined
from support.tiny_models import make_tiny, write_byte_tokenizer

from qtk.calibration.options import CalibrationOptions
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.quantization.options import QuantizeOptions
from qtk.quantization.quantize import quantize_model

_FAILING = Path(__file__).with_name("failing_calls.c")
CONTAINERS = ("gptq", "awq", "compressed-tensors", "modelopt")
RECIPE = "name: own\nmodel: ./m\nquantize: {method: rtn, group_size: 32}\nbuild: {gpu: cpu, max_input_len: 32, max_output_len: 16}\n"
SUITE = (
    "name: own\nsummary: ours\nsource: ours\nlicence: MIT\nlayout: humaneval\n"
    "languages:\n  python: {file: own.jsonl, tasks: 2}\n"
)
PROFILE = 'title: Own\ncompute_capability: "8.6"\nmemory_gib: 24\nbandwidth_gb_s: 600\nfp16_tflops: 100\n'


@dataclass(frozen=True)
class Workshop:
    """A directory with one whole example of everything that qtk reads. Read only: `copy` gives one to be broken."""

    root: Path

    def copy(self, to: Path) -> Workshop:
        shutil.copytree(self.root, to, dirs_exist_ok=True)
        return Workshop(to)

    def __getattr__(self, name: str) -> Path:
        return self.root / name


def write_settings(root: Path) -> None:
    """Recipe, suite with its tasks and answers, profile and calibration text."""
    tasks = [
        {
            "task_id": f"T/{n}",
            "prompt": f"def f{n}(x):\n",
            "entry_point": f"f{n}",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + n}\n",
        }
        for n in range(2)
    ]
    answers = [{"task_id": f"T/{n}", "generation": f"    return x + {n}\n"} for n in range(2)]
    for name, rows in (("own", tasks), ("answers", answers)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "no " * 9}]}
        for n in range(9)
    ]
    (root / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (root / "text.txt").write_text("def f(x):\n    return x + 1\n" * 60)
    for name, text in (("recipe", RECIPE), ("suite", SUITE), ("profile", PROFILE)):
        (root / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, make_adapter, write_quantized) -> Workshop:
    """m: the model; a: an adapter; q-CONTAINER: quantized models; e: an engine; recipe, suite, profile; text.txt, chats.jsonl."""
    from qtk.quantization.scheme_model import LinearScheme

    root = tmp_path_factory.mktemp("workshop")
    model = make_tiny(root / "m", "llama", num_hidden_layers=2, hidden_size=64, intermediate_size=128)
    write_byte_tokenizer(model)
    make_adapter(model, root / "a", r=4, target_modules=["q_proj", "up_proj"])
    (root / "a" / "README.md").unlink(missing_ok=True)
    for container in CONTAINERS:
        group = 64 if container == "modelopt" else 32
        write_quantized(model, root / f"q-{container}", container, LinearScheme(4, group, container != "awq"))
    build_engine(model, root / "e", BuildOptions(gpu="cpu", max_input_len=32, max_output_len=16, max_batch_size=1))
    make_tiny(root / "sharded", "llama", num_hidden_layers=2, hidden_size=64, intermediate_size=128, shard_size="100KB")
    _write_gguf(model, root)
    (root / "m" / "chat_template.jinja").write_text(
        json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    )
    write_settings(root)
    return Workshop(root)


def _write_gguf(model: Path, root: Path) -> None:
    """q-gguf: the model in one GGUF file, which takes a tokenizer with merges."""
    if importlib.util.find_spec("gguf") is None:
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    source = Path(shutil.copytree(model, root / "m-merges"))
    letters = {symbol: number + 2 for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **letters, "th": 258}, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(source / "tokenizer.json"))
    options = QuantizeOptions(method="rtn", group_size=32, container="gguf")
    quantize_model(source, root / "q-gguf", options, CalibrationOptions())
    (made,) = (root / "q-gguf").glob("*.gguf")
    made.rename(made.with_name("model.gguf"))
    shutil.rmtree(source)


@pytest.fixture(scope="session")
def failing(tmp_path_factory) -> Iterator[Confined]:
    """Runs commands whose calls can be made to fail, or to end the process."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, so calls cannot be made to fail")
    library = tmp_path_factory.mktemp("shim") / "failing.so"
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, _FAILING, "-ldl"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"the C compiler cannot make a library: {made.stderr[-200:]}")
    server = Confined(library)
    yield server
    server.close()


@pytest.fixture
def broken(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A copy of the workshop, to be broken."""
    return workshop.copy(tmp_path / "w")


Edit = Callable[[dict], None]


def edit_json(path: Path, **changes: object) -> None:
    """Writes a JSON file anew with some of its values changed."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
