"""The part of a rendered chat that the chat template writes, tokenized once per order of roles instead of per row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from instruct_ray.data.rendering.chat_template import ChatTemplate
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.encoding import Encoder

# Two contents for every message: what both renderings have in common was written by the template.
PLACEHOLDERS = ("x", "yy")


class BatchKey(NamedTuple):
    """How variable text is encoded. Texts with the same key are encoded in one batch."""

    follows_special: bool
    """Whether a special token directly precedes the text."""
    has_special: bool
    """Whether the template writes special tokens inside the text."""


@dataclass(frozen=True)
class TemplateSkeleton:
    """What the template writes in all chats with the same order of roles.

    The prefix ends and the suffix begins with a special token, and the texts on both sides of a special token are
    encoded independently. So the tokens of a chat are those of the prefix, the variable text and the suffix.
    """

    prefix: str
    """Text from the start of the chat through a special token; may be empty."""
    prefix_ids: list[int]
    suffix: str
    """Text from a special token to the end of the chat; may be empty."""
    suffix_ids: list[int]
    variable_special_ids: list[int]
    """Special tokens that the template writes between prefix and suffix."""
    special_ids: list[int]
    """All special tokens that the template writes."""

    @property
    def batch_key(self) -> BatchKey:
        """How the variable text of such a chat is encoded."""
        return BatchKey(follows_special=bool(self.prefix), has_special=bool(self.variable_special_ids))

    def variable_text(self, text: str) -> str | None:
        """Return the text between prefix and suffix of a rendered chat; None if the chat doesn't have both."""
        stop = len(text) - len(self.suffix)
        if stop < len(self.prefix) or not text.startswith(self.prefix) or not text.endswith(self.suffix):
            return None
        return text[len(self.prefix) : stop]


def make_skeleton(
    template: ChatTemplate, encoder: Encoder, messages: Sequence[Message], num_fixed: int
) -> TemplateSkeleton:
    """Build the skeleton of the chats that have the same roles as a chat.

    Args:
        template: The chat template.
        encoder: The encoder for its tokenizer.
        messages: A chat with these roles.
        num_fixed: How many of the first messages have the same content in all the chats.

    Raises:
        InputError: The template rejects such a chat.
    """
    texts = [
        template.render(
            [*messages[:num_fixed], *[Message(role=turn["role"], content=content) for turn in messages[num_fixed:]]],
            add_generation_prompt=True,
        )
        for content in PLACEHOLDERS
    ]
    text, other_text = texts
    prefix = _common_prefix(text, other_text)
    suffix = _common_prefix(text[len(prefix) :][::-1], other_text[len(prefix) :][::-1])[::-1]
    prefix, suffix = encoder.prefix_through_last_special(prefix), encoder.suffix_from_first_special(suffix)
    expected = encoder.encode_with_special(texts)
    for ends in (prefix, suffix), (prefix, ""), ("", suffix):
        skeleton = _build_skeleton(encoder, *ends, text, expected[0])
        if all(_reproduces(skeleton, encoder, *pair) for pair in zip(texts, expected, strict=True)):
            return skeleton
    return _build_skeleton(encoder, "", "", text, expected[0])


def encode_variable_text(encoder: Encoder, key: BatchKey, texts: list[str]) -> list[list[int]]:
    """Encode the variable texts of chats whose skeletons have this batch key.

    Where the template writes no special token, none is recognized.
    """
    encode = encoder.encode_with_special if key.has_special else encoder.encode_as_text
    return encoder.encode_after_special(texts, encode) if key.follows_special else encode(texts)


def _build_skeleton(encoder: Encoder, prefix: str, suffix: str, text: str, ids: list[int]) -> TemplateSkeleton:
    variable_text = text[len(prefix) : len(text) - len(suffix)]
    prefix_ids, suffix_ids, variable_ids = encoder.encode_with_special([prefix, suffix, variable_text])
    return TemplateSkeleton(
        prefix, prefix_ids, suffix, suffix_ids, encoder.special_ids(variable_ids), encoder.special_ids(ids)
    )


def _reproduces(skeleton: TemplateSkeleton, encoder: Encoder, text: str, expected: list[int]) -> bool:
    """Whether the three parts, encoded apart, give the tokens of the entire chat."""
    key = BatchKey(follows_special=bool(skeleton.prefix), has_special=True)
    [variable_ids] = encode_variable_text(encoder, key, [skeleton.variable_text(text) or ""])
    return [*skeleton.prefix_ids, *variable_ids, *skeleton.suffix_ids] == expected


def _common_prefix(first: str, second: str) -> str:
    return "".join(a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
