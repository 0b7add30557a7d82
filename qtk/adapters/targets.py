"""Which modules an adapter's config says it adapts: peft's rules for target_modules and its companions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qtk.adapters.config import AdapterConfig
from qtk.adapters.layout import BaseLayout
from qtk.bounded.programs import groups_matched, matches

_ALL_LINEAR = "all-linear"
_OWN_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
# Around a name in modules_to_save: peft saves the modules that it names, and what lies below them.
SAVED_WHOLE = r"(^|.*\.){}($|\..*)"


def targeted_modules(config: AdapterConfig, layout: BaseLayout) -> frozenset[str]:
    """Linears, embedding and head that the config targets."""
    modules = (*layout.linears, layout.embedding, layout.lm_head)
    return frozenset(module for module in modules if _targets(config, module, layout))


def _targets(config: AdapterConfig, module: str, layout: BaseLayout) -> bool:
    if _excluded(config, module):
        return False
    wanted = config.target_modules if config.target_modules is not None else layout.default_targets
    if isinstance(wanted, str):
        if wanted.lower() == _ALL_LINEAR:
            return module in layout.linears
        return matches(wanted, module, r"(?:{})\Z")
    if module in wanted:
        return True
    return _ends_with_one(module, wanted) and _in_wanted_layer(config, module)


def _excluded(config: AdapterConfig, module: str) -> bool:
    excluded = config.exclude_modules or ()
    if isinstance(excluded, str):
        if matches(excluded, module, r"(?:{})\Z"):
            return True
    elif module in excluded or _ends_with_one(module, excluded):
        return True
    # A module that is saved whole carries no update.
    return any(matches(saved, module, SAVED_WHOLE) for saved in config.modules_to_save)


def _in_wanted_layer(config: AdapterConfig, module: str) -> bool:
    wanted = config.layers_to_transform
    if wanted is None or wanted == ():
        return True
    patterns = (config.layers_pattern,) if isinstance(config.layers_pattern, str) else (config.layers_pattern or ())
    match = (
        next((m for p in patterns if (m := groups_matched(p, module, r"(?:^|.*?\.){}\.(\d+)\."))), None)
        if patterns and patterns != ("",)
        else _OWN_LAYER.match(module)
    )
    numbers = {str(number) for number in ((wanted,) if isinstance(wanted, int) else wanted)}
    return match is not None and match[1] in numbers


def _ends_with_one(module: str, names: Iterable[str]) -> bool:
    return any(module.endswith(f".{name}") for name in names)
