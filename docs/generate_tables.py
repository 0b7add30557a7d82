"""Fills the tables of the pages that follow from the code or from other pages: between <!-- table: NAME --> and <!-- end -->.

python docs/generate_tables.py            writes them
python docs/generate_tables.py --check    exit code 1 when one of them is out of date
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from qtk.engines.options import PlanOptions
from qtk.engines.plan import EnginePlan, plan_engine
from qtk.recipes.schema import RecipeText
from qtk.targets.gpu import gpu_profiles
from qtk.targets.runtimes import RUNTIMES, Runtime

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
REGION = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?:(?!<!-- table).)*?(<!-- end -->)", flags=re.S)
CONTAINERS = ("gptq", "awq", "compressed-tensors", "modelopt", "gguf")

# Shapes of decoders that many models share: what a plan needs of config.json.
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "7B": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32016,
        "max_position_embeddings": 16384,
    },
    "33B": {
        **_LLAMA,
        "hidden_size": 7168,
        "intermediate_size": 19200,
        "num_hidden_layers": 62,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
        "vocab_size": 32256,
        "max_position_embeddings": 16384,
    },
}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """A table in Markdown; right: the columns that hold numbers."""
    marks = ["---:" if number in right else "---" for number in range(len(columns))]
    lines = [columns, marks, *([str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows)]
    return "\n".join(f"|{'|'.join(line)}|" if line is marks else f"| {' | '.join(line)} |" for line in lines)


def benchmark(heading: str, first_column: str) -> dict[str, dict[str, str]]:
    """The first table below a heading of benchmarks.md: row -> column -> figure. KeyError where it is not there."""
    section = BENCHMARKS.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = re.search(rf"^\| ?{re.escape(first_column)} ?\|.*?(?:\n\|.*)+", section, flags=re.M)
    if table is None:
        raise KeyError(f"benchmarks.md has no table below {heading!r} whose first column is {first_column!r}")
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.group().splitlines())
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def quantizers() -> dict[str, dict[str, str]]:
    return benchmark("Quantizing, beside its peers", "quantizer")


def figures() -> str:
    """What the README shows first: four figures, each with its peer and its machine."""
    rows = quantizers()
    ours, theirs = rows["qtk, effort default"], rows["GPTQModel 7.7, GPTQ"]
    merging = benchmark("Merging, beside peft", "")
    speed = benchmark("The demo, from end to end", "input/output")["INT4 / float"]
    shapes = [f"{ratio} ({shape})" for shape, ratio in speed.items() if shape != "input/output"]
    share = float(ours["s"]) / float(theirs["s"])
    return markdown(
        ("measured", "qtk", "peer"),
        [
            (
                "distance of the INT4 model from the float one: KL, nats per token",
                ours["KL, all"],
                f"{theirs['KL, all']} (GPTQModel 7.7)",
            ),
            ("time to quantize", f"{ours['s']} s ({share:.0%} of the peer's)", f"{theirs['s']} s (GPTQModel 7.7)"),
            (
                "memory to merge an adapter, above the idle start",
                f"{merging['qtk merge']['above the idle import, MB']} MB",
                f"{merging['peft merge_and_unload + save']['above the idle import, MB']} MB (peft)",
            ),
            ("speed of the INT4 engine on the CPU, input/output tokens", ", ".join(shapes), "1 (the float engine)"),
        ],
    )


def efforts() -> str:
    """What each way to quantize costs and gives, from the comparison with the peers."""
    rows = quantizers()
    named = {
        "`--method rtn`": "qtk rtn",
        "`--effort fast`": "qtk, effort fast",
        "`--effort default`": "qtk, effort default",
        "`--effort best`": "qtk, effort best",
        "`--method awq`": "qtk awq",
        "`--method auto`": "qtk auto (takes gptq)",
        "GPTQModel 7.7": "GPTQModel 7.7, GPTQ",
        "llm-compressor 0.14": "llm-compressor 0.14, GPTQ",
        "AutoRound 0.16": "AutoRound 0.16, 50 iterations",
    }
    columns = ("s", "peak GB", "KL, all", "top-1, code")
    return markdown(
        ("", "seconds", "peak GB", "KL, nats per token", "same top-1, code"),
        [(label, *(rows[name][column] for column in columns)) for label, name in named.items()],
        right=(1, 2, 3, 4),
    )


def plans(options: PlanOptions) -> dict[str, EnginePlan]:
    """The plan of each of SHAPES, from its config.json alone."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name, config in SHAPES.items():
            directory = Path(folder) / name
            directory.mkdir()
            (directory / "config.json").write_text(json.dumps(config))
            made[name] = plan_engine(directory, options)
    return made


