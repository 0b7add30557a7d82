"""What a recipe may hold: the options of every stage in one YAML file, each the options model of the room that does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qtk.adapters.options import MergeOptions
from qtk.bench.accuracy.options import AccuracyOptions, ModelOptions
from qtk.bench.options import DivergenceOptions, LatencyOptions, SampleOptions, parse_shapes
from qtk.calibration.options import CalibrationOptions
from qtk.calibration.sources import FILE_ENDINGS, STANDARD_LIBRARY
from qtk.engines.options import BuildOptions
from qtk.errors import InputError
from qtk.finetuning.options import FinetuneOptions
from qtk.quantization.options import QuantizeOptions
from qtk.release.gates import Gate
from qtk.shipped import shipped_names
from qtk.targets.gpu import gpu_profile, is_profile_file

RECIPE_COPY = "recipe.yaml"  # the name of the recipe in its run's directory
_DEMO = "demo:"
DEMO_MODEL = f"{_DEMO}smollm2-135m-instruct"  # the packaged model of the demo


class FinetuneStage(FinetuneOptions):
    """The options of finetune. The paths of data are relative to the recipe."""

    data: tuple[str, ...] = Field(min_length=1, description=FinetuneOptions.model_fields["data"].description)

    def finetune_options(self, recipe_dir: Path) -> FinetuneOptions:
        """Those that `finetune` takes; paths are joined to the recipe's directory."""
        data = tuple(text if text == STANDARD_LIBRARY else str(recipe_dir / text) for text in self.data)
        return FinetuneOptions(**{**self.model_dump(), "data": data})


class QuantizeStage(QuantizeOptions, CalibrationOptions):
    """The options of quantize: the algorithm's and the calibration text's. Paths are relative to the recipe."""

    def quantize_options(self, recipe_dir: Path) -> QuantizeOptions:
        """Those that say how weights are rounded; the path of a GPU profile is joined to the recipe's directory."""
        options = QuantizeOptions(**self.model_dump(include=set(QuantizeOptions.model_fields)))
        return options.model_copy(update={"gpu": options.gpu and profile_beside(recipe_dir, options.gpu)})

    def calibration_options(self, recipe_dir: Path) -> CalibrationOptions:
        """Those that say on which text; a file's path is joined to the recipe's directory."""
        options = CalibrationOptions(**self.model_dump(include=set(CalibrationOptions.model_fields)))
        return options.model_copy(update={"calibration": beside(recipe_dir, options.calibration)})


class BuildStage(BuildOptions):
    """The options of build-engine, and whether the float model becomes an engine too, for comparison."""

    float_engine: bool = Field(True, description="Build an engine of the float model as well, to compare with.")

    @field_validator("gpu")
    @classmethod
    def _known_gpu(cls, name: str) -> str:
        if is_profile_file(name):
            return name  # read when its step runs: the path is relative to the recipe
        try:
            return gpu_profile(name).name
        except InputError as error:
            raise ValueError(str(error)) from None

    def build_options(self, recipe_dir: Path) -> BuildOptions:
        """Those that `build_engine` takes; the path of a GPU profile is joined to the recipe's directory."""
        options = BuildOptions(**self.model_dump(exclude={"float_engine"}))
        tools = options.edgellm_bin and recipe_dir / options.edgellm_bin.expanduser()
        return options.model_copy(update={"gpu": profile_beside(recipe_dir, options.gpu), "edgellm_bin": tools})


class LatencyStage(LatencyOptions):
    """The options of bench latency, the shapes checked when the recipe is read."""

    @field_validator("shapes")
    @classmethod
    def _readable_shapes(cls, shapes: str) -> str:
        try:
            parse_shapes(shapes)
        except InputError as error:
            raise ValueError(str(error)) from None
        return shapes


class AccuracyStage(AccuracyOptions, ModelOptions):
    """The options of bench accuracy: what is scored, and how the model is asked. `data` is relative to the recipe."""

    def accuracy_options(self, recipe_dir: Path) -> AccuracyOptions:
        """Those that say what is scored."""
        options = AccuracyOptions(**self.model_dump(include=set(AccuracyOptions.model_fields)))
        suites = tuple(str(recipe_dir / it) if _is_suite_file(it) else it for it in options.suite)
        data = None if options.data is None else recipe_dir / options.data
        return options.model_copy(update={"suite": suites, "data": data})

    def model_options(self) -> ModelOptions:
        """Those that say how the model is asked."""
        return ModelOptions(**self.model_dump(include=set(ModelOptions.model_fields)))


