"""What happens to each tensor of the base, decided and checked before anything is read or written.

All disagreements between base and adapters are collected and raised as one error: shapes, tensors left over, modules
without tensors, and what cannot be added up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from qtk.adapters.adapter import Adapter, ModuleParts
from qtk.adapters.arithmetic import scaling
from qtk.adapters.layout import BaseLayout
from qtk.adapters.targets import targeted_modules
from qtk.checkpoint.reader import Checkpoint
from qtk.checkpoint.safetensors_file import SafetensorsFile
from qtk.checkpoint.writer import TensorSpec
from qtk.errors import InputError, listing

_MOST_NAMED = 500  # every tensor that is left over must be named
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LowRank:
    """One adapter's update of one weight: scale * B A, or its transpose. `magnitude`: key of DoRA's vector or ""."""

    adapter: Adapter
    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str = ""


@dataclass(frozen=True)
class EmbeddingRows:
    """Rows of an embedding or head that an adapter holds whole."""

    adapter: Adapter
    key: str
    indices: tuple[int, ...]


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor: rows of `source` in `file`, rounded to NF4 if `nf4`, then changed, then cast to `spec.dtype`."""

    name: str
    spec: TensorSpec
    file: SafetensorsFile
    source: str
    low_rank: tuple[LowRank, ...] = ()
    tokens: tuple[EmbeddingRows, ...] = ()
    nf4: bool = False
    replaced_by: Adapter | None = None

    @property
    def changed(self) -> bool:
        return bool(self.low_rank or self.tokens or self.nf4 or self.replaced_by)


@dataclass
class MergePlan:
    """The output tensors in order; whether embedding and head end untied; the vocabulary's size if it changes."""

    tensors: list[TensorPlan]
    untied: bool = False
    vocabulary: int | None = None


@dataclass
class _Planner:
    base: Checkpoint
    layout: BaseLayout
    adapters: Sequence[Adapter]
    weights: Sequence[float]
    nf4: bool
    misfits: list[str] = field(default_factory=list)
    used: set[tuple[int, str]] = field(default_factory=set)


def make_plan(
    base: Checkpoint, layout: BaseLayout, adapters: Sequence[Adapter], weights: Sequence[float], *, nf4: bool
) -> MergePlan:
    """The plan of a merge. InputError listing everything in which base and adapters disagree."""
    _require_sum(adapters, weights)
    planner = _Planner(base, layout, adapters, weights, nf4)
    head = f"{layout.lm_head}.weight"
    names = base.names + ([head] if head not in base else [])
    plans = {name: _plan_tensor(planner, name) for name in names}
    _require_all_used(planner)
    _require_all_there(planner)
    untied = layout.tied and not _tie(planner, plans)
    if layout.tied and not untied and head not in base:
        del plans[head]
    vocabulary = _vocabulary(planner, plans)
    if planner.misfits:
        raise InputError(f"The adapter does not fit {base.path}:\n{listing(planner.misfits, _MOST_NAMED)}")
    return MergePlan(list(plans.values()), untied, vocabulary)


def _require_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    """Refuses what is not a sum of updates: several adapters with DoRA among them, weights for what cannot be weighed."""
    dora = [str(a.path) for a in adapters if a.config.use_dora]
    if dora and len(adapters) > 1:
        raise InputError(
            f"DoRA rescales the whole weight, so it cannot be added to another adapter. Merge it alone:\n{listing(dora)}"
        )
    misfits = []
    for adapter, weight in zip(adapters, weights, strict=True):
        if weight == 1:
            continue
        if adapter.config.use_dora:
            misfits.append(f"{adapter.path}: weight {weight:g}, but a DoRA update cannot be weighed")
        whole = [*adapter.replaced.values(), *(p.tokens for p in adapter.parts.values() if p.tokens)]
        if whole:
            misfits.append(
                f"{adapter.path}: weight {weight:g}, but it replaces {len(whole)} tensors whole, {whole[0]} first"
            )
    if misfits:
        raise InputError(f"These weights cannot be applied:\n{listing(misfits)}")


