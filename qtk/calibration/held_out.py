"""The one rule that keeps calibration text and held-out text of the standard library apart.

Calibration takes the modules for which `is_held_out` is false, the divergence measurement those for which it is true,
so that no measured text was ever calibrated on, whatever the seed and the number of rows.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path, PurePath

# Tests and encodings are long lists of literals, site-packages differ between machines, and pydoc_data is the
# held-out English: none of them is library code.
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
}


def is_held_out(relative_path: str | PurePath) -> bool:
    """True for about an eighth of all modules, by a hash of the path relative to the library's root.

    Stable between runs, machines and seeds: it depends on nothing but the path, with forward slashes.
    """
    return hashlib.sha256(PurePath(relative_path).as_posix().encode()).digest()[0] % 8 == 0


def standard_library_modules(*, held_out: bool) -> list[tuple[str, Path]]:
    """(relative path, file) of the standard library's Python modules on one side of the split, sorted by path."""
    root = sysconfig.get_paths()["stdlib"]
    modules = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        inside = "" if folder == root else folder[len(root) + 1 :].replace(os.sep, "/") + "/"
        for name in files:
            machine_made = name.startswith("_sysconfigdata")
            if name.endswith(".py") and not machine_made and is_held_out(inside + name) == held_out:
                modules.append((inside + name, Path(folder, name)))
    return sorted(modules)
