"""The body of a request of OpenAI's completions API: text that the model continues, without a chat template."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from instruct_ray.serving.chat_request import MAX_CHARACTERS
from instruct_ray.serving.request_fields import GenerationFields, NonEmptyText

# Completions of one request: prompts times choices.
MAX_COMPLETIONS = 32
# As in OpenAI's API.
DEFAULT_MAX_TOKENS = 16
# Fields that are not supported, each with the values besides null that ask for nothing.
UNUSED_REQUEST_FIELDS: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}

Prompt = Annotated[NonEmptyText, Field(max_length=MAX_CHARACTERS)]


class CompletionRequest(GenerationFields):
    """Body of POST /v1/completions."""

    unused_fields = UNUSED_REQUEST_FIELDS
    prompt_field = "prompt"

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_COMPLETIONS)]
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @field_validator("prompt", mode="before")
    @classmethod
    def _reject_token_ids(cls, prompt: object) -> object:
        if isinstance(prompt, list) and any(isinstance(part, (int, list)) for part in prompt):
            raise ValueError("send text: token ids could be control tokens")
        return prompt

    @model_validator(mode="after")
    def _check_number(self) -> "CompletionRequest":
        if len(self.prompts) * self.n > MAX_COMPLETIONS:
            raise ValueError(f"prompts times n may be at most {MAX_COMPLETIONS}")
        return self

    @property
    def prompts(self) -> list[str]:
        """All texts to continue."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def max_tokens_requested(self) -> int | None:
        """Maximum number of completion tokens."""
        return self.max_tokens

    @property
    def num_top_log_probs(self) -> int | None:
        """How many of the most likely tokens the response names at each position; None if it has none."""
        return self.logprobs