def gpus() -> str:
    """Which GPU holds a 7B and a 33B at INT4, and the bound on their speed there."""
    rows = []
    for gpu in gpu_profiles():
        if gpu.is_cpu:
            continue
        options = PlanOptions(gpu=gpu.name, backend=gpu.backends[0], bits=4, group_size=128) if gpu.backends else None
        cells = []
        for plan in plans(options).values() if options else ():
            bound = plan.memory.decode_bound_tokens_per_s
            speed = "fits" if bound is None else f"at most {bound:.0f} tokens/s"
            cells.append(speed if plan.memory.fits else "does not fit")
        cells = cells or ["no backend"] * len(SHAPES)
        rows.append((f"`{gpu.name}`", gpu.title, f"{gpu.memory_gib:g}", ", ".join(gpu.backends) or "none", *cells))
    columns = ("`--gpu`", "", "GiB", "backends, the usual one first", *(f"{name}, INT4" for name in SHAPES))
    return markdown(columns, rows, right=(2,))


def costs() -> str:
    """Disk and device memory by size, from the plan for an A10."""
    four = plans(PlanOptions(gpu="a10", bits=4, group_size=128))
    sixteen = plans(PlanOptions(gpu="a10", bits=16))
    rows = []
    for name in SHAPES:
        weights = [plan.memory.parts[0].bytes / 1e9 for plan in (sixteen[name], four[name])]
        needed = four[name].memory.needed_bytes / 2**30
        rows.append((name, f"{weights[0]:.1f} GB", f"{weights[1]:.1f} GB", f"{needed:.1f} GiB"))
    columns = ("model", "float weights on disk", "INT4 weights on disk", "GPU memory, 1,024 + 512 tokens")
    return markdown(columns, rows, right=(1, 2, 3))


def containers() -> str:
    """Which runtime reads which container."""
    titles = [record.title for record in RUNTIMES.values()]
    rows = [
        (f"`{container}`", *(_reads(record, container) for record in RUNTIMES.values())) for container in CONTAINERS
    ]
    return markdown(("`--container`", *titles), rows)


def _reads(record: Runtime, container: str) -> str:
    if not record.reads(container, symmetric=True):
        return ""
    return "symmetric" if container in record.symmetric_containers else "yes"


def runtimes() -> str:
    """What each runtime takes of a quantized model."""
    rows = []
    for record in RUNTIMES.values():
        last = f" to SM{record.max_sm}" if record.max_sm else ""
        place = "processors" if record.min_sm is None else f"from SM{record.min_sm}{last}"
        if record.unknown_sms:
            place += f", without {', '.join(f'SM{sm}' for sm in record.unknown_sms)}"
        symmetry = "symmetric and asymmetric" if record.asymmetric else "symmetric"
        rows.append(
            (
                f"`{record.name}`",
                record.title,
                ", ".join(map(str, record.bits)),
                ", ".join(map(str, record.group_sizes)),
                symmetry,
                "yes" if record.signed_scales else "no",
                f"`{record.containers[0]}`",
                place,
            )
        )
    columns = ("`--backend`", "", "bits", "groups", "codes", "negative scales", "`--container auto`", "runs on")
    return markdown(columns, rows)


def evidence() -> str:
    """What of each runtime's record was run."""
    return markdown(("runtime", "known from"), [(record.title, record.evidence) for record in RUNTIMES.values()])


def recipe_fields() -> str:
    """Every field of a recipe, section by section."""
    return "\n\n".join(_sections(RecipeText, ""))


def _sections(model: type[BaseModel], path: str, annotation: Any = None) -> list[str]:
    inner = {name: found for name, field in model.model_fields.items() if (found := _model_of(field.annotation))}
    rows = [
        (f"`{name}`", _kind(field.annotation), _default(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in inner
    ]
    parts = []
    if rows:
        heading = f"## `{path}`\n\n" if path else "## The recipe itself\n\n"
        if get_origin(annotation) is tuple:
            heading += "A list; each entry has these fields.\n\n"
        parts.append(heading + markdown(("field", "value", "default", ""), rows))
    for name, found in inner.items():
        parts += _sections(found, f"{path}.{name}" if path else name, model.model_fields[name].annotation)
    return parts


def _model_of(annotation: Any) -> type[BaseModel] | None:
    several = get_origin(annotation) in (Union, types.UnionType, tuple)  # of a tuple, what its members are
    candidates = get_args(annotation) if several else (annotation,)
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(kind) for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is tuple:
        return f"list: {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    return _KINDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default in (None, "", (), {}):
        return "-"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


TABLES: dict[str, Callable[[], str]] = {
    "figures": figures,
    "efforts": efforts,
    "gpus": gpus,
    "costs": costs,
    "containers": containers,
    "runtimes": runtimes,
    "evidence": evidence,
    "recipe-fields": recipe_fields,
}


def filled(text: str) -> str:
    """A page with its tables as they are now. KeyError for a name that is not in TABLES."""
    return REGION.sub(lambda found: f"{found[1]}\n{TABLES[found['name']]()}\n\n{found[3]}", text)


def pages() -> list[Path]:
    """The pages that have such tables."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in every if REGION.search(page.read_text(encoding="utf-8"))]


def main(words: list[str]) -> int:
    stale = {page: new for page in pages() if (new := filled(old := page.read_text(encoding="utf-8"))) != old}
    if "--check" in words:
        for page in stale:
            print(f"{page.relative_to(ROOT)} is out of date: make docs", file=sys.stderr)
        return 1 if stale else 0
    for page, text in stale.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
