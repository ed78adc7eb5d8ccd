"""Chat -> token ids: the one place that renders, for training, evaluation and serving alike.

Prompt and completion are tokenised apart and joined, so the boundary between them is exact by construction, and text
from users never becomes a control token.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.errors import InputError
from instruct_ray.run import write_json

# Raised only when the same chat would become other tokens.
CONTRACT_VERSION = 1
LAYOUT = "{instruction}\n\n{input}"
# Answers that the check of a template uses: none may merge with the tokens in front of them.
PROBE_ANSWERS = ("High", "12", "(yes) it is,\nall of it.")


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Contract:
    """Everything that decides which tokens a chat becomes."""

    tokenizer_digest: str
    chat_template: str
    system_prompt: str | None
    layout: str
    bos_token_id: int | None
    pad_token_id: int
    stop_token_id: int
    contract_version: int = CONTRACT_VERSION

    @property
    def digest(self) -> str:
        """sha256 over all fields; travels with packs, model and version."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write `contract.json`."""
        write_json(path, {**asdict(self), "digest": self.digest})

    @classmethod
    def load(cls, path: Path) -> "Contract":
        """Read `contract.json`.

        Raises:
            InputError: there is none, or its content does not match its own digest.
        """
        if not path.is_file():
            raise InputError(
                f"{path}: no contract here; the model was not made by this system, or its folder is incomplete"
            )
        values = json.loads(path.read_text())
        digest = values.pop("digest")
        contract = cls(**values)
        if contract.digest != digest:
            raise InputError(
                f"{path}: contract {contract.digest[:12]} does not match its recorded digest {digest[:12]}"
            )
        return contract


class Renderer:
    """Renders chats by a contract, with the tokenizer that the contract was made from."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: Contract) -> None:
        self.tokenizer = tokenizer
        self.contract = contract

    def messages(self, instruction: str, input: str) -> list[Message]:
        """The chat that a triple asks with."""
        text = self.contract.layout.format(instruction=instruction, input=input) if input else instruction
        return [{"role": "user", "content": text}]

    def prompt(self, messages: list[Message]) -> list[int]:
        """A chat -> the tokens that the answer follows, the contract's system prompt in front unless the chat has one.

        Raises:
            InputError: the chat template refuses the chat, for instance its order of roles.
        """
        if self.contract.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.contract.system_prompt}, *messages]
        try:
            encoding = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.contract.chat_template,
                add_generation_prompt=True,
                sanitize_control_tokens=True,
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses this chat: {error}") from None
        return list(encoding["input_ids"])

    def completion(self, answer: str) -> list[int]:
        """An answer -> its tokens and the stop token."""
        ids = self.tokenizer.encode(answer, add_special_tokens=False, split_special_tokens=True)
        return [*ids, self.contract.stop_token_id]


def make_renderer(base: Path, system_prompt: str | None) -> Renderer:
    """Derive the contract of a base model from its tokenizer and chat template, and prove that it holds.

    Raises:
        InputError: the tokenizer has no chat template, or the template does not keep prompt and answer apart.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not isinstance(tokenizer.chat_template, str):
        raise InputError(f"{base}: its tokenizer has no chat template; use a chat or instruct model as model.base")
    stop = _stop_token_id(tokenizer)
    contract = Contract(
        tokenizer_digest=tokenizer_digest(tokenizer),
        chat_template=tokenizer.chat_template,
        system_prompt=system_prompt,
        layout=LAYOUT,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        stop_token_id=stop,
    )
    renderer = Renderer(tokenizer, contract)
    for answer in PROBE_ANSWERS:
        _check_boundary(renderer, answer)
    return renderer


def load_renderer(folder: Path) -> Renderer:
    """The renderer of a model folder that carries `contract.json` and its tokenizer.

    Raises:
        InputError: the contract is missing or damaged, or the tokenizer is not the one it was made from.
    """
    contract = Contract.load(folder / "contract.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer_digest(tokenizer)
    if found != contract.tokenizer_digest:
        raise InputError(f"{folder}: tokenizer {found[:12]} is not the contract's {contract.tokenizer_digest[:12]}")
    return Renderer(tokenizer, contract)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's content in canonical form, so that rewriting its files changes nothing."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by the last call, not part of what a text becomes.
    content.pop("truncation"), content.pop("padding")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stop_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the template puts behind an answer."""
    question: Message = {"role": "user", "content": "Q"}
    prompt = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    chat = tokenizer.apply_chat_template([question, {"role": "assistant", "content": "A"}], tokenize=False)
    if not chat.startswith(prompt + "A") or chat == prompt + "A":
        raise InputError(f"the chat template puts no token behind an answer, or rewrites the prompt: {chat!r}")
    return int(tokenizer.encode(chat.removeprefix(prompt + "A"), add_special_tokens=False)[0])


def _check_boundary(renderer: Renderer, answer: str) -> None:
    tokenizer, template = renderer.tokenizer, renderer.contract.chat_template
    question: Message = {"role": "user", "content": "How bad is it?"}
    chat = [question, {"role": "assistant", "content": answer}]
    if renderer.contract.system_prompt is not None:
        chat.insert(0, {"role": "system", "content": renderer.contract.system_prompt})
    whole = list(tokenizer.apply_chat_template(chat, chat_template=template)["input_ids"])
    joined = [*renderer.prompt([question]), *renderer.completion(answer)]
    for position, (expected, found) in enumerate(zip(whole, joined, strict=False)):
        if expected != found:
            raise InputError(
                f"the chat template does not keep prompt and answer apart: token {position} of the chat is "
                f"{tokenizer.decode([expected])!r}, of prompt and answer joined {tokenizer.decode([found])!r}"
            )
    if len(joined) > len(whole):
        raise InputError("the chat template ends the chat before the stop token")
