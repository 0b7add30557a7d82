"""What each step of a recipe takes on this machine: time, memory, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qtk.bench.options import parse_shapes
from qtk.engines.forecast import (
    QuantizationWork,
    Rates,
    StepForecast,
    build_forecast,
    merge_forecast,
    quantize_forecast,
)
from qtk.errors import MachineError
from qtk.peak_memory import resident_bytes
from qtk.recipes.planned_model import PlannedEngine, PlannedModel
from qtk.recipes.schema import Recipe
from qtk.recipes.steps import RecipeStep

_FLOAT_BYTES = 4  # of a value of an adapter
_TRAINED_LEN = 4096  # tokens of a row in training, at the most, where nothing is said
_LOGITS = 6 * 64_000_000  # of a divergence, alive at one time
_CHECKPOINT_ROWS = 4  # of each text, in an engine's divergence from its own checkpoint
# Beyond reading the weights once: seconds for a weight of an INT4 product on one core, measured with SmolLM2-135M on a Zen 3.
_INT4_SECONDS = 2.0e-10


@dataclass(frozen=True)
class Takes:
    """What a step takes; None where that is not known. Seconds; bytes. at_most: the time is a bound, because answers may end early."""

    seconds: float | None = None
    memory: int | None = None
    written: int | None = None
    scratch: int = 0
    at_most: bool = False


@dataclass(frozen=True)
class Forecasts:
    """Answers for the steps of one recipe. tasks: how many programs its suites ask for; None where they ask for something else, or are
    not here."""

    recipe: Recipe
    model: PlannedModel
    rates: Rates
    tasks: int | None = None

    def of(self, step: RecipeStep) -> Takes:
        """Of a step as a whole, as if nothing of it was done yet."""
        by_stage: dict[str, Callable[[RecipeStep], Takes]] = {
            "finetune": self._finetune,
            "merge": self._merge,
            "quantize": self._quantize,
            "build": self._build,
            "sample": self._sample,
            "latency": self._latency,
            "divergence": self._divergence,
            "accuracy": self._accuracy,
        }
        if step.name == "first-look":
            return self._first_look()
        if step.name == "model":
            return Takes(written=self.model.size.float_bytes)
        return by_stage[step.stage](step) if step.stage in by_stage else Takes()

    def _finetune(self, step: RecipeStep) -> Takes:
        """A bound of the time where the number of steps is given: every row as long as it may be."""
        options, spec = self.recipe.finetune, self.model.size.spec
        assert options is not None
        adapted = [
            it for it in spec.linears() if not options.target_modules or it.name.endswith(options.target_modules)
        ]
        factors = sum(it.in_features + it.out_features for it in adapted) * options.rank * spec.num_layers
        if options.max_steps is None:
            return Takes(written=_FLOAT_BYTES * factors)
        tokens = options.max_steps * options.batch_size * min(options.seq_len or _TRAINED_LEN, spec.max_positions)
        passes = (
            3 if options.gradient_checkpointing else 2
        )  # forward, and back to the inputs: the base itself does not learn
        return Takes(seconds=passes * tokens * self._scored(), written=_FLOAT_BYTES * factors, at_most=True)

    def _merge(self, step: RecipeStep) -> Takes:
        return _takes(merge_forecast(self.model.size, self.model.rank, self.rates))

    def _quantize(self, step: RecipeStep) -> Takes:
        assert self.model.work is not None
        return self._quantization(self.model.work)

    def _quantization(self, work: QuantizationWork) -> Takes:
        try:
            return _takes(quantize_forecast(self.model.size, work, self.rates))
        except MachineError:  # --memory is too little, which is said among what the machine lacks
            return Takes(written=self.model.size.quantized_bytes)

    def _build(self, step: RecipeStep) -> Takes:
        engine, size = self.model.engines[step.name], self.model.size
        read = size.quantized_bytes if engine.request.scheme.quantized else size.float_bytes
        takes = _takes(build_forecast(size, self.rates, read=read, written=engine.weights.total))
        # How long another runtime's compiler takes, and in how much memory, follows from nothing here.
        return takes if engine.backend == "onnxruntime" else Takes(written=takes.written)

    def _first_look(self) -> Takes:
        """Rounding, building, a line of text; nothing of it stays but the text."""
        work = QuantizationWork("rtn", "fast", 0, 0)
        parts = [self._quantization(work), Takes(), self._sample(None)]
        if "build" in self.model.engines and self.model.engines["build"].backend == "onnxruntime":
            parts[1] = _takes(build_forecast(self.model.size, self.rates))
        return Takes(
            seconds=_sum(part.seconds for part in parts),
            memory=max((part.memory for part in parts if part.memory is not None), default=None),
            scratch=sum(part.written or 0 for part in parts),
        )

    def _sample(self, step: RecipeStep | None) -> Takes:
        options = self.recipe.bench.sample
        assert options is not None
        tokens = len(options.prompts) * options.max_new_tokens
        return self._on_engines(lambda engine: _times(tokens, self._token(engine)))

    def _latency(self, step: RecipeStep) -> Takes:
        options = self.recipe.bench.latency
        assert options is not None

        def seconds(engine: PlannedEngine) -> float | None:
            token, total = self._token(engine), 0.0
            if token is None:
                return None
            for entry, output in parse_shapes(options.shapes):
                call = options.batch_size * entry * self._scored() + output * token
                total += options.warmups * call + max(options.seconds, options.runs * call)
            return total

        return self._on_engines(seconds)

    def _divergence(self, step: RecipeStep) -> Takes:
        options, spec = self.recipe.bench.divergence, self.model.size.spec
        assert options is not None
        rows = len(options.data) * options.rows
        length = min(options.seq_len, spec.max_positions)
        tokens = rows * length * 2
        if step.name != "divergence":
            tokens += len(options.data) * min(options.rows, _CHECKPOINT_ROWS) * length
        block = sum(linear.out_features * linear.in_features for linear in spec.linears())
        head = spec.vocab_size * spec.hidden_size
        memory = resident_bytes() + 8 * (block + head) + _LOGITS + 8 * rows * length * spec.hidden_size
        engine = self.model.engines.get("build") if step.name != "divergence" else None
        if engine is not None and not engine.request.gpu.is_cpu:
            return Takes()
        return Takes(seconds=tokens * self._scored(), memory=memory + (engine.weights.total if engine else 0))

    def _accuracy(self, step: RecipeStep) -> Takes:
        options = self.recipe.bench.accuracy
        assert options is not None
        engine = self.model.engines[step.inputs[0]]
        token, rows = self._token(engine), engine.request.limits.max_batch
        memory = engine.request.memory.needed_bytes if engine.request.gpu.is_cpu else None
        if self.tasks is None or token is None:
            return Takes(memory=memory)
        calls = -(-self.tasks * options.samples // min(options.batch_size or rows, rows))
        return Takes(seconds=calls * options.max_new_tokens * token, memory=memory, at_most=True)

    def _on_engines(self, seconds: Callable[[PlannedEngine], float | None]) -> Takes:
        """Of a step that runs all engines, one at a time in memory."""
        engines = self.model.engines.values()
        on_cpu = [engine.request.memory.needed_bytes for engine in engines if engine.request.gpu.is_cpu]
        return Takes(seconds=_sum(seconds(engine) for engine in engines), memory=max(on_cpu, default=None))

    def _token(self, engine: PlannedEngine) -> float | None:
        """Seconds for one more token of one row; None for a GPU whose bandwidth is not known."""
        request = engine.request
        if not request.gpu.is_cpu:
            bound = request.memory.decode_bound_tokens_per_s
            return 1 / bound if bound else None
        read = engine.read_a_token / self.rates.memory
        if not request.scheme.quantized:
            return read
        return read + self.model.size.weights * _INT4_SECONDS / self.rates.threads

    def _scored(self) -> float:
        """Seconds for one token of a prompt, or of a text whose every token is scored."""
        spec = self.model.size.spec
        return (self.model.size.weights + spec.vocab_size * spec.hidden_size) / self.rates.forward


def _takes(found: StepForecast) -> Takes:
    return Takes(found.seconds, found.memory, found.written, found.scratch)


def _times(number: int, seconds: float | None) -> float | None:
    return None if seconds is None else number * seconds


def _sum(parts: Iterable[float | None]) -> float | None:
    """None where one part is not known."""
    found = list(parts)
    return None if None in found else sum(part for part in found if part is not None)
