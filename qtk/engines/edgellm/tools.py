"""Finds TensorRT Edge-LLM, which lives in an environment of its own, since it pins torch, transformers and onnx."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from qtk.engines.outside_tool import find_tool

EXPORT, BUILD = "tensorrt-edgellm-export", "tensorrt-edgellm-build"
# What `make edgellm` sets up, beside the package in a checkout.
CHECKOUT_BIN = Path(__file__).resolve().parents[3] / ".venv-edgellm" / "bin"
INSTALL = (
    "`make edgellm` sets up its environment in a checkout; elsewhere: python -m venv ENV; ENV/bin/pip install "
    "torch==2.13.0; ENV/bin/pip install 'tensorrt-edgellm[export]==0.11.0'; then --edgellm-bin ENV/bin, or ENV/bin on PATH"
)


def edgellm_bin(directory: Path | None = None) -> Path | None:
    """The directory of Edge-LLM's commands: the given one, else the one on PATH, else the checkout's own; None without
    commands."""
    if directory is not None:
        return directory if find_tool(EXPORT, directory) else None
    on_path = find_tool(EXPORT)
    if on_path is not None:
        return Path(on_path).parent
    return CHECKOUT_BIN if find_tool(EXPORT, CHECKOUT_BIN) else None


def tool_versions(tools: Path) -> dict[str, str]:
    """The version of tensorrt-edgellm in the environment of these commands; empty where its metadata is missing."""
    sites = [str(site) for site in tools.parent.glob("lib/python*/site-packages")]
    versions = [package.version for package in importlib.metadata.distributions(name="tensorrt-edgellm", path=sites)]
    return {"tensorrt-edgellm": versions[0]} if versions else {}
