"""What `import qtk` gives besides `qtk.bench`: each function is what the command of its name runs.

Loads nothing heavy before a function is called. Models, engines and results are directories, given as paths; the errors are
those of `qtk.errors`. Progress goes to stderr (`qtk.progress.silence_progress` turns it off).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, overload

from pydantic import ValidationError

from qtk.adapters.options import MergeOptions
from qtk.calibration.options import CalibrationOptions
from qtk.engines.options import BuildOptions, PlanOptions
from qtk.engines.sessions.options import GenerateOptions
from qtk.errors import InputError
from qtk.quantization.options import QuantizeOptions

if TYPE_CHECKING:
    import numpy as np

    from qtk.adapters.merge import MergeResult
    from qtk.checkpoint.manifest import Finding
    from qtk.engines.description import EngineDescription
    from qtk.engines.plan import EnginePlan
    from qtk.engines.sessions.session import EngineSession
    from qtk.engines.sessions.text import TextResult
    from qtk.quantization.report import QuantizeReport
    from qtk.recipes.recipe_run import Mode, RunOutcome


def merge(
    base: str | Path,
    adapters: str | Path | Sequence[str | Path],
    out: str | Path,
    options: MergeOptions = MergeOptions(),
    *,
    overwrite: bool = False,
) -> MergeResult:
    """Merges one LoRA, rsLoRA or DoRA adapter, or several, into the float model `base`, streaming, into the directory `out`.

    InputError, with every reason, for inputs that are broken or do not fit; MachineError for a full disk.
    """
    from qtk.finetuning.merge_deployed import merge_adapters

    several = [adapters] if isinstance(adapters, str | Path) else adapters
    return merge_adapters(Path(base), [Path(adapter) for adapter in several], Path(out), options, overwrite=overwrite)


def quantize(
    model: str | Path,
    out: str | Path,
    options: QuantizeOptions = QuantizeOptions(),
    calibration: CalibrationOptions = CalibrationOptions(),
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> QuantizeReport:
    """Quantizes a float model into the directory `out`. A run that is stopped leaves `out`.partial, where `resume` goes on.

    InputError, before any work, for a model or settings that cannot be quantized so; MachineError for a disk without room.
    """
    from qtk.quantization.quantize import quantize_model

    return quantize_model(Path(model), Path(out), options, calibration, overwrite=overwrite, resume=resume)


def plan(model: str | Path, options: PlanOptions = PlanOptions()) -> EnginePlan:
    """Whether the engine of a model fits its GPU, by parts, and the bound on its speed. config.json is enough.

    `refusals` of the result holds every reason why it cannot be built. InputError for options that no engine can have.
    """
    from qtk.engines.plan import plan_engine

    return plan_engine(model, options)


def build_engine(
    model: str | Path, out: str | Path, options: BuildOptions = BuildOptions(), *, overwrite: bool = False
) -> EngineDescription:
    """Builds the engine of a float or quantized model, or of a prepared directory, into the directory `out`.

    InputError, with every reason, for what the backend cannot take; MachineError when this machine lacks what it needs.
    """
    from qtk.engines.build import build_engine as build

    return build(model, out, options, overwrite=overwrite)


def open_engine(engine: str | Path, *, threads: int | None = None) -> Engine:
    """Opens an engine directory. threads: to compute with; None takes every usable core.

    InputError for what is not a built engine; MachineError when its runtime or its GPU is absent.
    """
    from qtk.engines.sessions.session import open_session

    return Engine(open_session(engine, threads))


class Engine:
    """An open engine, for text in and out. A context manager; not for several threads at once, since it owns one cache.

    `session` is the engine for token ids: `session.generate`, `session.limits`, `session.description`.
    """

    def __init__(self, session: EngineSession) -> None:
        self.session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases what the runtime holds. Nothing can be generated afterwards."""
        self.session.close()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str as well
        self,
        prompts: str,
        *,
        max_new_tokens: int = ...,
        chat_format: Literal["none", "model", "codefuse"] = ...,
        system: str | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        on_text: Callable[[str], None] | None = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = ...,
        chat_format: Literal["none", "model", "codefuse"] = ...,
        system: str | None = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int | None = ...,
        on_text: Callable[[str], None] | None = ...,
    ) -> list[str]: ...

    def generate(
        self, prompts: str | Sequence[str], *, on_text: Callable[[str], None] | None = None, **settings: object
    ) -> str | list[str]:
        """The text that follows a prompt, or each of several prompts. The settings are those of `qtk generate`.

        chat_format: "model" renders the prompt as a user's message in the model's chat template. temperature 0 takes the
        most likely token. on_text is given the text of the first prompt in pieces as it comes. InputError for settings out
        of range and prompts that the engine cannot hold.
        """
        if isinstance(prompts, str):
            return self.generate_rows([prompts], _generate_options(settings), on_text=on_text).rows[0].text
        return [row.text for row in self.generate_rows(prompts, _generate_options(settings), on_text=on_text).rows]

    def generate_rows(
        self,
        prompts: Sequence[str],
        options: GenerateOptions = GenerateOptions(),
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> TextResult:
        """As `generate`, with the tokens, the reason why each row ended, and the times."""
        from qtk.engines.sessions.text import generate_text

        return generate_text(self.session, prompts, options, on_text=on_text)

    def logits(self, text: str | Sequence[int]) -> np.ndarray:
        """Logits [tokens, vocabulary], float32, at every position of a text (with the tokens that the tokenizer puts in front
        of it) or of token ids. InputError where the engine's runtime gives tokens only, or cannot hold the text."""
        from qtk.engines.sessions.session import DecoderSession

        if not isinstance(self.session, DecoderSession):
            backend = self.session.description.backend
            raise InputError(f"Engines of the backend {backend} give tokens and no logits.")
        ids = self.session.tokenizer.encode(text, special=True) if isinstance(text, str) else text
        return self.session.logits([ids])[0]


def run(
    recipe: str | Path,
    out: str | Path | None = None,
    *,
    settings: Sequence[str] = (),
    mode: Mode = "new",
    first_stage: str | None = None,
    last_stage: str | None = None,
) -> RunOutcome:
    """Runs a recipe, a YAML file or the name of one that travels with qtk, into `out` (default: runs/NAME).

    mode: "new" refuses a directory that holds a run, "resume" does what is missing or out of date, "overwrite" does everything
    again. settings: KEY=VALUE, as --set. first_stage, last_stage: as --from and --until.

    InputError for a recipe that is wrong; a step's error names the step.
    """
    from qtk.recipes.reading import find_recipe, resolve_recipe
    from qtk.recipes.recipe_run import run_recipe

    resolved = resolve_recipe(find_recipe(str(recipe)), settings)
    run_dir = Path("runs") / resolved.recipe.name if out is None else Path(out)
    return run_recipe(resolved, run_dir, mode=mode, first_stage=first_stage, last_stage=last_stage)


def verify(directory: str | Path) -> list[Finding]:
    """Every file of a directory or a run, and of its inputs back to the first, checked against the manifests.

    A finding with `bad` was changed, is missing, or is not recorded. InputError for a directory without a manifest.
    """
    from qtk.checkpoint.manifest import verify_chain
    from qtk.recipes.finished_run import is_run, verify_run

    place = Path(directory)
    return verify_run(place) if is_run(place) else verify_chain(place)


def _generate_options(settings: dict[str, object]) -> GenerateOptions:
    """The options of a generation. InputError with every complaint about a setting."""
    try:
        return GenerateOptions.model_validate(settings)
    except ValidationError as error:
        complaints = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(f"The settings of generate are wrong: {'; '.join(complaints)}.") from None
