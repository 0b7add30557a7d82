"""Runs a TensorRT Edge-LLM engine with NVIDIA's runtime, in a process of Edge-LLM's own environment (worker.py).

UNTESTED on hardware. The runtime takes text, not token ids: a prompt is handed over as its text, and the runtime's count of
its tokens must equal ours. Tokens come when the call is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtk.engines.description import EngineDescription
from qtk.engines.edgellm.tools import INSTALL, edgellm_bin
from qtk.engines.sessions.decoding import GREEDY, Decoding
from qtk.engines.sessions.session import EngineSession, GeneratedRows, Generation, OnToken
from qtk.engines.target_machine import gpu_reasons
from qtk.errors import InputError, MachineError, listing

WORKER = Path(__file__).with_name("worker.py")
_WORD = re.compile(r" ?[A-Za-z]+")


class EdgeLlmSession(EngineSession):
    """Owns the worker process. Whether it ignores end-of-sequence is fixed when it starts, so a call that wants the other
    behaviour starts another worker."""

    prompt_bound = True

    def __init__(self, directory: Path, description: EngineDescription) -> None:
        super().__init__(directory, description)
        tools = edgellm_bin()
        reasons = gpu_reasons(description)
        if tools is None:
            reasons.append(f"tensorrt-edgellm is not installed: {INSTALL}")
        if tools is None or reasons:
            raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")
        self._python = tools / "python"
        self._worker: subprocess.Popen[str] | None = None
        self._ignores_eos = False
        self.prompt_ids = self._words()

    def _words(self) -> np.ndarray:
        """Ids of whole words, whose text is tokenized into the same ids again.

        Each word is tried behind itself, because some tokenizers (SentencePiece) drop the space of the first word.
        """
        texts = {token: self.tokenizer.decode([token]) for token in range(self.vocab_size)}
        words = [token for token, text in texts.items() if _WORD.fullmatch(text)]
        again = self.tokenizer.encode_batch([self.tokenizer.decode([token, token]) for token in words])
        kept = [token for token, ids in zip(words, again, strict=True) if ids == [token, token]]
        # Any two words must stay apart, so words that bring no space of their own are left out.
        spaced = [token for token in kept if self.tokenizer.decode([token, token]).count(" ") >= 1]
        return np.array(spaced, np.int64)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        decoding: Decoding = GREEDY,
        on_token: OnToken | None = None,
    ) -> Generation:
        self.check_call(prompts, max_new_tokens)
        call = {
            "prompts": [self.tokenizer.decode(row, skip_special=False) for row in prompts],
            "max_new_tokens": max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seeds": decoding.row_seeds(len(prompts)),
        }
        answer = self._ask(call, decoding.ignore_eos)
        generated = GeneratedRows(len(prompts), self.ends(decoding), on_token)
        for number, (prompt, row) in enumerate(zip(prompts, answer["rows"], strict=True)):
            if row["prompt_tokens"] != len(prompt):
                raise InputError(
                    f"Edge-LLM reads the text of row {number} as {row['prompt_tokens']} tokens, but the row has "
                    f"{len(prompt)}: its tokenizer differs from the engine's, or the row is not plain text."
                )
            for token in row["tokens"]:
                generated.take(number, token)
            if row["stopped"]:
                generated.end(number)
        first, *later = answer["seconds"] or [0.0]
        return Generation(generated.tokens, generated.finish, first, later)

    def _ask(self, call: dict[str, Any], ignore_eos: bool) -> dict[str, Any]:
        if self._worker is None or self._ignores_eos != ignore_eos:
            self._start(ignore_eos)
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has ended: _answer reports that
            worker.stdin.write(json.dumps(call) + "\n")
            worker.stdin.flush()
        return self._answer()

    def _start(self, ignore_eos: bool) -> None:
        if self._worker is not None:
            _end(self._worker)
        engine = next((self.directory / "engine").rglob("*.engine"), None)
        if engine is None:
            raise InputError(f"{self.directory} is incomplete: it holds no *.engine. Build the engine again.")
        self._worker = subprocess.Popen(
            [str(self._python), str(WORKER), str(engine.parent), str(self.directory / "checkpoint")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **({"EDGELLM_IGNORE_EOS": "1"} if ignore_eos else {})},
        )
        self._ignores_eos = ignore_eos
        weakref.finalize(self, _end, self._worker)
        self._answer()

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id; None while there is no worker."""
        return None if self._worker is None else self._worker.pid

    def close(self) -> None:
        if self._worker is not None:
            _end(self._worker)
            self._worker = None

    def _answer(self) -> dict[str, Any]:
        worker = self._worker
        assert worker is not None
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            self._worker = None
            raise MachineError(f"Edge-LLM's runtime ended with exit code {worker.wait()}; its messages are above.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MachineError(f"Edge-LLM's runtime could not run the call: {answer['error']}")
        return answer


def _end(worker: subprocess.Popen[str]) -> None:
    """Closes the worker's input, at which it ends; kills a worker that does not."""
    if worker.stdin is not None and not worker.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
    try:
        worker.wait(timeout=10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
