"""A set of multiple-choice questions as its suite's YAML declares it: where the data is, and how the questions are asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from qtk.bounded.files import name_inside


class HubSource(BaseModel):
    """Where the same rows are on the Hugging Face hub: a data set's id, configuration and split.

    subjects: the configurations, one a subject (then `name` is not given).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    id: str
    name: str | None = None
    split: str
    shots_split: str | None = None
    subjects: tuple[str, ...] = ()


class ChoiceSet(BaseModel):
    """A set of questions with a few options each.

    file: below the data folder; a folder if every subject has a file of its own (`shots_file`: the folder of the
    examples). questions: how many there should be. reader: the code that turns the rows into fields for the templates and
    options. labels: the data's names for each option, in all spellings; rows with another label have no answer and are
    left out. options: the texts of the options, if they are the same in all questions. ask, cue, text: Jinja templates
    over the row's fields. To generate, the model is shown `ask`, the lettered options, and `cue`. By perplexity, it reads
    `text` once for each option (with {{ option }}, {{ letter }}, and {{ prompt }}, which is what it is shown to generate);
    if `text` is a list, it reads the entry of that option. shots: examples in front of a question. pick: how a letter is
    found in an answer. mean: over all questions, or over the subjects' means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    title: str
    file: Annotated[str, AfterValidator(name_inside)]
    shots_file: Annotated[str, AfterValidator(name_inside)] | None = None
    hub: HubSource | None = None
    questions: int
    reader: Literal["rows", "idiom", "dialogue", "pronoun", "science", "subjects"] = "rows"
    label: str = "label"
    labels: tuple[tuple[str, ...], ...] = ()
    options: tuple[str, ...] = ()
    ask: str
    cue: str
    text: str | tuple[str, ...]
    shots: int = Field(0, ge=0)
    pick: Literal["first_capital", "first_option"]
    mean: Literal["questions", "subjects"] = "questions"
    answer_tokens: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> ChoiceSet:
        if self.labels and self.options and len(self.labels) != len(self.options):
            raise ValueError(f"{len(self.labels)} labels for {len(self.options)} options")
        if self.shots and self.shots_file is None:
            raise ValueError("shots need a shots_file")
        return self
