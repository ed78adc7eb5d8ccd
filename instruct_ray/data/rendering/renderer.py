"""Renders chats as token ids. Nothing else in the project does.

Prompt and completion are tokenized apart and joined, so the boundary between them is exact, and text from users never
becomes a special token.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.data.example import Example, build_examples
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract, compute_tokenizer_digest
from instruct_ray.data.rendering.encoding import Encoder
from instruct_ray.data.rendering.template_skeleton import (
    BatchKey,
    TemplateSkeleton,
    encode_variable_text,
    make_skeleton,
)
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.run.folder import CONTRACT_FILE

TokenIds = list[int]
# Cached skeletons, one per order of roles. Bounded because clients of a server choose the roles.
MAX_SKELETONS = 256


class Renderer:
    """Renders chats by a contract, with the tokenizer that the contract was derived from."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: PromptContract) -> None:
        """Create a renderer; `resolve_renderer` and `load_renderer` do this with a matching tokenizer and contract.

        Raises:
            InputError: The contract's chat template is not valid Jinja, or its system prompt contains a special token.
        """
        self.tokenizer = tokenizer
        self.contract = contract
        self.template = ChatTemplate(tokenizer, contract.chat_template, contract.template_options)
        self.encoder = Encoder(tokenizer, self.template.special_tokens())
        self._skeletons: dict[tuple[str, ...], TemplateSkeleton] = {}
        if contract.system_prompt is not None and self.encoder.may_contain_special(contract.system_prompt):
            raise InputError("data.system_prompt contains a special token of the tokenizer; remove it")

    def messages(self, instruction: str, input: str) -> list[Message]:
        """Build the chat for an instruction and its input, which may be empty."""
        text = self.contract.layout.format(instruction=instruction, input=input) if input else instruction
        return [{"role": "user", "content": text}]

    def chat(self, triple: Triple) -> list[Message]:
        """Build the chat up to the answer of a row, including its own system message and its history."""
        chat: list[Message] = [] if triple.system is None else [{"role": "system", "content": triple.system}]
        for question, answer in triple.history:
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return chat + self.messages(triple.instruction, triple.input)

    def prompt(self, messages: list[Message]) -> TokenIds:
        """Encode a chat as the tokens that its answer follows.

        The contract's system prompt is added unless the chat begins with a system message.

        Raises:
            InputError: The chat template rejects the chat, for instance its order of roles, or text in the chat would
                become a special token.
        """
        [ids] = self._encode_prompts([messages])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def completion(self, answer: str) -> TokenIds:
        """Encode an answer and the stop token.

        Raises:
            InputError: Text in the answer would become a special token.
        """
        [ids] = self._encode_completions([answer])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def examples(self, row_ids: Sequence[str], triples: Sequence[Triple]) -> list[list[Example] | RowError]:
        """Encode rows for training: one example per answer of a row, with the prompt that serving would render."""
        chats: list[list[Message]] = []
        answers: list[str] = []
        for triple in triples:
            chat = self.chat(triple)
            first = 0 if triple.system is None else 1
            for turn, (_, answer) in enumerate(triple.history):
                chats.append(chat[: first + 2 * turn + 1])
                answers.append(answer)
            chats.append(chat)
            answers.append(triple.output)
        prompts, completions = self._encode_prompts(chats), self._encode_completions(answers)
        rows: list[list[Example] | RowError] = []
        start = 0
        for row_id, triple in zip(row_ids, triples, strict=True):
            stop = start + len(triple.history) + 1
            rows.append(_build_row(row_id, prompts[start:stop], completions[start:stop]))
            start = stop
        return rows

    def _encode_prompts(self, chats: Sequence[list[Message]]) -> list[TokenIds | RowError]:
        results: list[TokenIds | RowError] = [[]] * len(chats)
        batches: dict[BatchKey, list[tuple[int, TemplateSkeleton, str]]] = {}
        for index, messages in enumerate(chats):
            try:
                skeleton = self._skeleton_for(messages)
                text = self._render(messages)
                variable_text = skeleton.variable_text(text)
                if variable_text is None or self._needs_escaping(messages, variable_text, skeleton):
                    results[index] = self._render_untrusted(messages, text, skeleton)
                else:
                    batches.setdefault(skeleton.batch_key, []).append((index, skeleton, variable_text))
            except InputError as error:
                results[index] = RowError("template", str(error))
        for key, batch in batches.items():
            encoded = encode_variable_text(self.encoder, key, [variable_text for _, _, variable_text in batch])
            for (index, skeleton, _), variable_ids in zip(batch, encoded, strict=True):
                ids = skeleton.prefix_ids + variable_ids + skeleton.suffix_ids
                if key.has_special:
                    results[index] = self._verify_special_tokens(ids, chats[index], skeleton)
                else:
                    results[index] = _special_token_error() if self.encoder.special_ids(variable_ids) else ids
        return results

    def _needs_escaping(self, messages: list[Message], variable_text: str, skeleton: TemplateSkeleton) -> bool:
        """Whether users may have written special tokens."""
        if skeleton.variable_special_ids:
            return self._may_contain_special(messages)
        # One search is enough where the template writes no special token in the variable text.
        return self.encoder.may_contain_special(variable_text)

    def _may_contain_special(self, messages: list[Message]) -> bool:
        # The separator prevents a match across two messages.
        return self.encoder.may_contain_special("\0".join([message["content"] for message in messages]))

    def _render_untrusted(self, messages: list[Message], text: str, skeleton: TemplateSkeleton) -> TokenIds | RowError:
        """Encode a chat in which users wrote special tokens, or which doesn't match its skeleton."""
        if not self._may_contain_special(messages):
            [ids] = self.encoder.encode_with_special([text])
            return self._verify_special_tokens(ids, messages, skeleton)
        escape = self.encoder.escape_special
        escaped: list[Message] = [{"role": turn["role"], "content": escape(turn["content"])} for turn in messages]
        return self._verify_special_tokens(self.encoder.encode_escaped(self._render(escaped)), messages, skeleton)

    def _verify_special_tokens(
        self, ids: TokenIds, messages: list[Message], skeleton: TemplateSkeleton
    ) -> TokenIds | RowError:
        """Return the tokens if the template wrote all special tokens among them."""
        special_ids = self.encoder.special_ids(ids)
        if special_ids == skeleton.special_ids:
            return ids
        # A template may write other special tokens depending on the content. It then writes the same ones for content
        # that can't contain any.
        replace = self.encoder.replace_special_characters
        try:
            text = self._render([{"role": turn["role"], "content": replace(turn["content"])} for turn in messages])
        except InputError:
            return _special_token_error()
        [harmless_ids] = self.encoder.encode_with_special([text])
        return ids if special_ids == self.encoder.special_ids(harmless_ids) else _special_token_error()

    def _encode_completions(self, answers: Sequence[str]) -> list[TokenIds | RowError]:
        contract, encoder = self.contract, self.encoder
        texts = [contract.answer_prefix + contract.strip_answer(answer) + contract.answer_suffix for answer in answers]
        # Answers that are labels repeat.
        unique = list(dict.fromkeys(texts))
        encode_after = encoder.encode_after_special if self._prompt_ends_with_special else encoder.encode_after_text
        completions: dict[str, TokenIds | RowError] = {}
        for text, ids in zip(unique, encode_after(unique, encoder.encode_as_text), strict=True):
            completions[text] = _special_token_error() if encoder.special_ids(ids) else [*ids, contract.stop_token_id]
        return [completions[text] for text in texts]

    @cached_property
    def _prompt_ends_with_special(self) -> bool:
        ids = self.prompt([{"role": "user", "content": "x"}])
        return bool(self.encoder.special_ids(ids[-1:]))

    def _skeleton_for(self, messages: list[Message]) -> TemplateSkeleton:
        roles = tuple([message["role"] for message in messages])
        skeleton = self._skeletons.get(roles)
        if skeleton is None:
            if not messages:
                raise InputError("a chat without messages")
            if len(self._skeletons) == MAX_SKELETONS:
                self._skeletons.clear()
            chat = self._with_system(messages)
            skeleton = make_skeleton(self.template, self.encoder, chat, num_fixed=len(chat) - len(messages))
            self._skeletons[roles] = skeleton
        return skeleton

    def _render(self, messages: list[Message]) -> str:
        return self.template.render(self._with_system(messages), add_generation_prompt=True)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.contract.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.contract.system_prompt}, *messages]


def load_renderer(model_dir: Path) -> Renderer:
    """Load the renderer of a model that instruct_ray tuned, from the contract and the tokenizer in its folder.

    Evaluation, inference and serving use this. `resolve_renderer` makes the renderer for data that is to be prepared.

    Raises:
        InputError: The contract is missing or corrupted, or the tokenizer is not the one it was derived from.
    """
    contract = PromptContract.load(model_dir / CONTRACT_FILE)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    digest = compute_tokenizer_digest(tokenizer)
    if digest != contract.tokenizer_digest:
        raise InputError(f"{model_dir}: tokenizer {digest[:12]} is not the contract's {contract.tokenizer_digest[:12]}")
    return Renderer(tokenizer, contract)


def _special_token_error() -> RowError:
    return RowError("special_token", "contains text that the tokenizer or the chat template turns into a special token")


def _build_row(
    row_id: str, prompts: Sequence[TokenIds | RowError], completions: Sequence[TokenIds | RowError]
) -> list[Example] | RowError:
    """Build the examples of a row, or return its first error."""
    turns: list[tuple[TokenIds, TokenIds]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, RowError):
            return prompt
        if isinstance(completion, RowError):
            return completion
        turns.append((prompt, completion))
    return build_examples(row_id, turns)
