"""What an endpoint is asked for. Light to import: the command line reads it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError

KEY_VARIABLE = "QTK_API_KEY"
_ONLY = "With an endpoint's address: "


class EndpointOptions(BaseModel):
    """Which model of an endpoint is asked, and how patiently. The key is never an option: it comes from QTK_API_KEY."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description=f"{_ONLY}the model's name there. Default: the only one that is served.")
    patience: float = Field(120.0, gt=0, description=f"{_ONLY}seconds without a byte after which a request has failed.")


class LoadOptions(BaseModel):
    """The load that an endpoint is put under, and what prompts of exact length are made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str | None = Field(
        None,
        description=f"{_ONLY}directory or hub id of a model with its tokenizer, to make prompts of exact length. "
        "Default: the model's name, where it is one of these.",
    )
    concurrency: str | None = Field(
        None,
        description=f"{_ONLY}clients at once, such as 1,2,4,8: each sends its next request when it has its answer.",
    )
    rate: str | None = Field(
        None, description=f"{_ONLY}requests a second, such as 0.5,1,2, which arrive at random times (Poisson)."
    )
    max_ttft: float | None = Field(
        None, gt=0, description=f"{_ONLY}goodput counts requests whose first token came within this, in milliseconds."
    )
    max_inter_token: float | None = Field(
        None,
        gt=0,
        description=f"{_ONLY}goodput counts requests whose tokens came this fast on average after the first, in milliseconds.",
    )

    def clients(self) -> list[int]:
        """The numbers of --concurrency. InputError for what is not one of at least 1."""
        return [int(number) for number in _numbers("--concurrency", self.concurrency, whole=True)]

    def rates(self) -> list[float]:
        """The numbers of --rate, per second. InputError for what is not one above 0."""
        return _numbers("--rate", self.rate, whole=False)


def is_address(text: str) -> bool:
    """Whether a text is the address of an endpoint."""
    return text.startswith(("http://", "https://"))


def _numbers(option: str, text: str | None, *, whole: bool) -> list[float]:
    found, unreadable = [], []
    for entry in filter(None, (part.strip() for part in (text or "").split(","))):
        try:
            number = float(int(entry)) if whole else float(entry)
        except ValueError:
            number = 0.0
        if 0 < number < float("inf"):
            found.append(number)
        else:
            unreadable.append(repr(entry))
    if unreadable:
        what = "whole numbers" if whole else "numbers"
        raise InputError(f"{option} takes {what} above 0, separated by commas, not {', '.join(unreadable)}.")
    return found
