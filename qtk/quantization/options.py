"""The options of `qtk quantize`: one frozen model for the command line, recipes and manifests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class QuantizeOptions(BaseModel):
    """Options of quantization. What is left at "auto" is decided from the model and the target, and recorded.

    Recipes and manifests written before call `container` "format", and are read all the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["gptq", "awq", "rtn", "auto"] = Field(
        "gptq",
        description="gptq; awq; rtn (round to nearest, no calibration); auto: gptq and awq, whichever is closer to the float "
        "model on calibration rows that are held back.",
    )
    effort: Literal["fast", "default", "best"] = Field(
        "default",
        description="fast: GPTQ on a quarter of the calibration rows; default: on half of them, with the float model "
        "running beside, which corrects the errors already in the inputs; best: on all of them, and each block is then tuned "
        "as a whole, in ten times the time.",
    )
    bits: int = Field(4, description="Bits of a weight: 4 or 8.")
    group_size: int | Literal["auto"] = Field(
        "auto",
        description="Input columns that share a scale: 32, 64, 128, or auto (the largest that divides every layer).",
        json_schema_extra={"names": "group-sizes"},
    )
    sym: bool = Field(
        True,
        description="Symmetric codes (zero point in the middle), or asymmetric.",
        json_schema_extra={"off": "asym"},
    )
    signed_scales: bool = Field(
        True,
        description="Symmetric scales of either sign, so that the 16th code serves whichever side needs it, or only "
        "positive scales for runtimes that take no others (--gpu and --backend decide this too).",
        json_schema_extra={"off": "positive-scales"},
    )
    container: str = Field(
        "auto",
        description="File format of the weights: gptq, awq, modelopt, compressed-tensors or gguf. auto is what the target "
        "reads, else gptq.",
        json_schema_extra={"names": "containers", "also": ["auto"]},
    )
    gpu: str | None = Field(
        None,
        description="GPU that the model is for (a name from `qtk gpus`, or the YAML file of a profile): decides what is left at "
        "auto; what the GPU cannot run is refused.",
        json_schema_extra={"names": "gpus"},
    )
    backend: str = Field(
        "auto",
        description="Runtime that the model is for: one of build-engine's backends, vllm, llama.cpp or onnxruntime-genai. "
        "auto is the first one of the GPU.",
        json_schema_extra={"names": "runtimes", "also": ["auto"]},
    )
    override: tuple[str, ...] = Field(
        (),
        description="PATTERN=SETTINGS for modules whose name matches the pattern (* and ?): bits:8, skip or bits:16 (left "
        "in float), group:32, joined by commas. Repeatable; the last match wins.",
    )
    lm_head_bits: Literal["16", "8"] = Field("16", description="Bits of an untied lm_head: 16 (float) or 8.")
    texts: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether four short texts are generated from the files that were written; auto: where the whole model, "
        "dequantized, fits into memory. Every block is compared with what was quantized in any case.",
    )
    memory: float | None = Field(
        None,
        gt=0,
        description="GB of memory that the run may take; what does not fit is refused before any work, with the figure that "
        "would do. Activations take what the rest leaves, and go to disk beyond it. Default: what is needed, and a sixteenth of "
        "the machine's memory (or of the control group's limit) for activations.",
    )
    threads: int | None = Field(
        None, ge=1, description="Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."
    )
    device: str = Field("auto", description="auto (a GPU when there is one), cpu, cuda, or cuda:N.")

    @model_validator(mode="before")
    @classmethod
    def _container_was_called_format(cls, values: object) -> object:
        if isinstance(values, dict) and "format" in values and "container" not in values:
            return {"container" if name == "format" else name: value for name, value in values.items()}
        return values

    @field_validator("bits")
    @classmethod
    def _known_bits(cls, bits: int) -> int:
        if bits not in (4, 8):
            raise ValueError(f"{bits} bits are not supported; 4 and 8 are")
        return bits

    @field_validator("group_size", mode="before")
    @classmethod
    def _known_group(cls, value: object) -> object:
        number = int(value) if isinstance(value, str) and value.isdigit() else value
        if number not in ("auto", 32, 64, 128):
            raise ValueError(f"group size {value} is not supported; 32, 64, 128 and auto are")
        return number
