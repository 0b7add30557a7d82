"""Triton's model repository of a bundle: its configuration, and its model with a stand-in of Triton."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.decoding import Decoding
from qtk.engines.sessions.session import DecoderSession
from qtk.release.starting import Startable, start_of
from qtk.release.triton import triton_files

FINAL = 1


class Response:
    """An answer of the stand-in: tensors, or an error."""

    def __init__(self, output_tensors: list[Any] | None = None, error: Any = None) -> None:
        self.tensors, self.error = output_tensors or [], error


class Tensor:
    """A tensor of the stand-in."""

    def __init__(self, name: str, content: np.ndarray) -> None:
        self.name, self.content = name, content

    def as_numpy(self) -> np.ndarray:
        return self.content


class Request:
    """A request of the stand-in, which is its own sender."""

    def __init__(self, most_pieces: int = 1000, **inputs: Any) -> None:
        self.inputs, self.sent, self.final = inputs, list[Response](), 0
        self._most_pieces = most_pieces

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return len(self.sent) >= self._most_pieces

    def send(self, response: Response | None = None, flags: int = 0) -> None:
        self.final += flags
        if response is not None:
            self.sent.append(response)

    @property
    def text(self) -> str:
        return "".join(tensor.content[0].decode() for response in self.sent for tensor in response.tensors)


def stand_in() -> types.ModuleType:
    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        InferenceResponse=Response,
        Tensor=Tensor,
        TritonError=str,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        get_input_tensor_by_name=lambda request, name: (
            Tensor(name, np.array([request.inputs[name]])) if name in request.inputs else None
        ),
    )
    return module


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "engine"
    build_engine(tiny(), out, BuildOptions(accuracy_level=0, max_input_len=32, max_output_len=24))
    for name, text in triton_files("tiny", on_gpu=False).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    return out


@pytest.fixture
def model(engine: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    made = types.ModuleType("model")
    exec(compile((engine / "triton/tiny/1/model.py").read_text(), "model.py", "exec"), made.__dict__)
    served = made.TritonPythonModel()
    served.initialize({"model_repository": str(engine / "triton" / "tiny")})
    yield served
    served.finalize()


def test_its_text_is_what_the_engine_generates(engine: Path, model: Any) -> None:
    first = Request(text_input=b"def f(x):", max_tokens=12)
    drawn = Request(text_input=b"def f(x):", max_tokens=12, temperature=0.9, top_p=0.8, seed=5)
    model.execute([first, drawn])
    with DecoderSession.open(engine, 1) as session:
        ids = session.tokenizer.encode("def f(x):", special=True)

        def expected(decoding: Decoding) -> str:
            return session.tokenizer.decode(session.generate([ids], 12, decoding).tokens[0])

        assert first.text == expected(Decoding())
        assert drawn.text == expected(Decoding(float(np.float64(0.9)), 0.8, seed=5))
    assert len(first.sent) > 1
    assert (first.final, drawn.final) == (FINAL, FINAL)


def test_a_request_that_is_cancelled_or_too_long_ends(model: Any) -> None:
    left, long = Request(2, text_input=b"def f(x):"), Request(text_input=b"x" * 100, max_tokens=5)
    model.execute([left, long])
    assert len(left.sent) <= 3
    assert "This engine cannot take the call" in long.sent[0].error
    assert (left.final, long.final) == (FINAL, FINAL)


def test_bundles_of_tensorrt_engines_hold_it(engine: Path) -> None:
    from qtk.engines.description import read_description

    about = read_description(engine).model_copy(update={"backend": "tensorrt", "gpu": "a10"})
    start = start_of(Startable("my-model", "tensorrt", about))
    assert set(start.files) == {"triton/my-model/config.pbtxt", "triton/my-model/1/model.py"}
    config = start.files["triton/my-model/config.pbtxt"]
    assert f"name: {json.dumps('my-model')}" in config
    assert "kind: KIND_GPU" in config
    assert any("tritonserver --model-repository triton" in note for note in start.notes)


def test_triton_s_own_schema_reads_the_configuration(owners_python) -> None:
    """By the message that its client carries: an unknown field or a wrong type is an error there."""
    python = owners_python("triton")
    text = triton_files("my-model", on_gpu=True)["triton/my-model/config.pbtxt"]
    code = "import sys\nfrom google.protobuf import json_format, text_format\n"
    code += "from tritonclient.grpc.model_config_pb2 import ModelConfig\n"
    code += "print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), ModelConfig())))"
    done = subprocess.run([python, "-c", code], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)
    assert (config["name"], config["backend"]) == ("my-model", "python")
    assert config["modelTransactionPolicy"] == {"decoupled": True}
    assert [entry["name"] for entry in config["output"]] == ["text_output"]
    assert {entry["name"] for entry in config["input"] if entry.get("optional")} == {
        "max_tokens", "temperature", "top_p", "seed",
    }  # fmt: skip
