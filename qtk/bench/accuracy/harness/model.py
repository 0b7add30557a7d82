"""An engine as a model of lm-evaluation-harness, so that its tasks run on what is shipped and not on the float model.

Needs the extra `eval`; imported only when such a task is run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from qtk.bench.accuracy.answer_source import AskedModel
from qtk.bench.accuracy.log_probabilities import scored_tokens
from qtk.bench.accuracy.options import ModelOptions
from qtk.bench.accuracy.programs.generation import TextRequest, generated_texts
from qtk.errors import InputError
from qtk.progress import Progress

_DEFAULT_NEW_TOKENS = 256
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class EngineLM(TemplateLM):
    """The three kinds of request of lm-evaluation-harness, answered by a session.

    A request that is too long loses its beginning, as with every model of that harness; `cut` counts those.
    """

    def __init__(self, model: AskedModel) -> None:
        super().__init__()
        session = model.session
        self.session, self.options = session, model.options
        self.cut = 0
        text = session.tokenizer
        bos, eos = text.special_token("bos_token"), text.special_token("eos_token")
        self._bos_text = bos or ""
        ends = text.eos_ids or session.description.stop_tokens
        if not ends:
            raise InputError(f"{session.directory} lacks an end-of-sequence token, which lm-evaluation-harness needs.")
        self._eot = text.encode(eos)[0] if eos else ends[0]
        self._prefix = text.encode(bos)[0] if bos else self._eot

    @property
    def eot_token_id(self) -> int:
        return self._eot

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int:
        return self.session.limits.max_positions

    @property
    def tokenizer_name(self) -> str:
        return str(self.session.directory).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Tells cached requests apart, no more: the template in use is always the model's own."""
        return "model" if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.session.tokenizer.render(chat_history, "model", generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]  # the model continues it, so what the template puts after it is dropped
        return text[: text.rindex(last) + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        special = add_special_tokens
        if special is None:  # the tokenizer's own special tokens, unless a chat template has written them already
            special = not (self._bos_text and string.startswith(self._bos_text))
        return self.session.tokenizer.encode(string, special=special)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # qtk shows its own bar
        return results

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts, starts = [], []
        for _, context, continuation in requests:
            # The last token is never an input, so a text may have one token more than the engine holds.
            whole = [*context, *continuation][-(self.max_length + 1) :]
            self.cut += len(whole) < len(context) + len(continuation)
            texts.append(whole)
            starts.append(max(1, len(whole) - len(continuation)))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        with Progress("lm-eval: likelihoods", len(texts), "texts") as progress:
            for index, values, likeliest in scored_tokens(self.session, texts, starts):
                results[index] = (float(values.sum()), bool(likeliest.all()))
                progress.advance(1)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        results = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            settings = requests[numbers[0]].args[1]
            stops, length, options = self._settings(settings)
            ended = functools.partial(_has_stop, stops)
            prompts = [self._room(self.tok_encode(requests[number].args[0]), length) for number in numbers]
            texts = [TextRequest(f"lm-eval {place}", prompt, ended) for place, prompt in enumerate(prompts)]
            for place, text in generated_texts(self.session, texts, length, options, "lm-eval: generating"):
                results[numbers[place]] = functools.reduce(lambda kept, stop: kept.split(stop)[0], stops, text)
        return results

    def _settings(self, settings: dict[str, Any]) -> tuple[list[str], int, ModelOptions]:
        """Stop strings, most new tokens and the options of a request's generation settings."""
        until = settings.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        length = next((settings[name] for name in _LENGTH_NAMES if settings.get(name) is not None), _DEFAULT_NEW_TOKENS)
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        changes = {"temperature": temperature, "top_p": float(settings.get("top_p") or 1.0)}
        return stops, int(length), self.options.model_copy(update=changes)

    def _room(self, prompt: list[int], length: int) -> list[int]:
        room = self.max_length - length
        if room < 1:
            raise InputError(f"The engine holds {self.max_length} tokens, but the task asks for {length} new ones.")
        self.cut += len(prompt) > room
        return prompt[-room:]


def _has_stop(stops: Sequence[str], text: str, piece: str) -> bool:
    return bool(piece) and any(stop in text for stop in stops)
