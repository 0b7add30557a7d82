"""What engines say: the text with which each continues the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qtk.bench.options import SampleOptions
from qtk.bench.sample_result import SampleResult, SampleText
from qtk.engines.sessions.options import GenerateOptions
from qtk.engines.sessions.session import open_session
from qtk.engines.sessions.text import generate_text
from qtk.progress import note


def sample_engines(engines: Sequence[Path], options: SampleOptions) -> SampleResult:
    """Asks each engine in turn, and says each text on stderr as soon as it is there. Errors as of `open_session` and
    `generate_text`."""
    texts: list[SampleText] = []
    generate = GenerateOptions(
        max_new_tokens=options.max_new_tokens, chat_format=options.chat_format, threads=options.threads
    )
    for engine in engines:
        with open_session(engine, options.threads) as session:
            for prompt in options.prompts:
                (row,) = generate_text(session, [prompt], generate).rows
                texts.append(SampleText(engine=engine.resolve().name, prompt=prompt, text=row.text))
                note(f"{texts[-1].engine} says: {prompt + row.text!r}")
    return SampleResult(options=options, texts=tuple(texts))
