"""Answers to requests that cannot be served: an HTTP status and OpenAI's error object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError


class RefusedRequest(Exception):
    """A request that is answered with an error. param: the field that is wrong; code: a word that programs look for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object as OpenAI writes it."""
        return error_object(self.status, str(self), param=self.param, code=self.code)


def error_object(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object for a status."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def wrong_fields(error: ValidationError) -> RefusedRequest:
    """The refusal of a body whose fields are wrong: every complaint, and the first field as `param`."""
    complaints = []
    for found in error.errors():
        # The names of a union's members stand in the path too; fields and indices are what a client knows.
        place = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or str(part).islower())
        message = "this field is not known" if found["type"] == "extra_forbidden" else found["msg"]
        complaints.append(f"{place}: {message.removeprefix('Value error, ')}" if place else message)
    first = error.errors()[0]["loc"]
    return RefusedRequest(400, "; ".join(dict.fromkeys(complaints)), param=str(first[0]) if first else None)
