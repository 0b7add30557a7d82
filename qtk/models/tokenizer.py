"""The tokenizer that lies beside a model, used as it is: text to ids and back, special tokens, chat rendering.

Reads tokenizer.json with the `tokenizers` library itself: importing transformers for it would cost seconds a command.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tokenizers import Encoding, Tokenizer

from qtk.bounded.files import read_bounded_text
from qtk.checkpoint.json_file import read_json
from qtk.errors import InputError
from qtk.install_hints import missing_package
from qtk.models.chat import ChatTemplate, Message, codefuse_chat

_LIMIT = 200_000_000  # bytes of a tokenizer.json; the largest in use have 35 MB
_PIECE = 65_536
_MOST_SPECIAL, _MOST_TOKENS = 64, 100_000_000
# How many letters the rules of a tokenizer may make of one: a letter has at most 18 in a compatibility form.
_MOST_GROWTH = 4096
_LETTERS = "zz  Z9 9\té\u0301ß日本語\u200d😀\x00\n\n's ﷺ"  # of one to four bytes, of several scripts, controls, spaces
_FORMS = {"NFKC": 18, "NFKD": 18, "Precompiled": 18, "NFD": 4, "Lowercase": 3}
# none: the messages' contents one after another, without any marks.
ChatFormat = Literal["none", "model", "codefuse"]


_stderr = threading.Lock()


@contextmanager
def _told_as(complaint: str) -> Iterator[None]:
    """InputError for what the library raises: plain Exception, and a panic of Rust, for what it cannot use."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{complaint}: {error}") from None


@contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Keeps from stderr where in the library a panic of Rust happened, with its backtrace: the error that is raised says enough."""
    with _stderr:
        try:
            kept = os.dup(2)
        except OSError:  # closed
            kept = -1
        if kept >= 0:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        try:
            yield
        finally:
            if kept >= 0:
                os.dup2(kept, 2)
                os.close(kept)


class TextTokenizer:
    """`encode`, `decode`, `render` for one model directory. `bos_ids` is what the model expects before every text."""

    def __init__(self, directory: Path | str) -> None:
        """Raises InputError when the directory has no tokenizer that can be read."""
        self.directory = Path(directory)
        with _panics_unprinted():
            self._tokenizer = _load(self.directory)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            with self._its_errors():
                self._tokenizer.decode(self._tokenizer.encode("a").ids)  # rules that work on no text at all
                with suppress(Exception):  # it may have no tokens for some of these; a panic is another thing
                    self._tokenizer.decode(self._tokenizer.encode(_LETTERS).ids)
        # Older models name their special tokens in a file of their own.
        self._special: dict[str, Any] = {
            **read_json(self.directory / "special_tokens_map.json"),
            **{k: v for k, v in read_json(self.directory / "tokenizer_config.json").items() if v is not None},
        }
        self.bos_ids: list[int] = self._bos_ids()

    def _bos_ids(self) -> list[int]:
        """The tokens that the tokenizer puts in front of a text, told by encoding one letter with and without them."""
        with_special, plain = self._encoded("a", special=True).ids, self._encoded("a").ids
        if len(with_special) - len(plain) > _MOST_SPECIAL:
            raise InputError(
                f"{self.directory}: its tokenizer puts {len(with_special) - len(plain)} tokens around every text."
            )
        at = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
        return list(with_special[:at])

    def _encoded(self, text: str, *, special: bool = False) -> Encoding:
        with self._its_errors():
            return self._tokenizer.encode(text, add_special_tokens=special)

    def _its_errors(self) -> AbstractContextManager[None]:
        return _told_as(f"{self.directory}: its tokenizer fails on a text")

    def special_token(self, name: str) -> str | None:
        """The text of "bos_token", "eos_token", "pad_token", ... or None."""
        value = self._special.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else None

    def _id(self, token: str) -> int | None:
        with self._its_errors():
            found: int | None = self._tokenizer.token_to_id(token)
            return found

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: the tokenizer's eos and those of generation_config.json and config.json."""
        found = list(configured_eos_ids(self.directory))
        eos = self.special_token("eos_token")
        if eos is not None and (number := self._id(eos)) is not None:
            found.append(number)
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def plain_ids(self) -> list[int]:
        """The ids of all tokens that are text, without those that were added for a purpose (bos, tags and the like)."""
        added = self._tokenizer.get_added_tokens_decoder()
        return sorted(number for number in self._tokenizer.get_vocab().values() if number not in added)

    @property
    def end_id(self) -> int | None:
        """The id that ends an answer: the tokenizer's eos, else the first that the model's configuration names; None without one."""
        eos = self.special_token("eos_token")
        number = None if eos is None else self._id(eos)
        return number if number is not None else next(iter(self.eos_ids), None)

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids without special tokens, and at which character of the text each begins."""
        encoding = self._encoded(text)
        return list(encoding.ids), [start for start, _ in encoding.offsets]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; with `special`, what the tokenizer adds around a text (bos) is there."""
        return list(self._encoded(text, special=special).ids)

    def encode_in_pieces(self, text: str) -> Iterator[list[int]]:
        """Token ids of a text of any length without special tokens, a piece at a time, so that whoever has enough can stop: the
        library takes about a hundred bytes of memory a letter."""
        return (self.encode(piece) for piece in text_pieces(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, without special tokens."""
        with self._its_errors():
            return [list(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        with self._its_errors():
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    @functools.cached_property
    def _chat_template(self) -> ChatTemplate:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return ChatTemplate(self.directory, {n: text for n in names if (text := self.special_token(n)) is not None})

    def render(
        self, messages: Sequence[Message], chat_format: ChatFormat = "model", *, generation_prompt: bool = True
    ) -> str:
        """A conversation as the text to encode (without special tokens: the template writes them itself)."""
        if chat_format == "none":
            return "\n".join(message["content"] for message in messages)
        if chat_format == "codefuse":
            return codefuse_chat(messages, self.special_token("eos_token") or "", generation_prompt=generation_prompt)
        return self._chat_template.render(messages, generation_prompt=generation_prompt)


def text_pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most 65,536 letters, cut behind the end of a line where there is one, else before a space."""
    start = 0
    while len(text) - start > _PIECE:
        middle, last = start + _PIECE // 2, start + _PIECE
        end = text.rfind("\n", middle, last) + 1 or max(text.rfind(" ", middle, last), 0) or last
        yield text[start:end]
        start = end
    yield text[start:]


def configured_eos_ids(directory: Path) -> tuple[int, ...]:
    """Ids that end a generation by generation_config.json and config.json, for a directory without a tokenizer too.

    InputError when one of the two cannot be read, or names something that is not an id.
    """
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(directory / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < _MOST_TOKENS for i in ids):
            shown = value if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
            raise InputError(f"{directory / name}: eos_token_id is {shown!r}, not the id of a token or a list of ids.")
        found += ids
    return tuple(dict.fromkeys(found))


def has_tokenizer(directory: Path) -> bool:
    """Whether one of the files that a tokenizer is read from is there."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _load(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if path.is_file():
        content = read_bounded_text(path, _LIMIT)
        with _told_as(f"{path} cannot be read as a tokenizer"):
            tokenizer = Tokenizer.from_str(content)
        _require_bounded(path, tokenizer)
        return tokenizer
    if has_tokenizer(directory):
        try:
            from transformers import AutoTokenizer  # converts the older files; slow to import
        except ImportError:
            reading = f"{directory} has no tokenizer.json; reading its older tokenizer files"
            raise missing_package(reading, "transformers", "legacy-tokenizers") from None
        with _told_as(f"{directory}: its tokenizer files cannot be read"):
            return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, use_fast=True).backend_tokenizer
    raise InputError(
        f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json), so it cannot read text."
    )


def _require_bounded(path: Path, tokenizer: Tokenizer) -> None:
    """InputError for rules that make a text many times longer: each may double it, and a file may hold any number of them."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    for part in parts:
        rules = {} if part is None else json.loads(part.__getstate__())
        if _growth(rules) > _MOST_GROWTH:
            raise InputError(f"{path} cannot be used: its rules make a text more than {_MOST_GROWTH} times as long.")


def _growth(rules: Any) -> float:
    """How many letters a rule, or a sequence of rules, makes of one at most; what is put in front once is counted in full."""
    if isinstance(rules, list):
        total = 1.0
        for rule in rules:
            total = min(total * _growth(rule), 1e9)
        return total
    if not isinstance(rules, dict):
        return 1.0
    inner = [value for key, value in rules.items() if key in ("normalizers", "pretokenizers", "decoders")]
    if inner:
        return _growth(inner[0])
    if rules.get("type") == "Replace":
        pattern = rules.get("pattern")
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1.0, len(str(rules.get("content"))) / max(1, len(plain or "")) + (0 if plain else 1))
    if rules.get("type") == "Prepend":
        return max(1.0, len(str(rules.get("prepend"))) / 64)
    return float(_FORMS.get(str(rules.get("type")), 1))
