"""Signed bundles, with the real ssh-keygen: what verifies, what fails, and that the key stays where it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qtk.checkpoint.sums import read_sums, sums_text

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs ssh-keygen: apt-get install openssh-client"
)


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        make_key(folder / name)
    return folder


@pytest.fixture(scope="module")
def signed_once(keys: Path, released_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.commands import run_in_process

    place = tmp_path_factory.mktemp("signed") / "tiny"
    done = run_in_process(["bundle", str(released_run), "-o", str(place), "--sign", str(keys / "own")])
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed_once, tmp_path / "signed")


def test_the_right_key_verifies_and_no_key_is_carried(signed: Path, keys: Path, run_qtk) -> None:
    answer = run_qtk("verify", signed, "--key", keys / "own.pub")
    assert answer.returncode == 0, answer.stderr
    assert "signature verified" in answer.stdout
    secret = (keys / "own").read_bytes().splitlines()[1]
    assert not [path for path in signed.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_another_key_does_not(signed: Path, keys: Path, run_qtk) -> None:
    answer = run_qtk("verify", signed, "--key", keys / "other.pub")
    assert answer.returncode == 3
    assert "another key made it, or the list was changed" in answer.stderr


def test_a_changed_file_and_a_changed_list_fail(signed: Path, keys: Path, run_qtk) -> None:
    (signed / "README.md").write_text("# Better\n")
    assert run_qtk("verify", signed, "--key", keys / "own.pub").returncode == 3
    other = subprocess.run(["sha256sum", signed / "README.md"], capture_output=True, text=True).stdout.split()[0]
    (signed / "SHA256SUMS").write_text(sums_text({**read_sums(signed), "README.md": other}))
    answer = run_qtk("verify", signed, "--key", keys / "own.pub", "--json")
    assert answer.returncode == 3
    assert "does not verify" in json.loads(answer.stdout)["error"]


def test_without_a_signature_a_key_is_not_content(signed: Path, keys: Path, released_run: Path, run_qtk) -> None:
    (signed / "SHA256SUMS.sig").unlink()
    assert "is not signed" in run_qtk("verify", signed, "--key", keys / "own.pub").stderr
    answer = run_qtk("verify", released_run, "--key", keys / "own.pub")
    assert (answer.returncode, "only bundles are signed" in answer.stderr) == (3, True)


def test_a_private_key_is_not_taken_to_verify(signed: Path, keys: Path, run_qtk) -> None:
    answer = run_qtk("verify", signed, "--key", keys / "own")
    assert answer.returncode == 2
    assert "is a private key" in answer.stderr
    assert run_qtk("verify", signed, "--key", signed / "README.md").returncode == 2


def test_a_locked_key_is_not_asked_for_its_passphrase(released_run: Path, run_qtk, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", "secret words")
    answer = run_qtk("bundle", released_run, "-o", tmp_path / "b", "--sign", key, env={"SSH_ASKPASS_REQUIRE": "never"})
    assert answer.returncode == 2
    assert "ssh-add" in answer.stderr
    assert not (tmp_path / "b").exists()


def test_without_openssh_the_package_is_named(released_run: Path, keys: Path, run_qtk, tmp_path: Path) -> None:
    answer = run_qtk("bundle", released_run, "-o", tmp_path / "b", "--sign", keys / "own", env={"PATH": str(tmp_path)})
    assert answer.returncode == 4
    assert "apt-get install openssh-client" in answer.stderr
