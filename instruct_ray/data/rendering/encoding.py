"""Text -> token ids, by a tokenizer that keeps the template's control tokens and text from users apart."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

# Around a control token in what a user wrote, while the template is rendered. The same as transformers takes.
OPEN, CLOSE = "\U000f0000", "\U000f0001"
# Text to stand in front of another, so that none is at the very start; a later one where the first merges with it.
_CONTEXT_PREFIXES = ("\n", "x", "!")

Encode = Callable[[list[str]], list[list[int]]]


class Encoder:
    """Encodes text in two ways: control tokens found in it are read as such, or as the letters they are made of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_tokens: Sequence[str]) -> None:
        """`control_tokens`: the contents of the added tokens that no text from a user may become."""
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._plain_backend = _without(tokenizer, tuple(control_tokens))
        self._known_ids = frozenset(self._backend.token_to_id(token) for token in control_tokens)
        longest_first = sorted(control_tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._control = re.compile(pattern)
        self._suspect = re.compile(f"{pattern}|[{OPEN}{CLOSE}]")
        self._marked = re.compile(f"{OPEN}({pattern}){CLOSE}|[{OPEN}{CLOSE}]")
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._added = {content: added[content] for content in control_tokens}
        # Where other characters become those of a control token.
        self._normalizer = self._backend.normalizer if any(token.normalized for token in self._added.values()) else None
        self._edges = str.maketrans({edge: OPEN for token in control_tokens for edge in (token[0], token[-1])})

    def controlled(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts in which control tokens are read as such."""
        return _encode(self._backend, texts, as_text=False)

    def plain(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts in which control tokens are read as letters."""
        return _encode(self._plain_backend, texts, as_text=True)

    def behind(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Tokens of texts that stand behind others: without the space that SentencePiece puts in front of a text."""
        if not self._prepends_space:
            return encode(texts)
        found: dict[int, list[int]] = {}
        for guard in _CONTEXT_PREFIXES:
            left = [index for index in range(len(texts)) if index not in found]
            [guard_ids] = encode([guard])
            size = len(guard_ids)
            for index, ids in zip(left, encode([guard + texts[index] for index in left]), strict=True):
                if ids[:size] == guard_ids:
                    found[index] = ids[size:]
        return [found[index] if index in found else encode([text])[0] for index, text in enumerate(texts)]

    def behind_control(self, texts: list[str], encode: Encode) -> list[list[int]]:
        """Tokens of texts that stand right behind a control token: some tokenizers put a space there too."""
        return encode(texts) if self._prepends_everywhere else self.behind(texts, encode)

    def cut_behind_control(self, text: str) -> str:
        """The text up to its last control token, if what follows is tokenised as if it stood alone; else nothing."""
        found = list(self._control.finditer(text))
        if not found or self._leans(found[-1][0]) or self._added[found[-1][0]].rstrip:
            return ""
        return text[: found[-1].end()]

    def cut_before_control(self, text: str) -> str:
        """The text from its first control token on, if what is in front is tokenised as if it stood alone; else
        nothing."""
        found = self._control.search(text)
        if not found or self._leans(found[0]) or self._added[found[0]].lstrip:
            return ""
        return text[found.start() :]

    def is_suspect(self, text: str) -> bool:
        """Whether it holds a control token, or what `mark` puts around one."""
        return self._suspect.search(text) is not None

    def mark(self, text: str) -> str:
        """Put marks around the control tokens in what a user wrote, for `marked` to find; forged marks are dropped."""
        return self._control.sub(f"{OPEN}\\g<0>{CLOSE}", text.replace(OPEN, "").replace(CLOSE, ""))

    def marked(self, text: str) -> list[int]:
        """Tokens of a chat rendered from marked text: control tokens between marks are read as letters.

        A mark that lost its partner to the template still parts the text on its sides.
        """
        first, *pieces = self._marked.split(text)
        [ids] = self.controlled([first])
        for index, piece in enumerate(pieces):
            if piece:
                ids += self.behind([piece], self.controlled if index % 2 else self.plain)[0]
        return ids

    def defused(self, text: str) -> str:
        """The text without the characters that control tokens begin or end with, so that none can come of it."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return text.translate(self._edges)

    def control_ids(self, ids: list[int]) -> list[int]:
        """The control tokens among tokens."""
        known = self._known_ids
        return [] if known.isdisjoint(ids) else [token_id for token_id in ids if token_id in known]

    def _leans(self, token: str) -> bool:
        """Whether it depends on the text around it if this is the token at all."""
        added = self._added[token]
        return bool(added.single_word or (added.normalized and self._normalizer is not None))

    @cached_property
    def _prepends_everywhere(self) -> bool:
        """Whether a space is put in front of every text between control tokens, not of the first only."""
        token = next((token for token in self._added if not self._added[token].rstrip), None)
        if token is None:
            return False
        [alone] = self.plain(["A"])
        [behind] = self.controlled([token + "A"])
        return behind[-len(alone) :] == alone and behind[: -len(alone)] == [self._backend.token_to_id(token)]

    @cached_property
    def _prepends_space(self) -> bool:
        alone, newline, behind = self.plain(["A", "\n", "\nA"])
        return behind[: len(newline)] == newline and behind[len(newline) :] != alone


def _encode(backend: Tokenizer, texts: list[str], *, as_text: bool) -> list[list[int]]:
    # Left behind by whoever used the tokenizer last.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = as_text
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


@lru_cache(maxsize=4)
def _without(tokenizer: PreTrainedTokenizerBase, control_tokens: tuple[str, ...]) -> Tokenizer:
    """A backend that reads all control tokens as letters when it is told so: it does that with special ones only."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    added = tokenizer.added_tokens_decoder.values()
    ordinary = [token for token in added if token.content in control_tokens and not token.special]
    if not ordinary:
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.add_special_tokens(
        [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for token in ordinary
        ]
    )
    return copy
