"""The names that options take, from the registries: for `qtk list`, and for the completion of words in a shell.

Each kind of name is imported when it is asked for, and none of them loads torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from qtk.release.gates import Metric

_FILES = CompletionItem("", type="file")


@dataclass(frozen=True)
class KnownName:
    """A name that an option takes, what it stands for, and the parts that may be chosen of it (NAME:PART,PART)."""

    name: str
    meaning: str
    parts: tuple[str, ...] = ()


def suites() -> list[KnownName]:
    """The suites that ship, with their languages or sets. Read as plain YAML: making suites of it takes as long as a shell
    may take to complete a word."""
    from qtk.shipped import load_yaml, shipped_directory, shipped_names

    loaded = {
        name: load_yaml(shipped_directory("bench/suites") / f"{name}.yaml") for name in shipped_names("bench/suites")
    }

    def parts(text: str) -> tuple[str, ...]:
        name, _, chosen = text.partition(":")
        suite = loaded[name]
        own = (*suite.get("languages", ()), *suite.get("sets", ()))
        members = (part for member in suite.get("members", ()) for part in parts(member))
        return tuple(chosen.split(",")) if chosen else (*own, *members)

    return [KnownName(name, str(suite["summary"]), parts(name)) for name, suite in loaded.items()]


def containers() -> list[KnownName]:
    """The containers that `qtk quantize` writes, with the runtimes that read each."""
    from qtk.quantization.formats.registry import FORMATS
    from qtk.targets.runtimes import RUNTIMES

    def readers(container: str) -> str:
        names = [record.name for record in RUNTIMES.values() if container in record.containers]
        return f"read by {', '.join(names)}"

    return [KnownName(name, readers(name)) for name in FORMATS]


def backends() -> list[KnownName]:
    """The runtimes that `qtk build-engine` builds engines for."""
    from qtk.targets.runtimes import RUNTIMES, Runtime

    def meaning(record: Runtime) -> str:
        place = "" if record.min_sm is None else f", GPUs from SM{record.min_sm}"
        last = f" to SM{record.max_sm}" if record.max_sm else ""
        but = f" without SM{' and SM'.join(map(str, record.unknown_sms))}" if record.unknown_sms else ""
        return f"{record.title}{place}{last}{but}"

    return [KnownName(record.name, meaning(record)) for record in RUNTIMES.values() if record.engine]


def runtimes() -> list[KnownName]:
    """Every runtime that `qtk quantize` can write for."""
    from qtk.targets.runtimes import RUNTIMES

    return [KnownName(record.name, record.title) for record in RUNTIMES.values()]


def recipes() -> list[KnownName]:
    """The recipes that ship."""
    from qtk.shipped import load_yaml, shipped_directory, shipped_names

    directory = shipped_directory("recipes")
    return [
        KnownName(name, str(load_yaml(directory / f"{name}.yaml").get("description", "")))
        for name in shipped_names("recipes")
    ]


def architectures() -> list[KnownName]:
    """The architectures of models that qtk reads."""
    from qtk.models.registry import ARCHITECTURES

    def meaning(spec: Callable[..., Any]) -> str:
        lines = (sys.modules[spec.__module__].__doc__ or "").splitlines()
        return lines[0] if lines else ""

    return [KnownName(name, meaning(spec)) for name, spec in ARCHITECTURES.items()]


def gpus() -> list[KnownName]:
    """The GPUs that have a profile, and the processor."""
    from qtk.targets.gpu import gpu_profiles

    return [KnownName(profile.name, profile.title) for profile in gpu_profiles()]


def gates() -> list[KnownName]:
    """The metrics of gates, with the limits and selectors of each."""
    from qtk.release.gates import METRICS

    def meaning(metric: Metric) -> str:
        return f"{metric.about}, {metric.unit}" if metric.unit else metric.about

    return [KnownName(name, meaning(it), (*it.limits, *it.selectors)) for name, it in METRICS.items()]


def _calibration() -> list[KnownName]:
    from qtk.calibration.sources import STANDARD_LIBRARY

    return [KnownName(STANDARD_LIBRARY, "modules of Python's standard library")]


def _held_out() -> list[KnownName]:
    from qtk.bench.options import CODE, ENGLISH

    return [KnownName(CODE, "modules that calibration never reads"), KnownName(ENGLISH, "Python's documentation")]


def _group_sizes() -> list[KnownName]:
    return [KnownName("auto", "the largest that fits"), *(KnownName(size, "") for size in ("32", "64", "128"))]


def _baselines() -> list[KnownName]:
    from qtk.shipped import shipped_names

    return [KnownName(name, "published figures") for name in shipped_names("bench/baselines")]


def _settings() -> list[KnownName]:
    """What --set can set, with its equals sign."""
    from qtk.recipes.schema import Recipe
    from qtk.recipes.settings import keys

    return [KnownName(f"{key}=", field.description or "") for key, field in keys(Recipe)]


LISTED: dict[str, Callable[[], list[KnownName]]] = {
    "suites": suites,
    "containers": containers,
    "backends": backends,
    "recipes": recipes,
    "architectures": architectures,
    "gpus": gpus,
    "gates": gates,
}
_COMPLETED: dict[str, Callable[[], list[KnownName]]] = {
    **LISTED,
    "runtimes": runtimes,
    "calibration": _calibration,
    "held-out": _held_out,
    "group-sizes": _group_sizes,
    "settings": _settings,
    "baselines": _baselines,
}
# The kinds for which a file may be given in place of a name.
_OR_A_FILE = ("suites", "recipes", "gpus", "calibration", "held-out")

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(kind: str, *, also: tuple[str, ...] = ()) -> Completer:
    """What completes the value of an option or argument that takes names of this kind, `also` these words.

    kind: one of LISTED, or runtimes, calibration, held-out, group-sizes, settings, baselines.
    """
    names = _COMPLETED[kind]

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        known = [*(KnownName(word, "") for word in also), *names()]
        items = [CompletionItem(it.name, help=it.meaning) for it in known if it.name.startswith(incomplete)]
        items += [CompletionItem(text) for it in known for text in _with_parts(it, incomplete)]
        return [*items, _FILES] if kind in _OR_A_FILE else items

    return complete


def _with_parts(known: KnownName, incomplete: str) -> list[str]:
    """NAME:PART,PART in every way to go on from what is typed."""
    name, _, chosen = incomplete.partition(":")
    if name != known.name or not known.parts:
        return []
    *before, last = chosen.split(",")
    rest = (part for part in known.parts if part.startswith(last) and part not in before)
    return [f"{name}:{','.join([*before, part])}" for part in rest]


def names_of(kind: str) -> list[str]:
    """The names of a kind, as of `completer`."""
    return [it.name for it in _COMPLETED[kind]()]


def complete_setting(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What completes --set: the key, and behind the equals sign what the field takes."""
    from qtk.recipes.schema import Recipe
    from qtk.recipes.settings import keys, words

    key, equals, begun = incomplete.partition("=")
    if not equals:
        return [it for it in completer("settings")(context, parameter, incomplete) if it.value]
    field = dict(keys(Recipe)).get(key)
    if field is None:
        return []
    more = field.json_schema_extra
    kind = more.get("names") if isinstance(more, dict) else None
    also = more.get("also", ()) if isinstance(more, dict) else ()
    known = [*words(field.annotation), *(names_of(str(kind)) if kind else ())]
    known += [str(word) for word in also] if isinstance(also, list) else []
    return [CompletionItem(f"{key}={word}") for word in dict.fromkeys(known) if word.startswith(begun)]


def field_completer(more: Any) -> Completer | None:
    """The completer that a field's json_schema_extra asks for: {"names": KIND, "also": [WORD, ...]}."""
    kind = more.get("names") if isinstance(more, dict) else None
    return completer(kind, also=tuple(more.get("also", ()))) if isinstance(kind, str) else None
