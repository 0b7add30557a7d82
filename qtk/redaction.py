"""Secrets in texts: what looks like an access token or a password is never printed, and never written to a file."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}"  # tokens by the beginnings that their makers give them
    r"|\b(?:gh[opsu]_|glpat-|xox[abp]-|sk-|pypi-|ms-)[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=://)[^/@\s]+(?=@)"  # user:password, or a token, in a URL
    r"|(?<=\w:/)[^/@\s]+:[^/@\s]+(?=@)"  # the same in what took the URL for a path
    r"|(?<=[Bb]earer )[^\s\"',]+"
    r"|(?<=token=)[^&\s\"']+|(?<=password=)[^&\s\"']+|(?<=passwd=)[^&\s\"']+|(?<=secret=)[^&\s\"']+|(?<=api_key=)[^&\s\"']+"
)


def redact(text: str) -> str:
    """The text with access tokens, and what stands before @ in URLs, replaced by ***."""
    return _SECRET.sub("***", text)
