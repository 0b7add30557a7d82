"""Templates and regular expressions of files: they do what they should, and end when they take too much."""

from __future__ import annotations

import re

import pytest

from qtk.bounded.programs import ProgramFailed, TooMuch, check_template, groups_matched, matches, render_template
from qtk.errors import InputError


@pytest.mark.parametrize("pattern", [r"layers\.0", r".*\.(q|v)_proj", r"layers\.(\d+)\..*", "nothing", r"(?!x).*proj"])
def test_an_expression_matches_what_python_says(pattern: str) -> None:
    text = "layers.0.self_attn.q_proj"
    found = re.match(pattern, text)
    assert groups_matched(pattern, text) == (None if found is None else (found[0], *found.groups()))
    assert matches(pattern, text, r"(?:{})\Z") == (re.fullmatch(pattern, text) is not None)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(.*a){25}b"])
def test_an_expression_that_tries_for_ever_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(InputError, match="takes more than a second") as caught:
        matches(pattern, "a" * 60 + "!")
    assert pattern[:20] in str(caught.value)


@pytest.mark.parametrize("pattern", ["(", "*", "(?P<n", "a{99999999999}", "(" * 5000, "x" * 20_000])
def test_what_is_not_an_expression_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="is not a regular expression"):
        matches(pattern, "a")


def _render(template: str) -> str:
    return render_template(
        template, {"messages": [{"role": "user", "content": "hello"}], "add_generation_prompt": True}
    )


def test_a_template_renders() -> None:
    assert _render("{% for m in messages %}<{{ m['role'] }}>{{ m.content }}{% endfor %}") == "<user>hello"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'A' * 10**9 }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ lipsum(n=10**6) }}",
        "{{ 10 ** (10 ** 8) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    ],
    ids=["text", "indent", "loops", "output", "lipsum", "power", "doubling"],
)
def test_a_template_that_takes_too_much_ends(template: str) -> None:
    with pytest.raises((TooMuch, ProgramFailed)):
        _render(template)
    assert _render("{{ messages[0].content }}") == "hello"  # and the next one is not harmed


@pytest.mark.parametrize("template", ["{% for", "{{ a | nofilter }}", "(" * 3000 + "{{" + "(" * 3000])
def test_a_template_that_does_not_compile(template: str) -> None:
    if template.startswith("("):
        with pytest.raises((TooMuch, ProgramFailed)):
            check_template(template)
        return
    with pytest.raises(ProgramFailed) as caught:
        check_template(template)
    assert caught.value.line == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_reaches_nothing_outside(template: str) -> None:
    with pytest.raises(ProgramFailed):
        _render(template)


def test_a_template_may_refuse() -> None:
    with pytest.raises(ProgramFailed) as caught:
        _render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.refused
    assert "roles must alternate" in str(caught.value)
