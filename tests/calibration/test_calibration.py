"""Calibration text: every source and chat form, packing, padding, and what is wrong with bad files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from qtk.calibration.held_out import standard_library_modules
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import calibration_rows
from qtk.calibration.sources import samples
from qtk.errors import InputError, MachineError
from qtk.models.chat import codefuse_chat
from qtk.models.tokenizer import TextTokenizer

TALK = [{"role": "human", "content": "Add 1 and 2."}, {"role": "bot", "content": "3\n"}]


@pytest.fixture
def tokenizer(tiny) -> TextTokenizer:
    return TextTokenizer(tiny("llama"))


def rows(tokenizer: TextTokenizer, source: Path | str, count: int = 8, seq_len: int = 64, **options):
    return calibration_rows(tokenizer, CalibrationOptions(calibration=str(source), samples=count, **options), seq_len)


def test_standard_library_rows_are_full_repeatable_and_never_held_out(tokenizer) -> None:
    first, again, other = (rows(tokenizer, "python-stdlib", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.token_count == 8 * 64
    assert not first.padded
    sides = [{name for name, _ in standard_library_modules(held_out=side)} for side in (True, False)]
    assert len(sides[0]) > 20
    assert not sides[0] & sides[1]


def test_text_is_packed_end_to_end(tokenizer, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh" * 20)
    packed = rows(tokenizer, tmp_path / "a.txt", seq_len=50)
    assert packed.tokens.shape == (3, 50)  # the last 10 tokens are too few for a row of their own
    assert tokenizer.decode(packed.tokens[0].tolist()) == ("abcdefgh" * 20)[:50]


def test_conversations_are_rows_of_their_own_and_padding_is_marked(tokenizer, tmp_path) -> None:
    lines = [{"chat_rounds": TALK}, {"messages": [{"role": "user", "content": "x" * 200}]}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    got = rows(tokenizer, tmp_path / "chat.jsonl", seq_len=100, chat_format="codefuse")
    text = "<s>human\nAdd 1 and 2.\n<s>bot\n3\n</s>\n"
    assert got.lengths.tolist() == [len(tokenizer.encode(text)), 100]
    assert got.tokens[0, : got.lengths[0]].tolist() == tokenizer.encode(text)
    assert got.keep().sum().item() == got.token_count
    model_form = rows(tokenizer, tmp_path / "chat.jsonl", seq_len=100)
    assert model_form.tokens[0, : model_form.lengths[0]].tolist() == tokenizer.encode(
        "<s>user\nAdd 1 and 2.</s><s>assistant\n3\n</s>"
    )


def test_without_a_chat_format_conversations_are_packed_as_plain_text(tokenizer, tmp_path) -> None:
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps({"messages": TALK})] * 5))
    got = rows(tokenizer, tmp_path / "chat.jsonl", seq_len=24, chat_format="none")
    text = "\n".join(message["content"] for message in TALK) * 5
    bos = tokenizer.bos_ids
    assert got.tokens[0].tolist() == (bos + tokenizer.encode(text))[:24]
    assert got.lengths[0] == 24


def with_template(tiny, directory: Path, template: str) -> TextTokenizer:
    """A tokenizer whose model has this chat template."""
    copy = Path(shutil.copytree(tiny("llama"), directory / "model"))
    (copy / "chat_template.jinja").write_text(template)
    return TextTokenizer(copy)


def test_chat_rounds_reach_a_template_that_checks_roles_as_user_and_assistant(tiny, tmp_path) -> None:
    strict = """{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}
{{ raise_exception('unknown role ' + m.role) }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"""
    rounds = [{"role": "system", "content": "Be brief."}, *TALK]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"chat_rounds": rounds}))
    tokenizer = with_template(tiny, tmp_path, strict)
    got = rows(tokenizer, tmp_path / "chat.jsonl")
    expected = "[system]Be brief.[user]Add 1 and 2.[assistant]3\n"
    assert tokenizer.decode(got.tokens[0, : got.lengths[0]].tolist()) == expected


def test_a_template_is_rendered_as_transformers_does(tiny, tmp_path) -> None:
    """Generation blocks, tools that are none, tojson's options, namespaces: the text is that of apply_chat_template."""
    from transformers import AutoTokenizer

    template = """{%- if tools is not none or documents is not none %}TOOLS{% endif %}
{%- set ns = namespace(count=0) %}
{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}
  {{ m.content }}{{ eos_token }}
{% endgeneration %}{% else %}{% set ns.count = ns.count + 1 %}{{ m | tojson(ensure_ascii=true, sort_keys=true) }}{% endif %}
{%- endfor %}{{ ns.count }}{% if strftime_now('%Y') | int < 2020 %}OLD{% endif %}"""
    tokenizer = with_template(tiny, tmp_path, template)
    talk = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "3"}]
    theirs = AutoTokenizer.from_pretrained(tokenizer.directory).apply_chat_template(talk, tokenize=False)
    assert tokenizer.render(talk, generation_prompt=False) == theirs


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for m in messages %}", "line 1 is not Jinja"),
        ("{{ messages[0].content + 1 }}", "fails on a conversation"),
        ("{{ raise_exception('no') }}", "refuses a conversation: no"),
        ("{{ messages[0].nothing.more }}", "refuses a conversation"),
    ],
)
def test_a_broken_template_gets_a_sentence(tiny, tmp_path, template: str, complaint: str) -> None:
    tokenizer = with_template(tiny, tmp_path, template)
    with pytest.raises(InputError, match=complaint):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_a_template_in_chat_template_json_is_found(tiny, tmp_path) -> None:
    copy = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    assert TextTokenizer(copy).render([{"role": "user", "content": "x"}]) == "x!"


