"""The options of `qtk serve`. Light to import: the command line reads them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

KEY_VARIABLE = "QTK_API_KEY"


class ServeOptions(BaseModel):
    """Where and how an engine is served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every address of the machine.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes one that is free.")
    model_name: str | None = Field(
        None, description="Name of the model for its clients. Default: the name of the engine's directory."
    )
    rows: int | None = Field(
        None, ge=1, description="Most texts generated at once. Default: --max-batch-size of build-engine."
    )
    max_waiting: int = Field(
        64, ge=1, description="Most texts that wait for a row; a request beyond them is answered with 429."
    )
    max_body: int = Field(1 << 20, ge=1024, description="Largest body of a request, in bytes.")
    chat_format: Literal["model", "codefuse"] = Field(
        "model", description="How conversations are rendered: by the model's template, or in CodeFuse's format."
    )
    threads: int | None = Field(
        None, ge=1, description="Threads to compute with. Default: OMP_NUM_THREADS, else every usable core."
    )
