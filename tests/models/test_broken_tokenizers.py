"""Rules of tokenizer.json that the library panics at: a sentence, and nothing of the library's own on stderr."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.tiny_models import write_byte_tokenizer

from qtk.errors import InputError
from qtk.models.tokenizer import TextTokenizer

_SPECIAL = {"single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}}
RULES = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "prefix": {"model": {"type": "BPE", "vocab": {"é": 0, "a": 1, "éa": 2}, "merges": [["é", "a"]],
                         "continuing_subword_prefix": "ééé"}},
    "special": {"post_processor": {"type": "TemplateProcessing", **_SPECIAL}},
    "strip": {"decoder": {"type": "Strip", "content": "a", "start": 99, "stop": 99}},
    "several letters": {"normalizer": {"type": "Prepend", "prepend": ""}},
    "letters of several bytes": {"normalizer": {"type": "Replace", "pattern": {"String": "z"}, "content": ""},
                                 "added_tokens": [{"id": 900, "content": "z", "single_word": True, "lstrip": True, "rstrip": True,
                                                   "normalized": True, "special": False}]},
    "some letters": {"decoder": {"type": "Strip", "content": "z", "start": 1, "stop": 1}},
    "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_a_panic_of_the_library_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **RULES[case]}))
    with pytest.raises(InputError, match="tokenizer"):
        TextTokenizer(tmp_path)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


def test_letters_without_tokens_are_no_matter_until_they_come(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    few = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<unk>"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **few}))
    assert TextTokenizer(tmp_path).encode("aa") == [0, 0]
    with pytest.raises(InputError, match="Unk token"):
        TextTokenizer(tmp_path).encode("z")
