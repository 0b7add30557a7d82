"""Secrets in texts: what looks like an access token or a password is never printed, and never written to a file."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}"  # tokens by the beginnings that their makers give them
    r"|\b(?:gh[opsu]_|glpat-|xox[abp]-|sk-|pypi-|ms-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^/@\s]+(?=@)"  # user:password, or a token, in a URL
    r"|(?<=\w:/)[^/@\s]+:[^/@\s]+(?=@)"  # the same in what took the URL for a path
    r"|(?<=[Bb]earer )[^\s\"',]+"
    r"|(?<=token=)[^&\s\"']+|(?<=password=)[^&\s\"']+|(?<=passwd=)[^&\s\"']+|(?<=secret=)[^&\s\"']+|(?<=api_key=)[^&\s\"']+"
)


_SECRET_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)$", re.IGNORECASE)
_PROXY_VARIABLE = re.compile(r"_PROXY$", re.IGNORECASE)
_SHORTEST = 8  # characters of a value that is looked for: shorter ones are words


def redact(text: str) -> str:
    """The text with access tokens, what stands before @ in URLs, and the secrets of this process' environment, replaced by ***."""
    own = _pattern_of(tuple(sorted(_own_secrets(), key=len, reverse=True)))
    return _SECRET.sub("***", own.sub("***", text) if own else text)


def copy_redacted(source: Path, target: Path) -> None:
    """Copies a text without its secrets. A file that has none stays as it is, byte for byte."""
    text = source.read_bytes().decode("utf-8", "surrogateescape")
    target.write_bytes(redact(text).encode("utf-8", "surrogateescape"))


def _own_secrets() -> Iterator[str]:
    """The values of variables that name a secret, and the passwords of proxies."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.search(name):
            yield value
        elif _PROXY_VARIABLE.search(name) and (password := _password(value)):
            yield from {word for word in (password, unquote(password)) if len(word) >= _SHORTEST}


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


@functools.lru_cache(maxsize=8)
def _pattern_of(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, secrets))) if secrets else None
