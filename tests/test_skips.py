"""The summary of what was skipped: every reason that the tests give names what brings it."""

from __future__ import annotations

import pytest
from support.skips import missing, summary


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("Skipped: no environment 'edgellm' (set QTK_EDGELLM_PYTHON to its python)", "make edgellm"),
        ("Skipped: no environment 'modelopt' (set QTK_MODELOPT_PYTHON to its python)", "make owners"),
        ("Skipped: go needs testify (apt install golang-github-stretchr-testify-dev).", "make eval-toolchains"),
        ("Skipped: no environment 'vllm' (set QTK_VLLM_PYTHON to its python)", "make owners"),
        ("Skipped: bubblewrap: bwrap is not installed", "make eval-toolchains"),
        ("Skipped: r needs Rscript (apt install r-base-core).", "make eval-toolchains-multipl-e"),
        ("Skipped: no data folder (set QTK_DATA)", "QTK_DATA=FOLDER make test"),
        ("Skipped: could not import 'lm_eval': No module named 'lm_eval'", "make setup"),
        ("Skipped: no root of its own at this level", "sudo make test"),
    ],
)
def test_a_reason_names_the_command_that_brings_what_is_missing(reason: str, command: str) -> None:
    assert missing(reason)[1] == command


def test_the_most_frequent_comes_first_and_is_counted() -> None:
    lines = summary(["Skipped: no node", "Skipped: no go", "Skipped: no data folder (set QTK_DATA)"])
    assert lines[0].strip().startswith("2 skipped: languages of HumanEval-X")
    assert len(lines) == 2
