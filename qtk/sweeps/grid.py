"""A grid over a recipe's settings: `--grid quantize.group_size=32,64,128`, and the variants that are its product."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from qtk.errors import InputError, listing
from qtk.wording import counted

_MOST = 1000  # variants; more are a slip


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes in turn, each as it would stand after --set KEY=."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One point of the grid. name: of its directory. settings: (key, value) of each axis."""

    name: str
    settings: tuple[tuple[str, str], ...]

    @property
    def set_texts(self) -> tuple[str, ...]:
        """What --set would be given."""
        return tuple(f"{key}={value}" for key, value in self.settings)

    @property
    def words(self) -> str:
        """The settings in a few words: "method gptq, group_size 32"."""
        return ", ".join(f"{_last(key)} {value}" for key, value in self.settings)


def read_grid(texts: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of --grid KEY=VALUE,VALUE. Values that hold commas stand in a YAML list: KEY=["16/8,64/32", "256/128"].

    InputError, with every complaint, for what is not of that form, values or keys that occur twice, and too large a product.
    """
    axes, complaints = [], []
    for text in texts:
        try:
            axes.append(_axis(text))
        except ValueError as error:
            complaints.append(f"--grid {text}: {error}")
    keys = [axis.key for axis in axes]
    complaints += [
        f"--grid {key} is given twice: write all its values in one" for key in {k for k in keys if keys.count(k) > 1}
    ]
    if not texts:
        complaints.append("there is no --grid: say what varies, such as --grid quantize.group_size=32,64,128")
    if complaints:
        raise InputError(f"The grid cannot be read:\n{listing(complaints)}")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > _MOST:
        raise InputError(f"The grid has {counted(count, 'variant')}, more than {_MOST}. Give fewer values.")
    return tuple(axes)


def variants(axes: Sequence[Axis]) -> tuple[Variant, ...]:
    """The product, the last axis varying fastest. Each has a name of its own."""
    found: list[Variant] = []
    names: set[str] = set()
    for values in itertools.product(*(axis.values for axis in axes)):
        settings = tuple((axis.key, value) for axis, value in zip(axes, values, strict=True))
        name = wanted = _name(settings)
        number = 2
        while name in names:
            name, number = f"{wanted}-{number}", number + 1
        names.add(name)
        found.append(Variant(name, settings))
    return tuple(found)


def _axis(text: str) -> Axis:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip() or not raw.strip():
        raise ValueError("write it as KEY=VALUE,VALUE, such as quantize.method=gptq,awq")
    values = _listed(raw) if raw.lstrip().startswith("[") else [part.strip() for part in raw.split(",")]
    if not all(values):
        raise ValueError("a value is empty")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return Axis(key.strip(), tuple(values))


def _listed(raw: str) -> list[str]:
    try:
        found = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found, list):
        raise ValueError("not a list")
    return [value if isinstance(value, str) else _flow(value) for value in found]


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _name(settings: Sequence[tuple[str, str]]) -> str:
    parts = [f"{_last(key)}-{value}" for key, value in settings]
    return ".".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-") for part in parts)[:120]


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]
