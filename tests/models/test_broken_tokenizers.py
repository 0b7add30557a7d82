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
