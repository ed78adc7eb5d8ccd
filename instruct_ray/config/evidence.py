"""The `evidence` section: what the tuned model is compared with, on which rows, and the margin of the verdict."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from pydantic.functional_validators import AfterValidator

from instruct_ray.config.section import AbsolutePath, Section, UriWithoutPassword

BM25 = "bm25"
# Names of the arms that every evaluation may have; few_shot_K has any number in place of K.
ARM_PREFIXES = ("zero_shot", "few_shot", "rag", "tuned", "champion")


def _make_retriever_absolute(value: str) -> str:
    return value if value == BM25 else str(Path(value).expanduser().absolute())


class RivalConfig(Section):
    """Another model that answers the test rows, over an endpoint of OpenAI's chat completions."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")
    """Name of the arm."""
    base_url: UriWithoutPassword = Field(pattern=r"^https?://\S+$")
    """Base URL of the endpoint, such as `http://127.0.0.1:8000/v1`; `/chat/completions` is added."""
    model: str = Field(min_length=1)
    """Name of the model in its requests."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the API key; null sends none."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name.startswith(ARM_PREFIXES):
            raise ValueError(f"names that start with {', '.join(ARM_PREFIXES)} are those of the evaluation's own arms")
        return name


class BenchmarksConfig(Section):
    """Benchmarks of general skill, which `instruct-ray benchmark` runs on base and tuned model."""

    tasks: tuple[str, ...] = Field(default=("mmlu_dev",), min_length=1)
    """Names of the benchmarks. `mmlu_dev` and `mmlu_dev_letters` need no network; others are tasks or groups of lm-eval
    and most of them load their questions from the Hugging Face hub."""
    limit: PositiveInt | None = None
    """Maximum number of questions of each task; null asks all of them."""
    batch_size: PositiveInt = 1
    """Number of prompts that are computed together. More are faster on a GPU, and each takes the memory of its logits:
    prompt length times vocabulary size."""

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := [name for name, count in Counter(tasks).items() if count > 1]:
            raise ValueError(f"{repeated[0]} is there twice")
        return tasks


class EvidenceConfig(Section):
    """The comparison of the tuned model with prompting its base, the champion and other models, on the test rows."""

    num_few_shot: NonNegativeInt | tuple[PositiveInt, ...] = 3
    """Number of training rows in the prompt of the few-shot arm; fewer where more don't fit. A list, such as
    `[1, 3, 5]`, makes one arm of each; 0 or `[]` leaves them out."""
    few_shot_choice: Literal["random", "nearest"] = "random"
    """`random` takes the same rows for every prompt, chosen by the seed, with different outputs. `nearest` takes those
    most similar to the test row, by BM25."""
    documents: tuple[AbsolutePath, ...] = ()
    """Text files, or folders of `.txt` and `.md` files, whose passages go into the prompts of two more arms: `rag` asks
    the base model, `tuned_rag` the tuned one. None by default."""
    num_passages: PositiveInt = 3
    """Number of passages in such a prompt; fewer where more don't fit."""
    passage_tokens: PositiveInt = 200
    """Maximum length of a passage, in tokens."""
    retriever: Annotated[str, Field(min_length=1), AfterValidator(_make_retriever_absolute)] = BM25
    """How passages are found: `bm25`, or the folder of an embedding model in Hugging Face format."""
    arms: tuple[RivalConfig, ...] = ()
    """Other models to compare with: `[{name, base_url, model, api_key_env}]`. None by default."""
    compare_champion: bool = True
    """Compare with the version under `registry.alias`, if there is one; the gate asks for it."""
    margin: float = Field(default=0.02, ge=0, lt=1)
    """The gain in accuracy from which tuning is worth it, as a fraction: 0.02 are two points."""
    metric: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """A measure of your own, `module:function`: it is called with answer, expected output and the row's fields, and
    returns a number. Shown beside the others; exact match decides."""
    max_rows: PositiveInt = 2000
    """Maximum number of test rows to answer, chosen by the seed. Rows that the split keeps together stay together."""
    num_latency_rows: PositiveInt = 72
    """Number of test rows that are answered one at a time to measure latency, and again 8 at once. The interval of p95
    needs 72."""
    max_new_tokens: PositiveInt = 16
    """Maximum length of a generated output, in tokens."""
    only_labels: bool = False
    """Whether every answer of base model, tuned model and champion is one of `data.labels`, as with
    `serving.only_labels`."""
    num_engines: PositiveInt | None = None
    """Number of engines that answer, each with the resources of a serving replica; null is as many as fit."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    """The benchmarks that `instruct-ray benchmark` runs. They may be changed in a run that was evaluated."""

    @model_validator(mode="after")
    def _check_names(self) -> "EvidenceConfig":
        if repeated := [name for name, count in Counter(arm.name for arm in self.arms).items() if count > 1]:
            raise ValueError(f"arms: two arms are named {repeated[0]}")
        return self