def test_eos_that_only_special_tokens_map_names(tiny, tmp_path) -> None:
    copy = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    for name in ("config.json", "generation_config.json"):
        (copy / name).unlink(missing_ok=True)
    (copy / "tokenizer_config.json").write_text('{"eos_token": null}')
    (copy / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert TextTokenizer(copy).eos_ids == (1,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("generation_config.json", '{"eos_token_id": '),
        ("generation_config.json", '{"eos_token_id": "</s>"}'),
        ("special_tokens_map.json", "[]"),
    ],
)
def test_broken_files_beside_a_tokenizer_are_named(tiny, tmp_path, name: str, content: str) -> None:
    copy = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    (copy / name).write_text(content)
    with pytest.raises(InputError, match=name):
        _ = TextTokenizer(copy).eos_ids


def test_only_newlines_end_a_row(tokenizer, tmp_path) -> None:
    """U+2028 and its like may stand inside a JSON string; a byte order mark in front of the file is no text."""
    text = "one\u2028two\u0085three"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8-sig")
    assert [sample.text for sample in samples(str(tmp_path / "a.jsonl"), 0)] == [text]
    (tmp_path / "a.txt").write_text("abc", encoding="utf-8-sig")
    assert [sample.text for sample in samples(str(tmp_path / "a.txt"), 0)] == ["abc"]


def test_the_seed_chooses_among_the_rows_of_a_data_set(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(str(number)) for number in range(50)))
    orders = [[int(sample.text) for sample in samples(str(tmp_path / "a.jsonl"), seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [sorted(order) for order in orders] == [list(range(50))] * 3
    assert any(number >= 25 for number in orders[0][:8])


def test_conversations_that_are_cut_are_counted(tokenizer, tmp_path, capsys) -> None:
    talks = [{"messages": [{"role": "user", "content": "x" * length}]} for length in (10, 500, 900)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, talks)))
    rows(tokenizer, tmp_path / "chat.jsonl", seq_len=100)
    assert "2 of 3 conversations are longer than a row of 100 tokens" in capsys.readouterr().err


def test_codefuse_format_is_byte_exact() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert codefuse_chat(messages, "<eos>", generation_prompt=True) == "<s>system\nBe brief.\n<s>human\nhi\n<s>bot\n"
    assert codefuse_chat(TALK, "<eos>", generation_prompt=False) == "<s>human\nAdd 1 and 2.\n<s>bot\n3\n<eos>\n"


def test_parquet(tokenizer, tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["def f():\n    return 1\n" * 10] * 3}), tmp_path / "t.parquet")
    assert rows(tokenizer, tmp_path / "t.parquet").token_count == 8 * 64


def test_parquet_with_a_damaged_middle(tokenizer, tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"text": [f"def f{i}():\n    return {i}\n" for i in range(400)]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", use_dictionary=False)
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[8:600] = bytes(592)
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.parquet"):
        rows(tokenizer, tmp_path / "t.parquet")


@pytest.mark.parametrize(("package", "source"), [("pyarrow", "rows.parquet"), ("datasets", "owner/set")])
def test_a_reader_that_is_not_installed_is_the_machines_lack(tmp_path, monkeypatch, package: str, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MachineError, match=f"pip install '{package}>="):
        list(samples(source, 0))


def test_a_data_set_out_of_reach_is_the_machines_lack_and_said_once(unreachable_hub, capfd) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(MachineError, match="the hub cannot be asked for a data set of that name"):
        list(samples("some-owner/some-set:config", 0))
    assert capfd.readouterr() == ("", "")


def test_a_data_set_that_the_hub_does_not_know(stand_in_hub) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match="does not show a data set of that name"):
        list(samples("no-such-owner/no-such-set", 0))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", "", "no calibration text"),
        ("empty.jsonl", "\n", "no calibration text"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        ("field.jsonl", '{"other": 1}\n', "line 1 has none of the fields"),
        ("list.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("role.jsonl", '{"messages": [{"role": "user"}]}\n', "line 1: messages must be"),
        ("who.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}\n', "tool"),
        ("bad.parquet", "no parquet", "not a parquet file"),
        ("deep.jsonl", '{"text": ' + "[" * 100_000, "line 1 is not valid JSON"),
        ("bad.csv", "a,b", "end in .txt, .jsonl or .parquet"),
    ],
)
def test_bad_files_get_a_sentence(tokenizer, tmp_path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=complaint):
        rows(tokenizer, tmp_path / name, chat_format="codefuse")


def test_missing_file(tokenizer, tmp_path) -> None:
    with pytest.raises(InputError, match=r"cannot be read|no file"):
        rows(tokenizer, tmp_path / "absent.txt")
