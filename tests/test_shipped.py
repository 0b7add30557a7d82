"""YAML that travels with qtk, or that a user wrote: found by name or by path, and read with errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from qtk.errors import InputError
from qtk.shipped import find_yaml, load_yaml, read_yaml, shipped_directory, shipped_names


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    container: str = Field("auto", json_schema_extra={"was": "format"})


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    rows: int = 3
    stage: _Stage | None = None


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("room", ["gpus", "recipes", "bench/suites", "bench/baselines", "bench/baselines/leaderboards"])
def test_every_shipped_name_leads_to_its_file(room: str) -> None:
    assert shipped_names(room)
    for name in shipped_names(room):
        assert find_yaml(room, name, "thing") == shipped_directory(room) / f"{name}.yaml"


def test_a_file_of_the_users_is_taken_by_its_path(tmp_path) -> None:
    plain = write(tmp_path / "plan", "name: x")
    assert find_yaml("recipes", str(plain), "recipe") == plain
    assert find_yaml("recipes", "absent.yml", "recipe") == Path("absent.yml")
    with pytest.raises(
        InputError, match=r"There is no recipe 'smollm3'\. Give one of .*smollm2-135m.*, or a YAML file"
    ):
        find_yaml("recipes", "smollm3", "recipe")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rows: 2", "name: Field required"),
        ("{name: x, rows: many}", "rows: Input should be a valid integer.*given: 'many'"),
        ("{name: x, speed: 1}", "speed: no such setting"),
        ("{name: x, stage: {format: gguf}}", r"stage\.format: is called container now"),
        ("{name: x, stage: {former: gguf}}", r"stage\.former: no such setting"),
        ("- a", "Input should be a valid dictionary"),
        ("", "Input should be a valid dictionary"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(tmp_path, text: str, complaint: str) -> None:
    path = write(tmp_path / "plan.yaml", text)
    with pytest.raises(InputError, match=rf"(?s)plan\.yaml is not a valid plan:\n.*{complaint}"):
        read_yaml(path, _Plan, "plan")


def test_what_the_file_does_not_hold_can_be_added(tmp_path) -> None:
    assert read_yaml(write(tmp_path / "x.yaml", "rows: 2"), _Plan, "plan", name="x") == _Plan(name="x", rows=2)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"name: [unclosed", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"!!python/object/apply:os.system [ls]", "is not valid YAML"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_not_yaml_is_refused(tmp_path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        load_yaml(path)
