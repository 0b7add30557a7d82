"""Where TensorRT Edge-LLM is: an environment of its own, since it pins torch, transformers and onnx."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from qtk.engines.outside_tool import find_tool

EXPORT, BUILD = "tensorrt-edgellm-export", "tensorrt-edgellm-build"
# What `make edgellm` sets up, beside the package in a checkout.
CHECKOUT_BIN = Path(__file__).resolve().parents[3] / ".venv-edgellm" / "bin"
INSTALL = (
    "`make edgellm` sets its environment up in a checkout; elsewhere: python -m venv ENV; ENV/bin/pip install "
    "torch==2.13.0; ENV/bin/pip install 'tensorrt-edgellm[export]==0.11.0'; then --edgellm-bin ENV/bin, or ENV/bin on PATH"
)


def edgellm_bin(asked: Path | None = None) -> Path | None:
    """The directory of Edge-LLM's commands: the one that is asked for, else that on PATH, else the checkout's own."""
    if asked is not None:
        return asked if find_tool(EXPORT, asked) else None
    found = find_tool(EXPORT)
    if found is not None:
        return Path(found).parent
    return CHECKOUT_BIN if find_tool(EXPORT, CHECKOUT_BIN) else None


def tool_versions(tools: Path) -> dict[str, str]:
    """The version of tensorrt-edgellm in the environment of these commands; empty where it does not say."""
    sites = [str(site) for site in tools.parent.glob("lib/python*/site-packages")]
    found = [one.version for one in importlib.metadata.distributions(name="tensorrt-edgellm", path=sites)]
    return {"tensorrt-edgellm": found[0]} if found else {}
