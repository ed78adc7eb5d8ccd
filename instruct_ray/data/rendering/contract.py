"""The contract: everything that decides which tokens a chat becomes, in training, evaluation and serving alike."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json

# In a model's folder.
CONTRACT_FILE = "contract.json"
# Raised only when the same chat would become other tokens.
CONTRACT_VERSION = 1
# Fields that came later: they count in the digest only where they change something, so old models keep theirs.
DEFAULTS_OMITTED_FROM_DIGEST: dict[str, Any] = {
    "answer_prefix": "",
    "answer_suffix": "",
    "strips_answer": False,
    "strips_left": "",
    "strips_right": "",
    "template_options": {},
}


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class PromptContract:
    """Everything that decides which tokens a chat becomes."""

    tokenizer_digest: str
    chat_template: str
    system_prompt: str | None
    layout: str
    bos_token_id: int | None
    pad_token_id: int
    stop_token_id: int
    contract_version: int = CONTRACT_VERSION
    answer_prefix: str = ""
    """What the template puts between the prompt and an answer: white space, or nothing."""
    answer_suffix: str = ""
    """What it puts between an answer and the stop token."""
    strips_answer: bool = False
    """Whether it removes all white space around an answer."""
    strips_left: str = ""
    """Characters that it removes in front of an answer, where these are not all white space on both sides."""
    strips_right: str = ""
    """Characters that it removes behind an answer."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Variables that the template is rendered with."""

    @property
    def digest(self) -> str:
        """sha256 over all fields; travels with packs, model and version."""
        values = {
            name: value for name, value in asdict(self).items() if DEFAULTS_OMITTED_FROM_DIGEST.get(name, ...) != value
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def standalone_template(self) -> str:
        """The chat template for those who know nothing of a contract: it sets its variables itself."""
        settings = [f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in self.template_options.items()]
        return "".join(settings) + self.chat_template

    def stripped(self, answer: str) -> str:
        """An answer without the white space that the template removes around it."""
        if self.strips_answer:
            return answer.strip()
        if self.strips_left:
            answer = answer.lstrip(self.strips_left)
        return answer.rstrip(self.strips_right) if self.strips_right else answer

    def save(self, path: Path) -> None:
        """Write `contract.json`."""
        atomic_write_json(path, {**asdict(self), "digest": self.digest})

    @classmethod
    def load(cls, path: Path) -> "PromptContract":
        """Read `contract.json`.

        Raises:
            InputError: there is none, it is damaged, its content does not match its own digest, or another version of
                this system made it.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no contract here; the model was not made by this system, or its folder is incomplete"
            )
        try:
            values = json.loads(path.read_text())
            digest = values.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{path}: damaged: not a contract with its digest") from None
        names = {known.name for known in fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise InputError(f"{path}: made by a later version of this system, which also knows {', '.join(unknown)}")
        if missing := sorted(names - values.keys() - DEFAULTS_OMITTED_FROM_DIGEST.keys()):
            raise InputError(f"{path}: damaged: no {', '.join(missing)}")
        contract = cls(**values)
        if contract.contract_version != CONTRACT_VERSION:
            raise InputError(
                f"{path}: contract version {contract.contract_version}, this system renders by {CONTRACT_VERSION}"
            )
        if contract.digest != digest:
            raise InputError(
                f"{path}: contract {contract.digest[:12]} does not match its recorded digest {digest[:12]}"
            )
        return contract


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's content in canonical form, so that rewriting its files changes nothing."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by the last call, not part of what a text becomes.
    content.pop("truncation"), content.pop("padding")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
