"""JSON and YAML of bounded depth and size, with no key twice."""

from __future__ import annotations

import pytest

from qtk.bounded.parsing import load_yaml, parse_bounded_json, parse_yaml
from qtk.errors import InputError

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(97 + n)}: &{chr(97 + n)} [{','.join([f'*{chr(96 + n)}'] * 9)}]\n" for n in range(1, 9)
)


def test_what_is_well_formed_is_read() -> None:
    assert parse_bounded_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_bounded_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_yaml("a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "[" * 200 + "]" * 200,
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "1" * 5000,
        "{",
        "",
        '["\\ud800"]',
    ],
    ids=["twice", "deep", "endless", "deep objects", "a long number", "cut", "empty", "half a letter"],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bounded_json(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_BOMB, "aliases"),
        ("a: &a [*a]", "holds itself"),
        ("a: 1\na: 2", "twice"),
        ("[" * 100 + "]" * 100, "nested"),
        ("[" * 5000, "nested more than 64 levels deep, at line 1"),  # at the bound, not behind the end
        ("a:\n" * 80_000, "50000 values"),
        ("a: " + "1" * 5000, "digits"),
        ("a: 9999-99-99", "month"),
        ("{[1]: 2}", "unhashable"),
        ("a: !!python/object:os.system {}", "constructor"),
        ("a: " + "x" * 300_000, "longer"),
        ("a: [", "expected"),
        ('name: "a\\ud800"', "line 1 holds half of a letter"),
        ('a: 1\n"\\U0000DFFF": 2', "line 2 holds half of a letter"),
    ],
    ids=[
        "bomb",
        "itself",
        "twice",
        "deep",
        "endless",
        "countless",
        "number",
        "date",
        "key",
        "tag",
        "long",
        "cut",
        "half a letter",
        "half a letter in a key",
    ],
)
def test_yaml_that_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_yaml(text)


def test_the_file_is_named(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text("a: 1\na: 2")
    with pytest.raises(InputError, match=r"r\.yaml is not valid YAML: the key 'a' is there twice, again at line 2"):
        load_yaml(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="no such file"):
        load_yaml(tmp_path / "s.yaml")