class BenchStages(BaseModel):
    """The measurements. One that is left out is not taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: SampleOptions | None = None
    latency: LatencyStage | None = None
    divergence: DivergenceOptions | None = None
    accuracy: AccuracyStage | None = None


class Recipe(BaseModel):
    """One release: a model, its adapters, and what is done with them. Stages that are left out are not run.

    `model` and `adapters` name a directory, relative to the recipe's file, or a model on the Hugging Face hub
    ("organisation/name", "organisation/name@revision"); `model` also what qtk makes by itself for its demo (`DEMO_MODEL`).
    The adapter of `finetune` is merged first, then `adapters`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="What the run is called: letters, digits, dots, dashes."
    )
    description: str = Field("", description="A sentence about it.")
    model: str = Field(min_length=1, description="The float model: a directory or a model on the hub.")
    adapters: tuple[str, ...] = Field((), description="Adapters to merge into it: directories, or ids on the hub.")
    first_look: bool = Field(
        False,
        description="Before any long step, round the model itself to INT4, build its engine and let it say a line of text.",
    )
    finetune: FinetuneStage | None = None
    merge: MergeOptions = MergeOptions()
    quantize: QuantizeStage | None = None
    build: BuildStage | None = None
    bench: BenchStages = BenchStages()
    gates: tuple[Gate, ...] = ()

    @field_validator("model")
    @classmethod
    def _known_demo_model(cls, text: str) -> str:
        return _known(text, DEMO_MODEL)

    @field_validator("adapters")
    @classmethod
    def _no_demo_adapters(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if any(is_demo_source(text) for text in texts):
            raise ValueError("qtk makes no adapter by itself; `finetune` trains one")
        return texts


class RecipeText(Recipe):
    """What a recipe's file may say: a recipe, and how it is put together. `extends` and `variables` are gone once it is read."""

    extends: str | None = Field(
        None,
        description="The recipe that this one changes: the name of one that travels with qtk, or a path that begins beside this "
        "file. Mappings are merged, lists and values replaced; null takes away what is inherited.",
        json_schema_extra={"names": "recipes"},
    )
    variables: dict[str, Any] = Field(
        {}, description="Values by name; ${name} stands for them everywhere else in the recipe, and in what extends it."
    )


def is_demo_source(text: str) -> bool:
    """Whether a recipe's source is one that qtk makes by itself."""
    return text.startswith(_DEMO)


def _known(text: str, name: str) -> str:
    if is_demo_source(text) and text != name:
        raise ValueError(f"what qtk makes by itself here is {name}")
    return text


def beside(recipe_dir: Path, text: str) -> str:
    """A text source as the rooms take it: a file's path is joined to the recipe's directory, any other name is kept."""
    file = text_file(recipe_dir, text)
    return text if file is None else str(file)


def profile_beside(recipe_dir: Path, gpu: str) -> str:
    """A GPU as the rooms take it: the path of a profile is joined to the recipe's directory, a name is kept."""
    return str(recipe_dir / gpu) if is_profile_file(gpu) else gpu


def is_place(name: str, recipe_dir: Path, text: str) -> bool:
    """Whether the field called `name` (dotted, without the numbers of lists) holds a path in `text`, and not the name of something."""
    return name in _PLACES and _PLACES[name](recipe_dir, text)


def is_baseline_file(text: str) -> bool:
    """Whether a gate's baseline is a path, and not the name of one that travels with qtk."""
    return text not in shipped_names("bench/baselines")


def text_file(recipe_dir: Path, text: str) -> Path | None:
    """The file that a text source names: it exists, or its name ends like a text file's. None for the name of a data set,
    which may contain a dot as well ("org/set-v1.5")."""
    path = recipe_dir / text
    return path if path.is_file() or path.suffix in (*FILE_ENDINGS, ".json") else None


def contradictions(recipe: Recipe) -> list[str]:
    """What each field allows by itself, but not all of them together."""
    found = []
    adapters = len(recipe.adapters) + (recipe.finetune is not None)
    if recipe.merge.weight and len(recipe.merge.weight) != adapters:
        found.append(f"merge.weight: {len(recipe.merge.weight)} weights for {adapters} adapters")
    if recipe.bench.latency is not None and recipe.build is None:
        found.append("bench.latency: there is no `build`, so there is no engine to measure")
    if recipe.first_look and (recipe.build is None or recipe.quantize is None or recipe.bench.sample is None):
        found.append("first_look: it needs `quantize`, `build` and `bench.sample`, whose settings it takes")
    if recipe.bench.sample is not None and recipe.build is None:
        found.append("bench.sample: there is no `build`, so there is no engine to ask")
    if recipe.bench.divergence is not None and recipe.quantize is None:
        found.append("bench.divergence: there is no `quantize`, so nothing diverges from the float model")
    if recipe.bench.accuracy is not None and recipe.build is None:
        found.append("bench.accuracy: there is no `build`, so there is no engine to ask")
    if recipe.bench.accuracy is not None and recipe.bench.accuracy.compat == "codefuse":
        found.append(
            "bench.accuracy.compat: name the processor of a model's answers, codefuse:13b or codefuse:llama34b"
        )
    if recipe.build is not None and recipe.quantize is None and not recipe.build.float_engine:
        found.append("build.float_engine: false, and there is no `quantize`, so there is no engine to build")
    return found


def _is_suite_file(text: str) -> bool:
    """Whether an entry of `suite`, FILE or FILE:LANGUAGES, is not the name of a suite."""
    return text.partition(":")[0].endswith((".yaml", ".yml"))


def _source(recipe_dir: Path, text: str) -> bool:
    return text.startswith(".") or (recipe_dir / text).is_dir()


def _text(recipe_dir: Path, text: str) -> bool:
    return text_file(recipe_dir, text) is not None


_PLACES: dict[str, Callable[[Path, str], bool]] = {
    "model": _source,
    "adapters": _source,
    "finetune.data": lambda _, text: text != STANDARD_LIBRARY,
    "quantize.calibration": _text,
    "quantize.gpu": lambda _, text: is_profile_file(text),
    "build.gpu": lambda _, text: is_profile_file(text),
    "build.edgellm_bin": lambda _, text: True,
    "bench.divergence.data": _text,
    "bench.accuracy.data": lambda _, text: True,
    "bench.accuracy.suite": lambda _, text: _is_suite_file(text),
    "gates.baseline": lambda _, text: is_baseline_file(text),
}
