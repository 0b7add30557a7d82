"""What a process says of the memory that it held."""

from __future__ import annotations

import subprocess
import sys

import torch

from qtk.peak_memory import most_resident_bytes, resident_bytes


def test_what_was_given_back_counts_and_what_the_parent_held_does_not() -> None:
    before = resident_bytes()
    large = torch.ones(100 << 20, dtype=torch.uint8).share_memory_()
    assert most_resident_bytes() >= before + (100 << 20) - (8 << 20)
    held = resident_bytes()
    code = "from qtk.peak_memory import most_resident_bytes; print(most_resident_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 1 << 20 < child < held / 2, "a process of Python and psutil alone"
    del large
    assert most_resident_bytes() >= held - (8 << 20)
