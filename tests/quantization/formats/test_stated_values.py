"""What a quantization_config says is taken as it stands or refused: nothing is made a number or a truth that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtk.errors import InputError
from qtk.quantization.model_weights import ModelWeights
from qtk.quantization.scheme_model import LinearScheme

STATED: dict[str, list[dict[str, Any]]] = {
    "gptq": [{"bits": 4.5}, {"group_size": 32.9}, {"sym": "no"}, {"dynamic": {"+:.*": {"sym": 0}}}],
    "awq": [{"bits": 4.9}, {"group_size": "32"}],
    "compressed-tensors": [{"symmetric": "no"}, {"group_size": 32.5}, {"dynamic": True}, {"output_activations": {"num_bits": 8}},
                           {"kv_cache_scheme": {"num_bits": 8}}],
}  # fmt: skip


def stated(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A quantization_config with a value changed where it stands."""
    (name,) = change
    group = config.get("config_groups", {}).get("group_0", {})
    place = next((held for held in (group.get("weights", {}), group) if name in held), config)
    place.update(change)
    return config


@pytest.mark.parametrize(("container", "change"), [(name, it) for name, changes in STATED.items() for it in changes])
def test_a_value_of_another_kind_is_refused(
    tiny, write_quantized, tmp_path: Path, container: str, change: dict
) -> None:
    write_quantized(tiny(), tmp_path / "q", container, LinearScheme(4, 32, container != "awq"))
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    assert ModelWeights.open(tmp_path / "q").scheme.quantized
    path.write_text(json.dumps({**config, "quantization_config": stated(config["quantization_config"], change)}))
    with pytest.raises(InputError, match=r"quantization_config|compressed-tensors weights|kv_cache_scheme"):
        assert ModelWeights.open(tmp_path / "q").scheme
