"""The wheel is whole: recipes, GPU profiles, suites and the report's template travel inside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(tmp_path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", str(ROOT), "--no-deps", "-w", str(tmp_path)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "qtk" / "release" / "templates" / "report.md.j2").is_file()
    code = (
        "import qtk.shipped as s; assert 'site' in s.__file__; "
        "print(*s.shipped_names('recipes'), *s.shipped_names('gpus'), *s.shipped_names('bench/suites'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert {"smollm2-135m", "a10", "cpu", "humaneval-x"} <= set(result.stdout.split()), result.stderr

    def qtk(*words: str) -> subprocess.CompletedProcess[str]:
        """The command from the unpacked wheel, in a directory that holds nothing of the user's."""
        return subprocess.run(
            [sys.executable, "-c", "import sys; from qtk.cli.main import main; sys.exit(main(sys.argv[1:]))", *words],
            env={"PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    adapter = qtk("run", "codefuse-deepseek-33b-a10", "--until", "build")
    assert (adapter.returncode, adapter.stderr.split()[1]) == (2, "codefuse-adapter"), "looked for where the user is"
    assert not (tmp_path / "runs").exists()
