"""Renders chats as token ids. Nothing else in the project does.

Prompt and completion are tokenized apart and joined, so the boundary between them is exact, and text from users never
becomes a special token.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from instruct_ray.base_model.tokenizer import load_tokenizer
from instruct_ray.data.example import Example
from instruct_ray.data.rendering.answer_tags import AnswerTags
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract, compute_tokenizer_digest
from instruct_ray.data.rendering.encoding import Encoder, decode_answer
from instruct_ray.data.rendering.template_skeleton import (
    BatchKey,
    TemplateSkeleton,
    encode_variable_text,
    make_skeleton,
)
from instruct_ray.data.rendering.tool_chats import ToolChats, Tools, chat_messages, has_tool_messages
from instruct_ray.data.rendering.turns import TokenIds, Turn, build_row, explain_special, join_turn
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.run.folder import CONTRACT_FILE

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
        self.template = ChatTemplate(tokenizer, contract.chat_template, contract.template_variables)
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
        if triple.tool_chat is not None:
            return chat_messages(triple)[:-1]
        chat: list[Message] = [] if triple.system is None else [{"role": "system", "content": triple.system}]
        for question, answer in triple.history:
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return chat + self.messages(triple.instruction, triple.input)

    def answer(self, triple: Triple) -> Message:
        """Build the message that follows the chat of a row."""
        if triple.tool_chat is not None:
            return chat_messages(triple)[-1]
        return {"role": "assistant", "content": triple.output}

    def clean(self, triple: Triple) -> Triple:
        """Return a row as it can be trained on; see `AnswerTags.clean`. The output of a chat with tools is set.

        Raises:
            RowError: it can't be trained on.
        """
        cleaned = self.answer_tags.clean(triple)
        return cleaned if cleaned.tool_chat is None else self.tool_chats.set_output(cleaned)

    def row_prompts(self, triples: Sequence[Triple]) -> list[TokenIds | RowError]:
        """Encode the chats of rows as the tokens that their last answers follow."""
        return self.encode_prompts([self.chat(triple) for triple in triples], [triple.tools for triple in triples])

    def prompt(self, messages: list[Message], tools: Tools | None = None) -> TokenIds:
        """Encode a chat, with the function definitions of its tools, as the tokens that its answer follows.

        The contract's system prompt is added unless the chat begins with a system message.

        Raises:
            InputError: The chat template rejects the chat, for instance its order of roles, or text in the chat would
                become a special token.
        """
        [ids] = self.encode_prompts([messages], [tools])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def continued_text(self, text: str) -> TokenIds:
        """Encode text that a model continues, without the chat template; begins as the tokenizer begins an input.

        Raises:
            InputError: Text in it would become a special token.
        """
        [ids] = self.encoder.encode_as_text([text])
        if self.encoder.special_ids(ids):
            raise InputError(self._explain_special([{"role": "user", "content": text}]).detail)
        start_id = self.tokenizer.bos_token_id
        if not ids:
            raise InputError("holds no text that the tokenizer knows")
        starts_input = start_id is not None and self.tokenizer("a").input_ids[:1] == [start_id]
        return [start_id, *ids] if starts_input else ids

    def template_token_ids(self) -> tuple[int, ...]:
        """The tokens of a chat with two turns, which the template writes around any text, and the stop token."""
        question, answer = self.messages("a", ""), Message(role="assistant", content="a")
        ids = self.prompt([*question, answer, *question])
        return tuple(sorted({*ids, self.contract.stop_token_id}))

    def completion(self, answer: str) -> TokenIds:
        """Encode an answer and the stop token.

        Raises:
            InputError: Text in the answer would become a special token.
        """
        [ids] = self._encode_completions([answer])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode the tokens of an answer, without its special tokens apart from those of calls."""
        return decode_answer(self.tokenizer, token_ids, kept_ids=self.tool_chats.mark_ids)

    def examples(self, row_ids: Sequence[str], triples: Sequence[Triple]) -> list[list[Example] | RowError]:
        """Encode rows for training: one example per answer of a row, with the prompt that serving would render."""
        without_tools = iter(self._encode_turns([triple for triple in triples if triple.tool_chat is None]))
        return [
            build_row(row_id, next(without_tools) if triple.tool_chat is None else self.tool_chats.row_turns(triple))
            for row_id, triple in zip(row_ids, triples, strict=True)
        ]

    def _encode_turns(self, triples: Sequence[Triple]) -> Iterator[list[Turn | RowError]]:
        """Encode the answers of rows without tools, each with its prompt."""
        chats: list[list[Message]] = []
        answers: list[str] = []
        for triple in triples:
            chat = self.chat(triple)
            first = 0 if triple.system is None else 1
            for turn, answer in triple.trained_history:
                chats.append(chat[: first + 2 * turn + 1])
                answers.append(answer)
            chats.append(chat)
            answers.append(triple.output)
        turns = map(join_turn, self.encode_prompts(chats), self._encode_completions(answers))
        return (list(islice(turns, len(triple.trained_history) + 1)) for triple in triples)

    def encode_prompts(
        self, chats: Sequence[list[Message]], tools: Sequence[Tools | None] | None = None
    ) -> list[TokenIds | RowError]:
        """Encode many chats as `prompt` does; a rejected one gives its reason in place of its tokens."""
        results: list[TokenIds | RowError] = [[]] * len(chats)
        batches: dict[BatchKey, list[tuple[int, TemplateSkeleton, str]]] = {}
        for index, (messages, its_tools) in enumerate(zip(chats, tools or [None] * len(chats), strict=True)):
            if its_tools or has_tool_messages(messages):
                results[index] = self.tool_chats.prompt(messages, its_tools)
                continue
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
                    has_special = bool(self.encoder.special_ids(variable_ids))
                    results[index] = self._explain_special(chats[index]) if has_special else ids
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
        # Harmless content keeps them, so the comparison below does not see them.
        if any(self.encoder.unknown_characters(turn["content"]) for turn in messages):
            return self._explain_special(messages)
        # A template may write other special tokens depending on the content. It then writes the same ones for content
        # that can't contain any.
        replace = self.encoder.replace_special_characters
        try:
            text = self._render([{"role": turn["role"], "content": replace(turn["content"])} for turn in messages])
        except InputError:
            return self._explain_special(messages)
        [harmless_ids] = self.encoder.encode_with_special([text])
        return ids if special_ids == self.encoder.special_ids(harmless_ids) else self._explain_special(messages)

    def _explain_special(self, messages: Sequence[Message]) -> RowError:
        return explain_special(self.encoder, [message["content"] for message in messages])

    def _encode_completions(self, answers: Sequence[str]) -> list[TokenIds | RowError]:
        contract, encoder = self.contract, self.encoder
        texts = [contract.answer_prefix + contract.strip_answer(answer) + contract.answer_suffix for answer in answers]
        # Answers that are labels repeat.
        unique = list(dict.fromkeys(texts))
        encode_after = encoder.encode_after_special if self._prompt_ends_with_special else encoder.encode_after_text
        completions: dict[str, TokenIds | RowError] = {}
        for text, ids in zip(unique, encode_after(unique, encoder.encode_as_text), strict=True):
            if encoder.special_ids(ids):
                completions[text] = self._explain_special([{"role": "assistant", "content": text}])
            else:
                completions[text] = [*ids, contract.stop_token_id]
        return [completions[text] for text in texts]

    @cached_property
    def answer_tags(self) -> AnswerTags:
        """The tags of the chat template that answers can't have."""
        return AnswerTags(
            self.template, self.tokenizer, self.contract.add_system_prompt([{"role": "user", "content": "x"}])
        )

    @cached_property
    def tool_chats(self) -> ToolChats:
        """Renders chats with tools."""
        return ToolChats(self.tokenizer, self.template, self.encoder, self.contract)

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
            chat = self.contract.add_system_prompt(messages)
            skeleton = make_skeleton(self.template, self.encoder, chat, num_fixed=len(chat) - len(messages))
            self._skeletons[roles] = skeleton
        return skeleton

    def _render(self, messages: list[Message]) -> str:
        return self.template.render(self.contract.add_system_prompt(messages), add_generation_prompt=True)


def load_renderer(model_dir: Path) -> Renderer:
    """Load the renderer of a model that instruct_ray tuned, from the contract and the tokenizer in its folder.

    Evaluation, inference and serving use this. `resolve_renderer` makes the renderer for data that is to be prepared.

    Raises:
        InputError: The contract is missing or corrupted, or the tokenizer is not the one it was derived from.
    """
    contract = PromptContract.load(model_dir / CONTRACT_FILE)
    tokenizer = load_tokenizer(model_dir)
    digest = compute_tokenizer_digest(tokenizer)
    if digest != contract.tokenizer_digest:
        raise InputError(f"{model_dir}: tokenizer {digest[:12]} is not the contract's {contract.tokenizer_digest[:12]}")
    return Renderer(tokenizer, contract)
