"""Signatures of a bundle's list of sums, by `ssh-keygen -Y`.

OpenSSH's own format (sshsig, PROTOCOL.sshsig in OpenSSH): the program is on nearly every machine, the keys are those that people
have already for git and servers, on files, in an agent or on a hardware key, and no package is added. minisign would need
both another program and another key.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from qtk.checkpoint.manifest import SIGNATURE_NAME, SUMS_NAME
from qtk.errors import GateFailed, InputError, MachineError

_NAMESPACE = "qtk-bundle"  # a signature made for something else does not count
_SIGNER = "publisher"


def require_signer(key: Path) -> None:
    """Raises what is missing to sign with `key`: MachineError without ssh-keygen, InputError without the key."""
    _keygen()
    if not key.is_file():
        raise InputError(f"{key}: no such key. `ssh-keygen -t ed25519 -f {key}` makes one.")


def sign_sums(directory: Path, key: Path) -> None:
    """Writes SHA256SUMS.sig. key: a private key, or the public half of one that ssh-agent holds; it stays where it is. InputError
    where it cannot be used."""
    (directory / SIGNATURE_NAME).unlink(missing_ok=True)  # ssh-keygen would ask before it replaces one
    answer = _run("sign", "-f", str(key), "-n", _NAMESPACE, str(directory / SUMS_NAME))
    if answer.returncode != 0 or not (directory / SIGNATURE_NAME).is_file():
        raise InputError(
            f"{key} cannot sign: {_reason(answer)} A key with a passphrase has to be in the agent (`ssh-add {key}`): "
            f"give its public half then, --sign {key}.pub."
        )


def require_signature(directory: Path, key: Path) -> None:
    """GateFailed unless SHA256SUMS.sig is a signature of SHA256SUMS by the owner of the public key in the file `key`."""
    public = _public_key(key)
    if not (directory / SIGNATURE_NAME).is_file():
        raise GateFailed(f"{directory} is not signed: it has no {SIGNATURE_NAME}.")
    with tempfile.TemporaryDirectory(prefix="qtk-signers-") as folder:
        signers = Path(folder, "allowed-signers")
        signers.write_text(f"{_SIGNER} {public}\n", encoding="utf-8")
        words = ("-f", str(signers), "-I", _SIGNER, "-n", _NAMESPACE, "-s", str(directory / SIGNATURE_NAME))
        answer = _run("verify", *words, content=(directory / SUMS_NAME).read_bytes())
    if answer.returncode != 0:
        raise GateFailed(
            f"The signature of {directory / SUMS_NAME} does not verify with {key}: another key made it, or the list was changed "
            f"after it was signed. {_reason(answer)}"
        )


def _public_key(path: Path) -> str:
    """The line of a public key. InputError for anything else, a private key above all."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} cannot be read as a public key of OpenSSH.") from None
    if "PRIVATE KEY" in text:
        raise InputError(
            f"{path} is a private key, which nobody but its owner needs: give the public half, {path}.pub."
        )
    words = text.split()
    if "\n" in text or len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        raise InputError(f"{path} is not a public key of OpenSSH: one line that begins with ssh-ed25519 or its like.")
    return " ".join(words[:2])


def _keygen() -> str:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MachineError("Signatures need ssh-keygen of OpenSSH 8.1 or later: apt-get install openssh-client.")
    return program


def _run(action: str, *words: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """ssh-keygen in a session of its own, so that it cannot ask anything at the terminal."""
    command = [_keygen(), "-Y", action, *words]
    try:
        return subprocess.run(command, input=content, capture_output=True, start_new_session=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise MachineError(f"ssh-keygen -Y {action} did not end within two minutes.") from None


def _reason(answer: subprocess.CompletedProcess[bytes]) -> str:
    lines = (answer.stderr or answer.stdout).decode(errors="replace").strip().splitlines()
    return f"ssh-keygen says: {lines[-1].strip().rstrip('.')}." if lines else "ssh-keygen gives no reason."