def _plan_tensor(planner: _Planner, name: str) -> TensorPlan:
    """The plan of one base tensor by itself; a tied head starts from the embedding's rows."""
    base, layout = planner.base, planner.layout
    module = name.removesuffix(".weight")
    stored = name if name in base else f"{layout.embedding}.weight"
    info = base.info(stored)
    plan = TensorPlan(name, TensorSpec(info.dtype, info.shape), base.file(stored), stored)
    plan = _replaced(planner, plan, module, stored)
    if name.endswith(".weight"):
        plan = _updated(planner, plan, module)
        if planner.nf4 and module in layout.linears and plan.replaced_by is None:
            plan = replace(plan, nf4=True)
    if plan.changed and info.dtype not in _FLOATS:
        planner.misfits.append(
            f"{name} is stored as {info.dtype}: only float32, float16 and bfloat16 can be merged into"
        )
    return plan


def _replaced(planner: _Planner, plan: TensorPlan, module: str, stored: str) -> TensorPlan:
    """The plan with the tensor that an adapter brings in place of the base's: saved modules, biases, a resized base."""
    layout, found = planner.layout, []
    resizable = module in (layout.embedding, layout.lm_head)
    for number, adapter in enumerate(planner.adapters):
        key = adapter.replaced.get(plan.name)
        if key is None and resizable:
            # Of a tied head of which nothing is saved, the embedding's copy is what its update was trained on.
            key = adapter.base_copy.get(plan.name, adapter.base_copy.get(stored))
            if key is not None and _same_source(replace(plan, file=adapter.file, source=key), plan):
                planner.used.add((number, key))
                continue
        if key is not None:
            planner.used.add((number, key))
            found.append((adapter, key))
    if len(found) > 1:
        planner.misfits.append(
            f"{plan.name} is replaced by several adapters: {', '.join(str(a.path) for a, _ in found)}"
        )
    if not found:
        return plan
    adapter, key = found[0]
    shape = adapter.info(key).shape
    expected = plan.spec.shape
    if shape != expected and not (resizable and len(shape) == 2 and shape[1:] == expected[1:]):
        planner.misfits.append(f"{key}: shape {list(shape)}, the base has {plan.name} with {list(expected)}")
        return plan
    return replace(plan, spec=TensorSpec(plan.spec.dtype, shape), file=adapter.file, source=key, replaced_by=adapter)


def _updated(planner: _Planner, plan: TensorPlan, module: str) -> TensorPlan:
    """The plan with every adapter's low-rank update and token rows of this module."""
    updates: list[LowRank] = []
    tokens: list[EmbeddingRows] = []
    for number, (adapter, weight) in enumerate(zip(planner.adapters, planner.weights, strict=True)):
        parts = adapter.parts.get(module)
        if parts is None:
            continue
        planner.used |= {(number, key) for key in (parts.a, parts.b, parts.magnitude, parts.tokens) if key}
        if parts.tokens:
            rows = _embedding_rows(planner, adapter, module, parts)
            plan, tokens = _with_tokens(planner, plan, rows), [*tokens, rows]
        if parts.a or parts.b or parts.magnitude:
            update = _low_rank(planner, plan, adapter, module, parts, weight)
            updates += [update] if update else []
    if tokens and updates:
        planner.misfits.append(f"{module}: token rows and a low-rank update cannot be merged into one tensor")
    changing = [update.adapter for update in updates] + [rows.adapter for rows in tokens]
    if plan.replaced_by and any(adapter is not plan.replaced_by for adapter in changing):
        planner.misfits.append(f"{module}: one adapter replaces it and another changes it")
    return replace(plan, low_rank=tuple(updates), tokens=tuple(tokens))


def _low_rank(
    planner: _Planner, plan: TensorPlan, adapter: Adapter, module: str, parts: ModuleParts, weight: float
) -> LowRank | None:
    """The checked update of one module; None (and complaints) when its tensors are missing or have other shapes."""
    if not (parts.a and parts.b):
        planner.misfits.append(f"{parts.a or parts.b or parts.magnitude}: its lora_A or lora_B is missing")
        return None
    config, shape = adapter.config, plan.spec.shape
    transposed = parts.embedding or (planner.layout.transposed and module in planner.layout.linears)
    rank = config.rank(module)
    if len(shape) != 2:
        planner.misfits.append(f"{parts.a}: {plan.name} has shape {list(shape)}, and takes no low-rank update")
        return None
    outputs, inputs = (shape[1], shape[0]) if transposed else shape
    expected: dict[str, tuple[int, ...]] = {parts.a: (rank, inputs), parts.b: (outputs, rank)}
    if config.use_dora:
        if not parts.magnitude:
            planner.misfits.append(f"{parts.a}: use_dora is set, and its lora_magnitude_vector is missing")
            return None
        expected[parts.magnitude] = (outputs,)
    elif parts.magnitude:
        planner.misfits.append(f"{parts.magnitude}: a DoRA magnitude, but use_dora is not set")
        return None
    misfits = [
        f"{key}: shape {list(adapter.info(key).shape)}, but {list(wanted)} fits {plan.name} {list(shape)} at rank {rank}"
        for key, wanted in expected.items()
        if tuple(size for size in adapter.info(key).shape if len(wanted) > 1 or size != 1) != wanted
    ]
    planner.misfits += misfits
    scale = weight * scaling(config.alpha(module), rank, rank_stabilized=config.use_rslora)
    return None if misfits else LowRank(adapter, parts.a, parts.b, scale, transposed, parts.magnitude)


