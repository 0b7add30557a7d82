"""What must not be published: access tokens, private keys, and places on this machine, found in the files themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtk.checkpoint.card import BASE_CARD_NAME
from qtk.progress import Progress

_BLOCK = 8 * 2**20
_LONGEST = 512  # bytes of which a match may need to lie in one block
_TOKEN_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
)
# Published by others already: paths in them are examples, not this machine's.
_OF_OTHERS = (BASE_CARD_NAME, "LICENSE", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class Leak:
    """A file, and what was found in it. The secret itself is not repeated."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class _Sign:
    """What gives a leak away. anchor: a text that every match contains, which is looked for first, because that is fast in
    gigabytes of weights; pattern: the whole, from `before` bytes ahead of the anchor."""

    what: str
    anchor: bytes
    pattern: re.Pattern[bytes]
    before: int = 0
    place: bool = False


def _token(what: str, anchor: str, rest: str) -> _Sign:
    return _Sign(what, anchor.encode(), re.compile(re.escape(anchor).encode() + rest.encode()))


_SIGNS = (
    _token("a token of the Hugging Face hub", "hf_", r"[A-Za-z0-9]{20,}"),
    _token("a token of ModelScope", "ms-", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    _token("a token of GitHub", "ghp_", r"[A-Za-z0-9]{30,}"),
    _token("a token of GitHub", "github_pat_", r"[A-Za-z0-9_]{30,}"),
    _token("a token of GitLab", "glpat-", r"[A-Za-z0-9_-]{20,}"),
    _token("a key of AWS", "AKIA", r"[0-9A-Z]{16}(?![0-9A-Za-z])"),
    _token("a key of an API", "sk-", r"[A-Za-z0-9_-]{40,}"),
    _token("a private key", "PRIVATE KEY-----", ""),
    _Sign("a password in a URL", b"://", re.compile(rb"[a-z]://[^\s/@:\"']{1,100}:[^\s/@\"']{3,100}@[\w.-]"), before=1),
    _Sign("a place in somebody's home", b"/home/", re.compile(rb"(?<![\w.])/home/[\w.-]+/[\w.-]"), place=True),
    _Sign("a place in somebody's home", b"/Users/", re.compile(rb"(?<![\w.])/Users/[\w.-]+/[\w.-]"), place=True),
)


def leaks(directory: Path, files: Sequence[str]) -> list[Leak]:
    """The leaks in the files of `directory`, each kind once a file. Every byte is looked at; memory is a few blocks."""
    signs = [*_SIGNS, *_own_signs(directory)]
    sizes = [(directory / name).stat().st_size for name in files]
    found: list[Leak] = []
    with Progress("look for secrets", sum(-(-size // _BLOCK) for size in sizes), "blocks of 8 MiB") as progress:
        for name in files:
            looked_for = [sign for sign in signs if not (sign.place and name.startswith(_OF_OTHERS))]
            found += _in_file(directory / name, name, looked_for, progress)
    return list(dict.fromkeys(found))


def _in_file(path: Path, name: str, signs: Sequence[_Sign], progress: Progress) -> Iterator[Leak]:
    kept = b""
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(_BLOCK):
            text = kept + block
            for sign in signs:
                if _holds(text, sign):
                    yield Leak(name, sign.what)
            kept = text[-_LONGEST:]
            progress.advance(1, name)


def _holds(text: bytes, sign: _Sign) -> bool:
    at = text.find(sign.anchor)
    while at >= 0:
        if sign.pattern.match(text, max(0, at - sign.before)):
            return True
        at = text.find(sign.anchor, at + 1)
    return False


def _own_signs(directory: Path) -> Iterator[_Sign]:
    """The tokens that this process could use, and the places that it works in."""
    secrets = {os.environ.get(name, "") for name in _TOKEN_VARIABLES} | {_stored_token()}
    for secret in secrets:
        if len(secret) >= 8:
            yield _Sign("an access token of this machine", secret.encode(), re.compile(re.escape(secret.encode())))
    places = {Path.cwd(), directory.resolve().parent}
    home = Path(os.path.expanduser("~"))
    for place in {place for place in places if len(place.parts) > 2} | ({home} if len(home.parts) > 1 else set()):
        text = os.fsencode(place)
        pattern = re.compile(rb"(?<![\w.])" + re.escape(text) + rb"/[\w.-]")
        yield _Sign("a path of this machine", text, pattern, place=True)


def _stored_token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""
