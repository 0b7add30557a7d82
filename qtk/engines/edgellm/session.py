"""A TensorRT Edge-LLM engine through NVIDIA's runtime, in a process of Edge-LLM's own environment (edgellm_worker.py).

UNTESTED on hardware. The runtime takes text, not token ids: a prompt is given as its text, and what the runtime counts
must be what was meant. Tokens are handed on when the call is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qtk.engines.description import EngineDescription
from qtk.engines.edgellm.tools import INSTALL, edgellm_bin
from qtk.engines.sessions.sampling import row_seeds
from qtk.engines.sessions.session import EngineSession, Generation, OnToken
from qtk.engines.target_machine import gpu_reasons
from qtk.errors import InputError, MachineError, listing

WORKER = Path(__file__).with_name("worker.py")
_WORD = re.compile(r" ?[A-Za-z]+")


class EdgeLlmSession(EngineSession):
    """Owns the worker; a second one is started where end-of-sequence is to be ignored, which is a process's setting."""

    prompt_bound = True

    def __init__(self, directory: Path, description: EngineDescription) -> None:
        super().__init__(directory, description)
        tools = edgellm_bin()
        reasons = gpu_reasons(description)
        if tools is None:
            reasons.append(f"tensorrt-edgellm is not found: {INSTALL}")
        if tools is None or reasons:
            raise MachineError(f"{directory} cannot run here:\n{listing(reasons)}")
        self._python = tools / "python"
        self._worker: subprocess.Popen[str] | None = None
        self._ignores_eos = False
        self.prompt_ids = self._words()

    def _words(self) -> np.ndarray:
        """Ids of whole words: a row of them is read back from its text as the same ids.

        Each is tried behind another of its kind, because some tokenizers (SentencePiece) drop the space of a first word.
        """
        texts = {token: self.tokenizer.decode([token]) for token in range(self.vocab_size)}
        words = [token for token, text in texts.items() if _WORD.fullmatch(text)]
        again = self.tokenizer.encode_batch([self.tokenizer.decode([token, token]) for token in words])
        kept = [token for token, ids in zip(words, again, strict=True) if ids == [token, token]]
        # Any two must stay apart, which those without a space of their own do not.
        spaced = [token for token in kept if self.tokenizer.decode([token, token]).count(" ") >= 1]
        return np.array(spaced, np.int64)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        stop: Collection[int] | None = None,
        ignore_eos: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        on_token: OnToken | None = None,
    ) -> Generation:
        self.check_call(prompts, max_new_tokens)
        ends = self.ends(stop, ignore_eos)
        texts = [self.tokenizer.decode(row, skip_special=False) for row in prompts]
        call = {"prompts": texts, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        answer = self._ask({**call, "seeds": row_seeds(seed, len(prompts))}, ignore_eos)
        tokens: list[list[int]] = []
        finish: list[Literal["stop", "length"]] = []
        for number, (row, got) in enumerate(zip(prompts, answer["rows"], strict=True)):
            if got["prompt_tokens"] != len(row):
                raise InputError(
                    f"Edge-LLM reads the text of row {number} as {got['prompt_tokens']} tokens, and it has {len(row)}: its "
                    "tokenizer differs from the engine's, or the row is no plain text."
                )
            kept: list[int] = []
            ended = bool(got["stopped"])
            for token in got["tokens"]:
                if token in ends:
                    ended = True
                    break
                kept.append(token)
                if on_token is not None and on_token(number, token):
                    ended = True
                    break
            tokens.append(kept)
            finish.append("stop" if ended else "length")
        first, *later = answer["seconds"] or [0.0]
        return Generation(tokens, finish, first, later)

    def _ask(self, call: dict[str, Any], ignore_eos: bool) -> dict[str, Any]:
        if self._worker is None or self._ignores_eos != ignore_eos:
            self._start(ignore_eos)
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # where it has ended: _answer finds that and tells
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
    """The worker ends when its input does; one that does not is killed."""
    if worker.stdin is not None and not worker.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
    try:
        worker.wait(timeout=10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
