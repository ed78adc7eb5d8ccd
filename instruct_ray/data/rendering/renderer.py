"""Chat -> token ids: the one place that renders.

Prompt and completion are tokenised apart and joined, so the boundary between them is exact by construction, and text
from users never becomes a control token.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instruct_ray.data.example import Example, build_examples
from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message, PromptContract, tokenizer_digest
from instruct_ray.data.rendering.encoding import Encoder
from instruct_ray.data.rendering.template_skeleton import TemplateSkeleton, encode_variable_text, make_skeleton
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

Ids = list[int]
# Shapes of chats, by their roles: a server must not collect what its clients think of.
MAX_SKELETONS = 256


class Renderer:
    """Renders chats by a contract, with the tokenizer that the contract was made from."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contract: PromptContract) -> None:
        """
        Raises:
            InputError: the contract's chat template is none, or its system prompt holds a control token.
        """
        self.tokenizer = tokenizer
        self.contract = contract
        self.template = ChatTemplate(tokenizer, contract.chat_template, contract.template_options)
        self.encoder = Encoder(tokenizer, self.template.control_tokens())
        self._frames: dict[tuple[str, ...], TemplateSkeleton] = {}
        if contract.system_prompt is not None and self.encoder.is_suspect(contract.system_prompt):
            raise InputError("data.system_prompt holds one of the tokenizer's control tokens; leave it out")

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

    def prompt(self, messages: list[Message]) -> Ids:
        """A chat -> the tokens that the answer follows, the contract's system prompt in front unless the chat has one.

        Raises:
            InputError: the chat template refuses the chat, for instance its order of roles.
        """
        [ids] = self._prompts([messages])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def completion(self, answer: str) -> Ids:
        """An answer -> its tokens and the stop token.

        Raises:
            InputError: the tokenizer can't read the answer as mere text.
        """
        [ids] = self._completions([answer])
        if isinstance(ids, RowError):
            raise InputError(ids.detail)
        return ids

    def examples(self, row_ids: Sequence[str], triples: Sequence[Triple]) -> list[list[Example] | RowError]:
        """Rows -> what is trained: one example for each answer of a row, prompted as serving would render it."""
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
        prompts, completions = self._prompts(chats), self._completions(answers)
        rows: list[list[Example] | RowError] = []
        start = 0
        for row_id, triple in zip(row_ids, triples, strict=True):
            stop = start + len(triple.history) + 1
            rows.append(_examples(row_id, prompts[start:stop], completions[start:stop]))
            start = stop
        return rows

    def _prompts(self, chats: Sequence[list[Message]]) -> list[Ids | RowError]:
        results: list[Ids | RowError] = [[]] * len(chats)
        batches: dict[tuple[bool, bool], list[tuple[int, TemplateSkeleton, str]]] = {}
        is_suspect = self.encoder.is_suspect
        for index, messages in enumerate(chats):
            try:
                frame = self._frame(messages)
                text = self._rendered(messages)
                inside = frame.inside(text)
                # Where the template writes no control token inside, one look there is enough.
                if inside is None or (self._is_suspect(messages) if frame.inner_ids else is_suspect(inside)):
                    results[index] = self._careful(messages, text, frame)
                else:
                    batches.setdefault(frame.kind, []).append((index, frame, inside))
            except InputError as error:
                results[index] = RowError("template", str(error))
        for kind, batch in batches.items():
            found = encode_variable_text(self.encoder, kind, [inside for _, _, inside in batch])
            for (index, frame, _), inner in zip(batch, found, strict=True):
                ids = frame.head_ids + inner + frame.tail_ids
                if frame.inner_ids:
                    results[index] = self._checked(ids, chats[index], frame)
                else:
                    results[index] = _not_text() if self.encoder.control_ids(inner) else ids
        return results

    def _is_suspect(self, messages: list[Message]) -> bool:
        # The separator keeps a token from being read across two messages.
        return self.encoder.is_suspect("\0".join([message["content"] for message in messages]))

    def _careful(self, messages: list[Message], text: str, frame: TemplateSkeleton) -> Ids | RowError:
        """A chat in which users wrote control tokens, or that the template wrote unlike others."""
        if not self._is_suspect(messages):
            return self._checked(self.encoder.controlled([text])[0], messages, frame)
        mark = self.encoder.mark
        marked: list[Message] = [{"role": turn["role"], "content": mark(turn["content"])} for turn in messages]
        return self._checked(self.encoder.marked(self._rendered(marked)), messages, frame)

    def _checked(self, ids: Ids, messages: list[Message], frame: TemplateSkeleton) -> Ids | RowError:
        """The tokens, if all control tokens among them are the template's own."""
        found = self.encoder.control_ids(ids)
        if found == frame.control_ids:
            return ids
        # The template may look at what is said; it can do so without the characters that control tokens begin with.
        defuse = self.encoder.defused
        try:
            text = self._rendered([{"role": turn["role"], "content": defuse(turn["content"])} for turn in messages])
        except InputError:
            return _not_text()
        return ids if found == self.encoder.control_ids(self.encoder.controlled([text])[0]) else _not_text()

    def _completions(self, answers: Sequence[str]) -> list[Ids | RowError]:
        contract, encoder = self.contract, self.encoder
        texts = [contract.answer_prefix + contract.stripped(answer) + contract.answer_suffix for answer in answers]
        # Answers that are labels repeat.
        unique = list(dict.fromkeys(texts))
        known: dict[str, Ids | RowError] = {}
        behind = encoder.behind_control if self._ends_in_control else encoder.behind
        for text, ids in zip(unique, behind(unique, encoder.plain), strict=True):
            known[text] = _not_text() if encoder.control_ids(ids) else [*ids, contract.stop_token_id]
        return [known[text] for text in texts]

    @cached_property
    def _ends_in_control(self) -> bool:
        """Whether an answer stands right behind a control token."""
        ids = self.prompt([{"role": "user", "content": "x"}])
        return bool(self.encoder.control_ids(ids[-1:]))

    def _frame(self, messages: list[Message]) -> TemplateSkeleton:
        roles = tuple([message["role"] for message in messages])
        frame = self._frames.get(roles)
        if frame is None:
            if not messages:
                raise InputError("a chat without messages")
            if len(self._frames) == MAX_SKELETONS:
                self._frames.clear()
            chat = self._with_system(messages)
            frame = make_skeleton(self.template, self.encoder, chat, num_fixed=len(chat) - len(messages))
            self._frames[roles] = frame
        return frame

    def _rendered(self, messages: list[Message]) -> str:
        return self.template.render(self._with_system(messages), add_generation_prompt=True)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        if self.contract.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.contract.system_prompt}, *messages]


def load_renderer(folder: Path) -> Renderer:
    """The renderer of a model folder that carries `contract.json` and its tokenizer.

    Raises:
        InputError: the contract is missing or damaged, or the tokenizer is not the one it was made from.
    """
    contract = PromptContract.load(folder / "contract.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer_digest(tokenizer)
    if found != contract.tokenizer_digest:
        raise InputError(f"{folder}: tokenizer {found[:12]} is not the contract's {contract.tokenizer_digest[:12]}")
    return Renderer(tokenizer, contract)


def _not_text() -> RowError:
    return RowError("control_token", "holds text that the tokenizer or the chat template makes a control token of")


def _examples(
    row_id: str, prompts: Sequence[Ids | RowError], completions: Sequence[Ids | RowError]
) -> list[Example] | RowError:
    turns: list[tuple[Ids, Ids]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, RowError):
            return prompt
        if isinstance(completion, RowError):
            return completion
        turns.append((prompt, completion))
    return build_examples(row_id, turns)
