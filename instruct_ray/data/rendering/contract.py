"""The prompt contract: everything that decides which tokens a chat becomes.

Training, evaluation and serving render by the same contract, which travels with packs and models as `contract.json`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from transformers import PreTrainedTokenizerBase

from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json

# Increased only when the same chat would become other tokens.
CONTRACT_VERSION = 1
# Fields added later are part of the digest only if they differ from these, so the digests of older models stay valid.
DEFAULTS_OMITTED_FROM_DIGEST: dict[str, Any] = {
    "answer_prefix": "",
    "answer_suffix": "",
    "strips_answer": False,
    "strips_left": "",
    "strips_right": "",
    "template_options": {},
    "template_eos_token": None,
    "labels": None,
}
# It says how the files of an exported tokenizer differ from the base model's, and nothing about the tokens of a chat.
NEVER_IN_DIGEST = {"template_eos_token"}


class Message(TypedDict):
    """One message of a chat; the last three keys are those of chats with tools, as in OpenAI's API."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Their arguments are objects, not JSON text."""
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True)
class PromptContract:
    """Everything that decides which tokens a chat becomes."""

    tokenizer_digest: str
    """sha256 of the tokenizer, see `compute_tokenizer_digest`."""
    chat_template: str
    """Jinja source."""
    system_prompt: str | None
    """System message of chats that have none of their own."""
    layout: str
    """How instruction and input form one user message."""
    bos_token_id: int | None
    pad_token_id: int
    stop_token_id: int
    """Token that ends an answer."""
    contract_version: int = CONTRACT_VERSION
    answer_prefix: str = ""
    """Text that the template writes between the prompt and an answer: white space or empty."""
    answer_suffix: str = ""
    """Text that the template writes between an answer and the stop token."""
    strips_answer: bool = False
    """Whether the template removes all white space around an answer."""
    strips_left: str = ""
    """Characters that the template removes before an answer, if `strips_answer` is false."""
    strips_right: str = ""
    """Characters that the template removes after an answer, if `strips_answer` is false."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Variables that the template is rendered with."""
    template_eos_token: str | None = None
    """What the template gets as `eos_token`, if the tokenizer beside this contract has another: an exported one has the
    stop token, for programs that don't read contracts."""

    labels: list[str] | None = None
    """All answers of a label task; None for other tasks."""

    @property
    def digest(self) -> str:
        """sha256 over all fields that decide tokens; recorded with packs, models and registered versions."""
        values = {
            name: value
            for name, value in asdict(self).items()
            if name not in NEVER_IN_DIGEST and DEFAULTS_OMITTED_FROM_DIGEST.get(name, ...) != value
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables of the template besides the special tokens of the tokenizer."""
        eos = {} if self.template_eos_token is None else {"eos_token": self.template_eos_token}
        return {**eos, **self.template_options}

    @property
    def standalone_template(self) -> str:
        """The chat template with its variables set in its source, for programs that don't know contracts."""
        settings = [f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in self.template_variables.items()]
        return "".join(settings) + self.chat_template

    def add_system_prompt(self, messages: list[Message]) -> list[Message]:
        """Add the system prompt to a chat that doesn't begin with a system message."""
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def strip_answer(self, answer: str) -> str:
        """Remove the white space around an answer that the template removes."""
        if self.strips_answer:
            return answer.strip()
        if self.strips_left:
            answer = answer.lstrip(self.strips_left)
        return answer.rstrip(self.strips_right) if self.strips_right else answer

    def save(self, path: Path) -> None:
        """Write the contract and its digest as JSON."""
        atomic_write_json(path, {**asdict(self), "digest": self.digest})

    @classmethod
    def load(cls, path: Path) -> "PromptContract":
        """Read a contract that `save` wrote.

        Raises:
            InputError: The file is missing or corrupted, does not match the digest in it, or was written by another
                version of instruct_ray.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no contract here; the model was not made by instruct_ray, or its folder is incomplete"
            )
        try:
            values = json.loads(path.read_text())
            recorded_digest = values.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{path}: corrupted: not a contract with its digest") from None
        names = {contract_field.name for contract_field in fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise InputError(f"{path}: written by a later version of instruct_ray; unknown keys: {', '.join(unknown)}")
        if missing := sorted(names - values.keys() - DEFAULTS_OMITTED_FROM_DIGEST.keys()):
            raise InputError(f"{path}: corrupted: missing keys: {', '.join(missing)}")
        contract = cls(**values)
        if contract.contract_version != CONTRACT_VERSION:
            raise InputError(
                f"{path}: contract version {contract.contract_version} is not supported; expected {CONTRACT_VERSION}"
            )
        if contract.digest != recorded_digest:
            raise InputError(
                f"{path}: corrupted: contract {contract.digest[:12]} does not match its recorded digest "
                f"{recorded_digest[:12]}"
            )
        return contract


def compute_tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Compute the sha256 of a tokenizer's content in canonical form, which rewriting its files doesn't change."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by the last call of the tokenizer; they don't decide which tokens a text becomes.
    for key in ("truncation", "padding"):
        del content[key]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
