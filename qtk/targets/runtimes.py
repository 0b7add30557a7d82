"""The runtimes that run what qtk writes, one record each: what a runtime takes of a quantized model, and where its code is.

Everything that lists runtimes is derived from RUNTIMES: the values of `--backend`, the backends of a GPU, what quantize,
plan and build-engine refuse, the executors and sessions, and what `qtk doctor` looks for. To add one that qtk builds
engines for, write a folder in qtk/engines and a record here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from qtk.errors import InputError
from qtk.install_hints import install_hint


@dataclass(frozen=True)
class Dependency:
    """A package or program outside qtk's own dependencies that a runtime needs on the machine.

    name: of the distribution, or of the program. purpose: what qtk does with it. module: the import name of a package.
    extra: qtk's extra that lists the package; `by_hand`: how to get what no extra lists.
    """

    name: str
    kind: Literal["package", "program"]
    purpose: str
    module: str = ""
    extra: str = ""
    by_hand: str = ""

    @property
    def install(self) -> str:
        """How to get it, for a sentence."""
        return install_hint(self.extra) if self.extra else self.by_hand


@dataclass(frozen=True)
class EngineParts:
    """The code that builds and runs a runtime's engines, each part as "module:Class", imported when it is used.

    builder: an `EngineBackend`. executor: runs the portable graph below qtk's own generation loop. session: takes the place
    of an executor where the runtime brings a loop of its own. to_build and to_run: what each needs on the machine.
    built_on_gpu: whether engines are built on the GPU they are for. several_gpus: whether --tp and --pp are taken.
    experimental: nobody has run its engines on a GPU for qtk yet.
    """

    builder: str
    executor: str = ""
    session: str = ""
    to_build: tuple[Dependency, ...] = ()
    to_run: tuple[Dependency, ...] = ()
    built_on_gpu: bool = False
    several_gpus: bool = False
    experimental: bool = False


@dataclass(frozen=True)
class Runtime:
    """One runtime. `containers` are in order of preference; it reads the symmetric_containers only with symmetric weights.
    `multiple_of` must divide the in and out features of a quantized linear, and a tensor-parallel rank's share of them.
    signed_scales: whether scales may be below zero. SMs are inclusive; min_sm is None for a runtime on a processor. engine is
    None where the runtime reads checkpoints itself. serve: the command that serves a checkpoint: {model} is its directory,
    {file} the path of a container that is one file. evidence: where the record is from, and what of it was run for qtk.
    """

    name: str
    title: str
    containers: tuple[str, ...]
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    asymmetric: bool
    signed_scales: bool
    evidence: str
    multiple_of: int = 1
    min_sm: int | None = None
    max_sm: int | None = None
    unknown_sms: tuple[int, ...] = ()
    serve: str = ""
    engine: EngineParts | None = None
    symmetric_containers: tuple[str, ...] = ()

    def reads(self, container: str, *, symmetric: bool) -> bool:
        """Whether it reads a container whose weights are all symmetric, or not all."""
        return container in self.containers and (symmetric or container not in self.symmetric_containers)

    def runs_on(self, sm: int) -> bool:
        """Whether the runtime runs INT4 on a GPU of this SM (86 for compute capability 8.6)."""
        if self.min_sm is None or sm < self.min_sm or sm in self.unknown_sms:
            return False
        return self.max_sm is None or sm <= self.max_sm


_READ_BY_QTK = ("gptq", "awq", "modelopt", "compressed-tensors")
_SYMMETRIC_ONLY = ("gptq", "modelopt", "awq", "compressed-tensors")
_RTX = Dependency(
    "tensorrt-rtx-cu13",
    "package",
    "compiles TensorRT-RTX engines, without a GPU in the machine, and runs them",
    module="tensorrt_rtx",
    extra="tensorrt",
)
_FULL_TENSORRT = Dependency(
    "tensorrt",
    "package",
    "compiles and runs engines with full TensorRT, on a machine with a GPU",
    module="tensorrt",
    by_hand="pip install tensorrt",
)
_CUDA = Dependency("cuda-python", "package", "runs TensorRT engines", module="cuda", extra="tensorrt")
_TRTLLM_BUILD = Dependency(
    "trtllm-build",
    "program",
    "builds TensorRT-LLM engines",
    by_hand="pip install tensorrt-llm, version 1.2 at most, on a machine with a GPU",
)
_TRTLLM = Dependency(
    "tensorrt-llm",
    "package",
    "runs TensorRT-LLM engines, on a machine with a GPU",
    module="tensorrt_llm",
    by_hand="pip install tensorrt-llm, in the version that built the engine",
)
_EDGELLM_INSTALL = (
    "make edgellm in a checkout, or pip install 'tensorrt-edgellm[export]' into an environment of its own"
)
_EDGELLM_EXPORT = Dependency(
    "tensorrt-edgellm-export", "program", "exports models for TensorRT Edge-LLM", by_hand=_EDGELLM_INSTALL
)
_EDGELLM_BUILD = Dependency(
    "tensorrt-edgellm-build",
    "program",
    "builds and runs TensorRT Edge-LLM engines on their GPU",
    by_hand=_EDGELLM_INSTALL,
)

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "onnxruntime",
            "ONNX Runtime on a processor",
            _READ_BY_QTK,
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            signed_scales=True,
            evidence="run in the tests, on processors",
            engine=EngineParts(
                "qtk.engines.onnxruntime.backend:OnnxRuntimeBackend",
                executor="qtk.engines.onnxruntime.executor:OnnxRuntimeExecutor",
            ),
        ),
        Runtime(
            "tensorrt",
            "TensorRT-RTX",
            _SYMMETRIC_ONLY,
            bits=(4,),
            group_sizes=(32, 64, 128),
            asymmetric=False,
            signed_scales=True,
            evidence="compiled for SM80, 86, 89 and 120 (its support matrix does not name SM80); SM75 compiles no INT4; not run on a GPU",
            min_sm=80,
            max_sm=121,
            unknown_sms=(90, 100, 103),
            engine=EngineParts(
                "qtk.engines.tensorrt.backend:TensorRtBackend",
                executor="qtk.engines.tensorrt.executor:TensorRtExecutor",
                to_build=(_RTX,),
                to_run=(_RTX, _CUDA),
            ),
        ),
        Runtime(
            "tensorrt-full",
            "TensorRT",
            _SYMMETRIC_ONLY,
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            signed_scales=False,
            evidence="its documentation (INT4 in blocks of 64 and 128, symmetric, with positive scales); not run",
            min_sm=80,
            engine=EngineParts(
                "qtk.engines.tensorrt.backend:TensorRtBackend",
                executor="qtk.engines.tensorrt.executor:TensorRtExecutor",
                to_build=(_FULL_TENSORRT,),
                to_run=(_FULL_TENSORRT, _CUDA),
                built_on_gpu=True,
                experimental=True,
            ),
        ),
        Runtime(
            "tensorrt-edgellm",
            "TensorRT Edge-LLM 0.11",
            ("modelopt", "gptq"),
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            signed_scales=True,
            evidence="its exporter is run in the tests (it clamps asymmetric codes silently); its wheel's kernels are for "
            "SM80, 86, 100 and 120 exactly; not run on a GPU",
            multiple_of=64,
            min_sm=80,
            max_sm=120,
            unknown_sms=(89, 90),
            engine=EngineParts(
                "qtk.engines.edgellm.backend:EdgeLlmBackend",
                session="qtk.engines.edgellm.session:EdgeLlmSession",
                to_build=(_EDGELLM_EXPORT, _EDGELLM_BUILD),
                to_run=(_EDGELLM_BUILD,),
                built_on_gpu=True,
                experimental=True,
            ),
        ),
        Runtime(
            "tensorrt-llm",
            "TensorRT-LLM",
            ("modelopt", *(container for container in _SYMMETRIC_ONLY if container != "modelopt")),
            bits=(4,),
            group_sizes=(64, 128),
            asymmetric=False,
            signed_scales=True,
            evidence="its source (group-wise kernels from SM80, groups of 64 and 128, none for INT4 on Blackwell); not run",
            multiple_of=64,
            min_sm=80,
            max_sm=90,
            engine=EngineParts(
                "qtk.engines.tensorrt_llm.backend:TensorRtLlmBackend",
                session="qtk.engines.tensorrt_llm.session:TensorRtLlmSession",
                to_build=(_TRTLLM_BUILD,),
                to_run=(_TRTLLM,),
                built_on_gpu=True,
                several_gpus=True,
                experimental=True,
            ),
        ),
        Runtime(
            "onnxruntime-genai",
            "ONNX Runtime GenAI's builder",
            ("gptq", "awq"),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            signed_scales=True,
            evidence="its builder is run in the slow tests; it refuses compressed-tensors and modelopt INT4",
        ),
        Runtime(
            "vllm",
            "vLLM and SGLang",
            ("gptq", "compressed-tensors", "awq"),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=True,
            signed_scales=True,
            evidence="run in the slow tests: vLLM 0.32 on a processor, where it takes 4 bits (its product with such weights needs "
            "AVX-512; without it a stand-in multiplies); on GPUs, and SGLang, their documentation",
            min_sm=75,
            symmetric_containers=("gptq",),
            serve="vllm serve {model}",
        ),
        Runtime(
            "llama.cpp",
            "llama.cpp",
            ("gguf",),
            bits=(4, 8),
            group_sizes=(32, 64, 128),
            asymmetric=False,
            signed_scales=True,
            evidence="run in the slow tests, on a processor",
            serve="llama-server -m {file}",
        ),
    )
}


def runtime(name: str) -> Runtime:
    """The record of a runtime. InputError lists the known ones."""
    if name not in RUNTIMES:
        raise InputError(f"Backend {name!r} is not known; qtk knows {', '.join(RUNTIMES)}.")
    return RUNTIMES[name]


def engine_runtimes() -> dict[str, EngineParts]:
    """The runtimes that qtk builds engines for, by name: the values of `--backend`."""
    return {name: record.engine for name, record in RUNTIMES.items() if record.engine is not None}


def engine_parts(name: str) -> EngineParts:
    """The code for a runtime's engines. InputError for a runtime that qtk builds none for."""
    known = engine_runtimes()
    if name not in known:
        raise InputError(f"Backend {name!r} is not known; qtk builds engines for {', '.join(known)}.")
    return known[name]


def dependencies() -> list[Dependency]:
    """What the engines' runtimes need on a machine, each package and program once."""
    needed = [need for parts in engine_runtimes().values() for need in (*parts.to_build, *parts.to_run)]
    return list(dict.fromkeys(needed))


def load_part(place: str) -> Any:
    """The class that "module:Class" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