def _embedding_rows(planner: _Planner, adapter: Adapter, module: str, parts: ModuleParts) -> EmbeddingRows:
    """The rows of trainable_token_indices: the config's list is the embedding's; a dict names modules by their tail."""
    stated = adapter.config.trainable_token_indices
    layout = planner.layout
    if isinstance(stated, dict):
        own = [v for name, v in stated.items() if module == name or module.endswith(f".{name}")]
        # A tied head follows the embedding where the config names the embedding only.
        tied = [v for name, v in stated.items() if layout.embedding.endswith(name)] if layout.tied else []
        indices = next(iter([*own, *tied]), ())
    else:
        indices = stated or ()
    shape = adapter.info(parts.tokens).shape
    if len(shape) != 2 or len(indices) != shape[0]:
        planner.misfits.append(
            f"{parts.tokens}: shape {list(shape)}, but trainable_token_indices names {len(indices)} tokens of {module}"
        )
    return EmbeddingRows(adapter, parts.tokens, tuple(indices))


def _with_tokens(planner: _Planner, plan: TensorPlan, rows: EmbeddingRows) -> TensorPlan:
    """The plan with room for these rows: indices past the end are added tokens, and must leave no gap."""
    size, width = plan.spec.shape[0], plan.spec.shape[1] if len(plan.spec.shape) == 2 else -1
    if rows.adapter.info(rows.key).shape[1:] != (width,):
        planner.misfits.append(f"{rows.key}: rows of {list(rows.adapter.info(rows.key).shape[1:])}, not of [{width}]")
    taken = {index for earlier in plan.tokens for index in earlier.indices}
    if len(set(rows.indices)) != len(rows.indices) or taken & set(rows.indices) or min(rows.indices, default=0) < 0:
        planner.misfits.append(f"{rows.key}: token indices are negative or occur twice")
    end = max(rows.indices, default=-1) + 1
    gap = sorted(set(range(size, end)) - set(rows.indices))
    if gap:
        planner.misfits.append(
            f"{rows.key}: token {end - 1} lies beyond the base's {size} rows, and the adapter does not hold {gap[:5]}"
        )
    return replace(
        plan, spec=TensorSpec(plan.spec.dtype, (max(size, end), *plan.spec.shape[1:])), tokens=(*plan.tokens, rows)
    )


def _require_all_used(planner: _Planner) -> None:
    for number, adapter in enumerate(planner.adapters):
        targeted = targeted_modules(adapter.config, planner.layout)
        tied = {planner.layout.embedding, planner.layout.lm_head} if adapter.config.ensure_weight_tying else set()
        for key in adapter.file.tensors:
            twin = adapter.replaced.get(adapter.twins.get(key, ""), key)
            if (number, twin) not in planner.used:
                planner.misfits.append(f"{key}: left over, the base has no place for it")
        for module, parts in adapter.parts.items():
            if parts.a and (number, parts.a) in planner.used and module not in targeted | tied:
                planner.misfits.append(f"{parts.a}: left over, adapter_config.json does not target {module}")


def _require_all_there(planner: _Planner) -> None:
    for adapter in planner.adapters:
        planner.misfits += _saved_but_absent(adapter)
        for module in sorted(targeted_modules(adapter.config, planner.layout)):
            if module not in adapter.parts or not adapter.parts[module].a:
                planner.misfits.append(
                    f"{module}: adapter_config.json targets it, {adapter.path} holds no tensors for it"
                )


