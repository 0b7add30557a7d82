"""Generation ends as soon as the rules are certain: on a model whose every next token is known beforehand."""

from __future__ import annotations

import json

import pytest
import torch

from qtk.bench.accuracy.options import ModelOptions
from qtk.bench.accuracy.programs.generation import ModelAnswers
from qtk.bench.accuracy.suites.suites import SuitePart, load_suite
from qtk.bench.accuracy.task import Task
from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.session import DecoderSession, Generation

# What the model writes after a prompt's last letter, a token an entry; it repeats the last token for ever.
WRITES = {
    "a": ["    return x\n", "\nprint(1)\n", "# more\n"],  # the function ends; nothing of its own follows
    "b": ["    y = x\n", "    return y\n", "\n\n", "def other():\n", "    pass\n"],
    "c": [
        "    return h(x)\n",
        "\ndef h(x):\n",
        "    return x\n# end\n",
        "z = 1\n",
        "z = 2\n",
    ],  # its own helper is kept
    "`": ["Sure:\n```python\n", "def f(x):\n    return x\n", "```\n", "It returns x.\n"],  # as a chat's prompt ends
}
MOST = 40


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> DecoderSession:
    """An engine of a Llama without attention or MLP (their output weights are 0): the head alone maps a token to the next."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("chain")
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*map(chr, range(32, 127)), "\n", *(text for chain in WRITES.values() for text in chain)]
    ids = {text: number for number, text in enumerate(texts)}
    assert len(ids) == len(texts)
    # Without merges a prompt is encoded letter by letter, and never into one of the longer tokens.
    tokenizer = Tokenizer(
        models.BPE(vocab={symbols.pre_tokenize_str(text)[0][0]: n for text, n in ids.items()}, merges=[])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = symbols, decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    following = {}
    for letter, chain in WRITES.items():
        following |= {ids[old]: ids[new] for old, new in zip([letter, *chain], [*chain, chain[-1]], strict=True)}
    size = len(texts)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    width = 64 * -(-size // 64)
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0)
            if (
                name.endswith("norm.weight") or "q_proj" in name
            ):  # queries reach no output; a block of zeros alone is refused
                parameter.fill_(1.0)
        model.model.embed_tokens.weight[:] = torch.eye(size, width)
        for token, after in following.items():
            model.lm_head.weight[after, token] = 1.0
    model.save_pretrained(directory)
    engine = tmp_path_factory.mktemp("engine") / "engine"
    build_engine(directory, engine, BuildOptions(max_input_len=400, max_output_len=64, max_batch_size=4))
    return DecoderSession.open(engine, 1)


class Recording:
    """The session, and what it generated."""

    def __init__(self, session: DecoderSession) -> None:
        self.session = session
        self.generations: list[Generation] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.session, name)

    def generate(self, *args: object, **settings: object) -> Generation:
        self.generations.append(self.session.generate(*args, **settings))  # type: ignore[arg-type]
        return self.generations[-1]


def written(session: DecoderSession, letters: str, rules: str, chat_format: str = "none") -> list[list[str]]:
    """The tokens, as text, that were generated for a task whose prompt ends in each letter; in one batch."""
    tasks = [Task(f"T/{letter}", "python", f'def f(x):\n    """{letter}', "", "", "f") for letter in letters]
    options = ModelOptions(max_new_tokens=MOST, chat_format=chat_format)  # type: ignore[arg-type]
    recording = Recording(session)
    part = SuitePart(load_suite("humaneval"), "python", True)
    answers = list(ModelAnswers(recording, options, rules).answers(part, tasks))  # type: ignore[arg-type]
    [call] = recording.generations
    # The batch ran no further than its longest row.
    assert len(call.token_seconds) + 1 == max(len(row) for row in call.tokens)
    rows = [[session.tokenizer.decode([token]) for token in row] for row in call.tokens]
    assert ["".join(row) for row in rows] == [answer.generation for answer in answers]
    return rows


def whole(letter: str) -> list[str]:
    return WRITES[letter] + WRITES[letter][-1:] * (MOST - len(WRITES[letter]))


def test_a_row_ends_with_the_token_that_makes_its_answer_certain(session):
    rows = written(session, "abc", "qtk")
    assert rows == [WRITES["a"][:2], WRITES["b"][:4], WRITES["c"][:4]]


def test_a_chat_answer_ends_with_its_fence(session):
    assert written(session, "x", "qtk", "model") == [WRITES["`"][:3]]


def test_the_other_harnesses_rules_stop_where_those_say(session):
    # bigcode stops at "\nprint", "\ndef" and "\n#", wherever in a token they end; codefuse never.
    assert written(session, "abc", "bigcode") == [WRITES["a"][:2], WRITES["b"][:4], WRITES["c"][:2]]


def test_codefuse_rules_never_stop(session):
    assert written(session, "ab", "codefuse:13b") == [whole("a"), whole("b")]
