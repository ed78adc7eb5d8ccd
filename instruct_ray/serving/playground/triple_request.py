"""gateway: the body of a request that saves a triple, and the row that it becomes."""

import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from instruct_ray.config.data import SourceConfig
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.serving.chat_request import MAX_CHARACTERS
from instruct_ray.serving.request_fields import RequestObject

MAX_ANSWERS = 4
MAX_NAME_CHARACTERS = 256

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
# Rows must be JSON, which has no infinity.
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Sampling(RequestObject):
    """How the tokens of the answers were chosen; null where the endpoint's default held."""

    model_config = ConfigDict(strict=True)

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: Count | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)


class ShownAnswer(RequestObject):
    """An answer that was shown, and what its response said about it."""

    model_config = ConfigDict(strict=True)

    model: Name
    output: Text
    version: Name | None = None
    """The header `x-model-version`."""
    contract_digest: Name | None = None
    """The header `x-contract-digest`."""
    data_digest: Name | None = None
    """The header `x-data-digest`."""
    finish_reason: Name | None = None
    """Null if it was not complete."""
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    first_token_seconds: Seconds | None = None
    seconds: Seconds | None = None


class TripleRequest(RequestObject):
    """Body of POST /playground/triples: the question, the output that is to be learned, and the answers shown."""

    model_config = ConfigDict(strict=True)

    instruction: Text
    input: Text = ""
    output: Text
    """The chosen answer, perhaps corrected by the user."""
    answers: list[ShownAnswer] = Field(min_length=1, max_length=MAX_ANSWERS)
    chosen: int = Field(ge=0)
    """Index of the chosen answer."""
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _check(self) -> "TripleRequest":
        if self.chosen >= len(self.answers):
            raise ValueError(f"chosen is {self.chosen}, but there are {len(self.answers)} answers")
        row = {"instruction": self.instruction, "input": self.input, "output": self.output}
        try:
            # What `prepare` would quarantine is refused now.
            parse_row(row, "", SourceConfig(path="playground"))
        except RowError as error:
            raise ValueError(f"the triple {error.detail}") from None
        return self

    def to_row(self, key_name: str | None) -> dict[str, Any]:
        """Build the row that is saved now: a row of `data.sources`, with what it came from under `provenance`.

        Args:
            key_name: name of the API key of the request; None if it has none.
        """
        return {
            "id": f"playground-{uuid.uuid4().hex}",
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
            "provenance": {
                "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "key": key_name,
                "is_edited": self.output != self.answers[self.chosen].output,
                "chosen": self.chosen,
                "answers": [answer.model_dump() for answer in self.answers],
                "sampling": self.sampling.model_dump(),
            },
        }
