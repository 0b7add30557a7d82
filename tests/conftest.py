"""Sets up the process of the tests; the fixtures are in tests/support/."""

from __future__ import annotations

import os
import signal

import pytest
import torch

pytest_plugins = [
    "support.bundles",
    "support.commands",
    "support.confined",
    "support.hub",
    "support.machines",
    "support.peft_adapters",
    "support.quantized_checkpoint",
    "support.skips",
    "support.tiny_models",
    "support.writable_hub",
]

# pytest-xdist tells its workers the width of the terminal. Commands print for a pipe, unless a test says otherwise.
os.environ.pop("COLUMNS", None)
# A background job of a shell ignores Ctrl-C, and so would the commands that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two runs that are compared bit by bit must not be given other numbers of threads because the load changed in between.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nor the dtype that one processor multiplies fast and another does not: tests that are about it set it themselves.
if not torch.cuda.is_available():
    os.environ.setdefault("QTK_COMPUTE_DTYPE", "float32")
torch.set_num_threads(1)  # workers run side by side; threads of several spinning on the same cores slow all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The limit of all tests is for the fast ones. A slow one, which takes minutes on an idle machine, gets an hour."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))
