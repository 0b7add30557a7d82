"""Every row format, chosen by the most specific match; bad rows by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qtk.errors import InputError
from qtk.finetuning.rows import PAIRS, Turn, data_files, parse_row, read_tasks


@pytest.mark.parametrize(("fields", "answer"), [pair for pair in PAIRS if len(pair[0]) == 1])
def test_each_pair_of_fields_is_a_prompt_and_an_answer(fields: tuple[str, ...], answer: str) -> None:
    row = parse_row({fields[0]: "Q", answer: "A", "system": "S", "id": 7}, "f, line 1")
    assert row.turns == (Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "A"))
    assert row.pair


def test_an_alpaca_row_keeps_its_instruction() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert parse_row(row, "").turns[0] == Turn("user", "Add.\n1 2")
    assert parse_row({**row, "input": ""}, "").turns[0] == Turn("user", "Add.")


def test_conversations_of_both_names_and_all_roles() -> None:
    rounds = [
        {"role": "system", "content": "S"},
        {"role": "human", "content": "Q"},
        {"role": "gpt", "content": "A"},
        {"role": "user", "content": "again"},
    ]
    expected = (Turn("system", "S"), Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "again"))
    assert parse_row({"chat_rounds": rounds}, "").turns == expected
    assert parse_row({"messages": rounds}, "").turns == expected
    assert not parse_row({"messages": rounds}, "").pair


def test_an_empty_conversation_beside_a_text_is_a_text() -> None:
    assert parse_row({"chat_rounds": [], "text": "plain"}, "").text == "plain"


HUMAN, BOT = {"role": "human", "content": "Q"}, {"role": "bot", "content": "A"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "Q"}, "none of the known formats"),
        ({"prompt": "Q", "answer": " "}, "its answer is empty"),
        ({"prompt": ["Q"], "answer": "A"}, "prompt is not a text"),
        ({"chat_rounds": [HUMAN]}, "no answer in chat_rounds"),
        ({"chat_rounds": [BOT]}, "must alternate"),
        ({"chat_rounds": [HUMAN, BOT, BOT]}, "must alternate"),
        ({"chat_rounds": [HUMAN, BOT, {"role": "system", "content": "S"}]}, "as the first turn"),
        ({"chat_rounds": [HUMAN, {"role": "bot", "content": ""}]}, "is empty"),
        ({"chat_rounds": [{"role": "tool", "content": "x"}]}, "needs a role"),
        ({"chat_rounds": "Q"}, "not a list"),
        ("Q", "not a JSON object"),
        ({"text": ""}, "none of the known formats"),
    ],
)
def test_a_row_of_no_use_says_why(row: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_row(row, "f, line 1")


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_a_task_is_a_folder_or_a_file_and_every_bad_row_is_named(tmp_path: Path) -> None:
    good = {"prompt": "Q\u2028R", "answer": "A"}
    write(tmp_path / "first" / "b.jsonl", good, "", good)
    write(tmp_path / "first" / "deep" / "a.jsonl", json.dumps(good, ensure_ascii=False))
    second = write(tmp_path / "second.jsonl", {"text": "t"})
    tasks = read_tasks((str(tmp_path / "first"), str(second)))
    assert [(task.name, len(task.rows)) for task in tasks] == [("first", 3), ("second", 1)]
    assert tasks[0].files == (tmp_path / "first" / "b.jsonl", tmp_path / "first" / "deep" / "a.jsonl")
    assert tasks[0].rows[1].where == f"{tmp_path / 'first' / 'b.jsonl'}, line 3"
    write(tmp_path / "first" / "b.jsonl", good, "{", {"prompt": "Q"})
    with pytest.raises(InputError) as caught:
        read_tasks((str(tmp_path / "first"),))
    assert "2 rows" in str(caught.value)
    assert "b.jsonl, line 2: not valid JSON" in str(caught.value)
    assert "b.jsonl, line 3: none of" in str(caught.value)


def test_sources_that_cannot_be_tasks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        data_files(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \*\.jsonl"):
        data_files(str(tmp_path / "empty"))
    one, other = (write(tmp_path / folder / "same.jsonl", {"text": "t"}) for folder in ("a", "b"))
    with pytest.raises(InputError, match="called same"):
        read_tasks((str(one), str(other)))
    with pytest.raises(InputError, match="no rows in"):
        read_tasks((str(write(tmp_path / "blank.jsonl", "")),))


def test_the_standard_library_is_a_task_of_texts_that_are_not_held_out() -> None:
    (task,) = read_tasks(("python-stdlib",))
    assert task.name == "python-stdlib"
    assert task.files == ()
    assert len(task.rows) > 100
    assert all(row.cut and row.text for row in task.rows)


@pytest.mark.parametrize("role", [[], {}, 5, None, "nobody"])
def test_a_role_of_any_type_is_a_sentence(role: object) -> None:
    with pytest.raises(InputError, match="turn 1 of messages needs a role"):
        parse_row({"messages": [{"role": role, "content": "x"}]}, "f, line 1")