def _saved_but_absent(adapter: Adapter) -> list[str]:
    """What the config says was trained whole, or row by row, and the file does not hold."""
    config, held = adapter.config, [*adapter.replaced, *adapter.base_copy]
    misfits = [
        f"{saved}: adapter_config.json saves it whole (modules_to_save), {adapter.path} holds no tensor for it"
        for saved in config.modules_to_save
        if not any(re.match(rf"(^|.*\.){saved}($|\..*)", name.rpartition(".")[0]) for name in held)
    ]
    if config.trainable_token_indices and not any(parts.tokens for parts in adapter.parts.values()):
        misfits.append(
            f"trainable_token_indices: adapter_config.json names tokens, {adapter.path} holds no rows for them"
        )
    return misfits


def _vocabulary(planner: _Planner, plans: dict[str, TensorPlan]) -> int | None:
    layout = planner.layout
    before = planner.base.info(f"{layout.embedding}.weight").shape[0]
    rows = plans[f"{layout.embedding}.weight"].spec.shape[0]
    head = plans.get(f"{layout.lm_head}.weight")
    if head is not None and head.spec.shape[0] != rows:
        planner.misfits.append(
            f"the vocabulary would have {rows} tokens in {layout.embedding} and {head.spec.shape[0]} in {layout.lm_head}: "
            "the adapter must hold both when the vocabulary was resized"
        )
    return rows if rows != before else None


def _tie(planner: _Planner, plans: dict[str, TensorPlan]) -> bool:
    """Whether a tied embedding and head stay one tensor; then the head's plan becomes the embedding's.

    They do when nothing changes either; when token rows of the embedding are trained (peft trains a tied head with
    it); when the adapter says ensure_weight_tying; and when both are replaced by equal tensors. Else each goes its way:
    an update of the embedding alone was trained against a head that stayed.
    """
    embedding, head = (plans[f"{m}.weight"] for m in (planner.layout.embedding, planner.layout.lm_head))
    if not (embedding.changed or head.changed):
        return True
    ensured = any(
        a.config.ensure_weight_tying for a in (*(u.adapter for u in embedding.low_rank), embedding.replaced_by) if a
    )
    if embedding.tokens:
        alone = not (head.tokens or head.replaced_by)
        stays = not (embedding.low_rank or head.low_rank) and (alone or _same_tokens(embedding.tokens, head.tokens))
    elif embedding.low_rank or head.low_rank:
        stays = ensured and _same_update(planner, embedding.low_rank, head.low_rank)
    else:
        same = (ensured and not head.replaced_by) or (head.replaced_by and _same_source(embedding, head))
        stays = bool(embedding.replaced_by and same)
    if stays:
        plans[head.name] = replace(embedding, name=head.name)
    return stays


def _same_update(planner: _Planner, embedding: Sequence[LowRank], head: Sequence[LowRank]) -> bool:
    """Whether the head's update is the embedding's: the one factor of each is the other's transposed."""
    if not head:
        return True
    if len(embedding) != len(head) or any(u.magnitude for u in (*embedding, *head)):
        return False
    same = all(
        e.adapter is h.adapter
        and e.scale == h.scale
        and torch.equal(e.adapter.tensor(e.a).T, h.adapter.tensor(h.b))
        and torch.equal(e.adapter.tensor(e.b).T, h.adapter.tensor(h.a))
        for e, h in zip(embedding, head, strict=True)
    )
    return same


def _same_tokens(embedding: Sequence[EmbeddingRows], head: Sequence[EmbeddingRows]) -> bool:
    """Whether the head's token rows are the embedding's."""
    return len(embedding) == len(head) and all(
        e.indices == h.indices and torch.equal(e.adapter.tensor(e.key), h.adapter.tensor(h.key))
        for e, h in zip(embedding, head, strict=True)
    )


def _same_source(embedding: TensorPlan, head: TensorPlan) -> bool:
    """Whether two plans start from equal rows once cast to their dtype; read a slice at a time."""
    shape = embedding.file.tensors[embedding.source].shape
    if shape != head.file.tensors[head.source].shape or len(shape) != 2:
        return False
    step = max(1, (1 << 21) // max(1, shape[1]))
    return all(
        torch.equal(
            *(p.file.read_rows(p.source, i, min(i + step, shape[0])).to(p.spec.dtype) for p in (embedding, head))
        )
        for i in range(0, shape[0], step)
    )
