"""Chat -> token ids: the one place that renders.

Prompt and completion are tokenised apart and joined, so the boundary between them is exact by construction, and text
from users never becomes a control token.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from instruct_ray.data.contract import Contract, Message, tokenizer_digest
from instruct_ray.data.packing import Example
from instruct_ray.data.readers import RowError
from instruct_ray.data.triples import Triple
from instruct_ray.errors import InputError

# Between these transformers marks control tokens in what users wrote: text that holds one of its own takes the slow way.
PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")


class Renderer:
    """Renders chats by a contract, with the tokenizer that the contract was made from."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: Contract) -> None:
        self.tokenizer = tokenizer
        self.contract = contract

    def messages(self, instruction: str, input: str) -> list[Message]:
        """The chat that a question asks with."""
        text = self.contract.layout.format(instruction=instruction, input=input) if input else instruction
        return [{"role": "user", "content": text}]

    def chat(self, triple: Triple) -> list[Message]:
        """The chat up to a row's answer: its system message and its history included."""
        chat: list[Message] = [] if triple.system is None else [{"role": "system", "content": triple.system}]
        for question, answer in triple.history:
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return chat + self.messages(triple.instruction, triple.input)

    def prompt(self, messages: list[Message]) -> list[int]:
        """A chat -> the tokens that the answer follows, the contract's system prompt in front unless the chat has one.

        Raises:
            InputError: the chat template refuses the chat, for instance its order of roles.
        """
        try:
            encoding = self.tokenizer.apply_chat_template(
                self._with_system(messages),
                chat_template=self.contract.chat_template,
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                **self.contract.template_options,
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses this chat: {error}") from None
        return list(encoding["input_ids"])

    def completion(self, answer: str) -> list[int]:
        """An answer -> its tokens and the stop token."""
        [ids] = self._completions([answer])
        return ids

    def examples(self, row_ids: Sequence[str], triples: Sequence[Triple]) -> list[list[Example] | RowError]:
        """Rows -> what is trained: one example for each answer of a row, prompted as serving would render it."""
        chats: list[list[Message]] = []
        answers: list[str] = []
        for triple in triples:
            chat = self.chat(triple)
            first = 0 if triple.system is None else 1
            for turn, (_, answer) in enumerate([*triple.history, ("", triple.output)]):
                chats.append(chat[: first + 2 * turn + 1])
                answers.append(answer)
        prompts, completions = self._prompts(chats), self._completions(answers)
        rows: list[list[Example] | RowError] = []
        start = 0
        for row_id, triple in zip(row_ids, triples, strict=True):
            stop = start + len(triple.history) + 1
            rows.append(_examples(row_id, prompts[start:stop], completions[start:stop]))
            start = stop
        return rows

    def _prompts(self, chats: Sequence[list[Message]]) -> list[list[int] | RowError]:
        """As `prompt`, many at once: several times faster, and the same tokens."""
        results: list[list[int] | RowError] = [[]] * len(chats)
        plain: dict[int, str] = {}
        for index, messages in enumerate(chats):
            try:
                if any(self._is_suspect(message["content"]) for message in messages):
                    results[index] = self.prompt(messages)
                else:
                    plain[index] = self._rendered(self._with_system(messages))
            except (InputError, TemplateError) as error:
                results[index] = RowError("template", f"the chat template refuses this chat: {error}")
        for index, ids in zip(plain, self._encode(list(plain.values()), as_text=False), strict=True):
            results[index] = ids
        return results

    def _completions(self, answers: Sequence[str]) -> list[list[int]]:
        c = self.contract
        texts = [c.answer_prefix + (answer.strip() if c.strips_answer else answer) + c.answer_suffix for answer in answers]
        if not self._prepends_space:
            return [[*ids, c.stop_token_id] for ids in self._encode(texts, as_text=True)]
        encoded = self._encode(["\n" + text for text in texts], as_text=True)
        return [[*ids[len(self._newline) :], c.stop_token_id] for ids in encoded]

    @cached_property
    def _newline(self) -> list[int]:
        [ids] = self._encode(["\n"], as_text=True)
        return ids

    @cached_property
    def _prepends_space(self) -> bool:
        """SentencePiece tokenizers put a space in front of a text; an answer stands behind a prompt and gets none."""
        alone, behind = self._encode(["A", "\nA"], as_text=True)
        return behind[: len(self._newline)] == self._newline and behind[len(self._newline) :] != alone

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        contents = sorted((token.content for token in self.tokenizer.added_tokens_decoder.values()), key=len)
        return re.compile("|".join(re.escape(content) for content in reversed(contents)) or r"(?!)")

    def _is_suspect(self, text: str) -> bool:
        return self._control_tokens.search(text) is not None or (
            not text.isascii() and PRIVATE_USE.search(text) is not None
        )

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.contract.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.contract.system_prompt}, *messages]

    def _rendered(self, messages: list[Message]) -> str:
        [text], _ = render_jinja_template(
            conversations=[messages],
            chat_template=self.contract.chat_template,
            add_generation_prompt=True,
            **{**self.tokenizer.special_tokens_map, **self.contract.template_options},
        )
        return str(text)

    def _encode(self, texts: list[str], *, as_text: bool) -> list[list[int]]:
        """Tokenise; `as_text` reads what looks like a control token as the letters it is made of."""
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_padding(), backend.no_truncation()
        backend.encode_special_tokens = as_text
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


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


def _examples(
    row_id: str, prompts: Sequence[list[int] | RowError], completions: Sequence[list[int]]
) -> list[Example] | RowError:
    examples: list[Example] = []
    num_counted = 0
    for turn, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1):
        if isinstance(prompt, RowError):
            return prompt
        examples.append(Example(row_id if len(prompts) == 1 else f"{row_id}/{turn}", prompt, completion, num_counted))
        num_counted = len(prompt) + len(completion)
    return examples
