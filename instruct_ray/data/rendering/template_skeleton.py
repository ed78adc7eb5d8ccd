"""What a chat template writes around every chat of a shape: tokenised once, not once a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.encoding import Encoder

# Two contents for every turn: what both renderings share is the template's own.
PLACEHOLDERS = ("x", "yy")


@dataclass(frozen=True)
class TemplateSkeleton:
    """The template's own part of all chats with the same order of roles.

    A control token parts the texts on its sides, so that the tokens of a chat are those of head, inside and tail.
    """

    head: str
    """Text from the start up to and with a control token; may be empty."""
    head_ids: list[int]
    tail: str
    """Text from a control token to the end; may be empty."""
    tail_ids: list[int]
    inner_ids: list[int]
    """The control tokens between the two."""
    control_ids: list[int]
    """All control tokens of the chat."""

    @property
    def kind(self) -> tuple[bool, bool]:
        """Chats whose frames are equal in this are tokenised together."""
        return bool(self.head), bool(self.inner_ids)

    def inside(self, text: str) -> str | None:
        """What stands between head and tail of a chat; None if the template wrote this one in another way."""
        stop = len(text) - len(self.tail)
        if stop < len(self.head) or not text.startswith(self.head) or not text.endswith(self.tail):
            return None
        return text[len(self.head) : stop]


def make_skeleton(
    template: ChatTemplate, encoder: Encoder, messages: Sequence[Message], num_fixed: int
) -> TemplateSkeleton:
    """The frame of all chats that differ from this one only in what is said, the first `num_fixed` messages apart.

    Raises:
        InputError: the template refuses such a chat.
    """
    one, other = (
        template.render(
            [*messages[:num_fixed], *[Message(role=turn["role"], content=content) for turn in messages[num_fixed:]]],
            add_generation_prompt=True,
        )
        for content in PLACEHOLDERS
    )
    texts = [one, other]
    head = _common_prefix(one, other)
    tail = _common_prefix(one[len(head) :][::-1], other[len(head) :][::-1])[::-1]
    head, tail = encoder.cut_behind_control(head), encoder.cut_before_control(tail)
    wholes = encoder.controlled(texts)
    for parts in (head, tail), (head, ""), ("", tail):
        frame = _build_skeleton(encoder, *parts, texts[0], wholes[0])
        if all(_holds(frame, encoder, text, ids) for text, ids in zip(texts, wholes, strict=True)):
            return frame
    return _build_skeleton(encoder, "", "", texts[0], wholes[0])


def encode_variable_text(encoder: Encoder, kind: tuple[bool, bool], texts: list[str]) -> list[list[int]]:
    """Tokens of what stands inside frames of a kind. Where the template writes no control token, none is read."""
    has_head, has_control = kind
    encode = encoder.controlled if has_control else encoder.plain
    return encoder.behind_control(texts, encode) if has_head else encode(texts)


def _build_skeleton(encoder: Encoder, head: str, tail: str, text: str, ids: list[int]) -> TemplateSkeleton:
    head_ids, tail_ids, inner = encoder.controlled([head, tail, text[len(head) : len(text) - len(tail)]])
    return TemplateSkeleton(head, head_ids, tail, tail_ids, encoder.control_ids(inner), encoder.control_ids(ids))


def _holds(frame: TemplateSkeleton, encoder: Encoder, text: str, ids: list[int]) -> bool:
    [inner] = encode_variable_text(encoder, (bool(frame.head), True), [frame.inside(text) or ""])
    return [*frame.head_ids, *inner, *frame.tail_ids] == ids


def _common_prefix(one: str, other: str) -> str:
    """What both begin with."""
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
