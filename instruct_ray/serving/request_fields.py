"""What requests of OpenAI's APIs have in common.

A request with a field or value that is not supported is rejected with its name; nothing is silently ignored. A null
field counts as not set, as in OpenAI's API.
"""

import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from instruct_ray.inference.engine import SamplingParams

MAX_STOP_STRINGS = 4
MAX_CHOICES = 8
MAX_BIASED_TOKENS = 1024
UNUSED_STREAM_OPTIONS: dict[str, tuple[object, ...]] = {"include_obfuscation": (False,)}

# Decimal, without leading zeros, so that no two keys are one token.
TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
# Schemas that are nested more deeply can't be sent to a replica.
MAX_SCHEMA_DEPTH = 64

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
NonEmptyText = Annotated[str, Field(min_length=1)]


def _check_depth(schema: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return schema
    raise ValueError(f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


JsonSchema = Annotated[dict[str, Any], AfterValidator(_check_depth)]
SchemaName = Annotated[str, Field(min_length=1, max_length=64)]


class RequestObject(BaseModel):
    """A JSON object of a request. Fields that ask for nothing are dropped before it is validated."""

    # An error must not repeat what the client sent.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    unused_fields: ClassVar[dict[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if not cls._is_unused(key, value)}

    @classmethod
    def _is_unused(cls, key: str, value: object) -> bool:
        if key in cls.unused_fields:
            return value is None or value in cls.unused_fields[key]
        return value is None and key in cls.model_fields and not cls.model_fields[key].is_required()


class StreamOptions(RequestObject):
    """Options of a streamed response."""

    unused_fields = UNUSED_STREAM_OPTIONS

    include_usage: bool = False


class GenerationFields(RequestObject):
    """The fields of a request that say which model answers, how its tokens are chosen and how they are sent."""

    model_config = ConfigDict(strict=True)

    prompt_field: ClassVar[str]
    """What the client calls the field of the prompt, for errors."""

    model: str
    temperature: float = Field(default=1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=MAX_BIASED_TOKENS
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stop: NonEmptyText | list[NonEmptyText] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> "GenerationFields":
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOP_STRINGS:
            raise ValueError(f"stop takes at most {MAX_STOP_STRINGS} strings")
        if not all(TOKEN_ID.fullmatch(key) for key in self.logit_bias):
            raise ValueError("logit_bias: its keys are token ids, such as 15 or 40321")
        return self

    @property
    def max_tokens_requested(self) -> int | None:
        """Maximum number of completion tokens that the client requested; None if it set no limit."""
        raise NotImplementedError

    @property
    def num_top_log_probs(self) -> int | None:
        """How many of the most likely tokens the response names at each position; None if it has none."""
        raise NotImplementedError

    @property
    def stop_strings(self) -> list[str]:
        """Strings that end the completion."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def biased_tokens(self) -> tuple[tuple[int, float], ...]:
        """The token ids of `logit_bias`, with their bias."""
        return tuple((int(token_id), bias) for token_id, bias in self.logit_bias.items())

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed response ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_params(self, limit: int, choice: int = 0, grammar: str | None = None) -> SamplingParams:
        """Build the sampling parameters of one of the `n` choices, with at most `limit` new tokens."""
        return SamplingParams(
            max_new_tokens=min(self.max_tokens_requested or limit, limit),
            temperature=self.temperature,
            top_p=self.top_p,
            # Choices of one seed differ, and can be repeated.
            seed=None if self.seed is None else self.seed + choice,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.biased_tokens,
            num_top_log_probs=self.num_top_log_probs,
            grammar=grammar,
        )
