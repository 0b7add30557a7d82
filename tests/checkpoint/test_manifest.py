"""The manifest and its chain: what is recorded, what verify finds, what is never recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qtk.checkpoint.manifest import (
    MANIFEST_NAME,
    ManifestRecorder,
    canonical_digest,
    file_digest,
    output_files,
    read_manifest,
    verify_chain,
)
from qtk.checkpoint.staging import staged_directory
from qtk.errors import InputError
from qtk.redaction import redact


def make(out: Path, content: str, *, run: int = 1, **inputs: Path) -> Path:
    """A directory as every command writes it, reading the directories `inputs`."""
    recorder = ManifestRecorder("test", {"content": content, "run": run})
    with staged_directory(out) as work:
        for role, path in inputs.items():
            recorder.add_input(role, path, output_files(path) if path.is_dir() else [path])
        (work / "data.txt").write_text(content)
        recorder.write(work, out, 1)
    return out


@pytest.fixture
def chain(tmp_path) -> list[Path]:
    """source (no manifest) -> a -> b, and c that reads both."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_text("w")
    a = make(tmp_path / "a", "A", model=source)
    b = make(tmp_path / "b", "B", model=a)
    return [source, a, b, make(tmp_path / "c", "C", model=b, reference=a)]


def statuses(directory: Path) -> dict[str, str]:
    return {f"{Path(f.directory).name}/{f.file}": f.status for f in verify_chain(directory) if f.status != "ok"}


def test_an_untouched_chain_is_proved_to_its_start(chain) -> None:
    findings = verify_chain(chain[3])
    assert {f.status for f in findings} == {"ok"}
    assert {Path(f.directory).name for f in findings} == {"source", "a", "b", "c"}
    assert len(findings) == len(set(findings))


def test_what_was_done_to_the_chain_is_found(chain) -> None:
    source, a, b, c = chain
    (a / "data.txt").write_text("tampered")
    (b / "data.txt").unlink()
    (b / "extra").write_text("")
    (source / "weights").write_text("other")
    assert statuses(c) == {
        "a/data.txt": "changed",
        "b/data.txt": "missing",
        "b/extra": "unrecorded",
        "source/weights": "changed",
    }


def test_a_rewritten_parent_is_found_by_its_manifest(chain) -> None:
    """Content and manifest of `a` replaced together: consistent in itself, but not what b and c read."""
    a, c = chain[1], chain[3]
    shutil.rmtree(a)
    make(a, "forged")
    assert statuses(c) == {"a/data.txt": "changed", f"a/{MANIFEST_NAME}": "changed"}
    (a / MANIFEST_NAME).unlink()
    assert statuses(c) == {"a/data.txt": "changed", f"a/{MANIFEST_NAME}": "missing"}


def test_two_readers_of_different_states_are_told_apart(tmp_path) -> None:
    a = make(tmp_path / "a", "A")
    b = make(tmp_path / "b", "B", model=a)
    shutil.rmtree(a)
    make(a, "A", run=2)  # same content, made anew
    c = make(tmp_path / "c", "C", reference=a, model=b)
    assert statuses(c) == {f"a/{MANIFEST_NAME}": "changed"}


def test_an_input_that_is_not_here_breaks_no_proof(chain) -> None:
    source, _, _, c = chain
    shutil.rmtree(source)
    found = [finding for finding in verify_chain(c) if finding.status != "ok"]
    assert [(finding.status, finding.bad) for finding in found] == [("input absent", False)]


def test_a_chain_can_be_moved_as_a_whole(chain, tmp_path_factory) -> None:
    root = chain[0].parent
    new = tmp_path_factory.mktemp("elsewhere") / "chain"
    shutil.move(root, new)
    assert {finding.status for finding in verify_chain(new / "c")} == {"ok"}


def test_what_a_manifest_records(chain) -> None:
    manifest = read_manifest(chain[2])
    assert manifest.options == {"content": "B", "run": 1}
    assert manifest.inputs[0].path == "../a"
    assert manifest.inputs[0].manifest_sha256 == file_digest(chain[1] / MANIFEST_NAME).sha256
    assert manifest.outputs["data.txt"].bytes == 1
    assert manifest.packages["torch"]
    assert manifest.machine["cores"] >= 1
    assert manifest.started <= manifest.ended


def test_secrets_are_never_recorded(tmp_path) -> None:
    token = "hf_" + "abcdefgh12345678"
    recorder = ManifestRecorder(
        "test", {"url": f"https://user:{token}@host/x", "nested": [{"t": f"token={token}"}], "path": Path(token)}
    )
    recorder.notes["log"] = f"password={token}"
    with staged_directory(tmp_path / "out") as work:
        recorder.write(work, tmp_path / "out", 1)
    text = (tmp_path / "out" / MANIFEST_NAME).read_text()
    assert token not in text
    assert "user:" not in text
    assert redact(f"a {token} b") == "a *** b"
    assert redact("an ordinary sentence, 50 % of it: fine") == "an ordinary sentence, 50 % of it: fine"


def test_broken_and_absent_manifests_are_sentences(tmp_path) -> None:
    with pytest.raises(InputError, match="was not written by qtk, or is incomplete"):
        verify_chain(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text('{"kind": 3}')
    with pytest.raises(InputError, match="cannot be read as a manifest"):
        verify_chain(tmp_path)


def test_the_canonical_digest_sees_content_and_not_form() -> None:
    assert canonical_digest({"a": 1, "b": (2, 3)}) == canonical_digest({"b": [2, 3], "a": 1})
    assert canonical_digest({"a": 1}) != canonical_digest({"a": 2})


def test_the_verify_command(run_qtk, chain) -> None:
    good = run_qtk("verify", chain[3], "--json")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["verified"] is True
    (chain[1] / "data.txt").write_text("tampered")
    bad = run_qtk("verify", chain[3])
    assert bad.returncode == 3
    assert "changed" in bad.stderr
    assert str(chain[1] / "data.txt") in bad.stderr
    assert run_qtk("verify", chain[0]).returncode == 2
