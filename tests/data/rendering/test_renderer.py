"""No text from a user becomes a control token, and many rows at once become the tokens of transformers' slow way."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.readers import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from tests.data.rendering.families import CORPUS, FAMILIES, control_ids, renderer_of, slow, user

# Marks of transformers and of other uses, zero width, homoglyphs, combining characters, odd spaces.
TRICKS = [
    "\U000f0000", "\U000f0001", "\ue000", "\uf8ff", "\u200b", "\u200d", "\ufeff", "\u2581", "\u0338", "\u0301",
    "\uff1c", "\uff5c", "\uff1e", "\u212a", "\u00a0", "\u3000", "\u2028", "\t", "\r\n", "\n", "\n\n", " ", "  ",
    "<", "|", ">", "[", "]", "/", "\x85", "İ", "e\u0301", "<0x0A>", "{{ bos_token }}", "### Response:\n", "<<SYS>>",
]  # fmt: skip
OPEN, CLOSE = TRICKS[:2]
ALL = list(FAMILIES)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer_of(FAMILIES[request.param], tmp_path_factory.mktemp("family"))


each_family = pytest.mark.parametrize("family", ALL, indirect=True)


def hostile(renderer: Renderer) -> st.SearchStrategy[str]:
    """Text out of the tokenizer's own added tokens, whole, split, marked and disguised."""
    added = [token.content for token in renderer.tokenizer.added_tokens_decoder.values()]
    whole = st.sampled_from(added)
    halves = st.tuples(whole, st.integers(1, 8)).map(lambda part: part[0][: part[1]])
    ends = st.tuples(whole, st.integers(1, 8)).map(lambda part: part[0][-part[1] :])
    nested = st.tuples(whole, whole, st.integers(1, 6)).map(
        lambda part: part[0][: part[2]] + part[1] + part[0][part[2] :]
    )
    marked = whole.map(lambda token: OPEN + token + CLOSE)
    words = st.sampled_from([*TRICKS, *CORPUS.split()[:40]])
    pieces = st.one_of(whole, halves, ends, nested, marked, words, st.text(max_size=4))
    return st.lists(pieces, min_size=1, max_size=6).map("".join)


def triples(renderer: Renderer, takes_system: bool) -> st.SearchStrategy[Triple]:
    text = hostile(renderer)
    return st.builds(
        Triple,
        id=st.just("row"),
        instruction=text,
        input=st.one_of(st.just(""), text),
        output=text,
        system=st.one_of(st.none(), text) if takes_system else st.none(),
        history=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    )


def examples_of(renderer: Renderer, rows: Sequence[Triple]) -> list[list[Example]]:
    found = renderer.examples([row.id for row in rows], rows)
    assert not [row for row in found if isinstance(row, RowError)]
    return [row for row in found if not isinstance(row, RowError)]


def neutral(chat: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": "x"} for message in chat]


@each_family
def test_rows_become_what_transformers_makes_of_them_and_no_text_a_control_token(
    family: Renderer, request: pytest.FixtureRequest
) -> None:
    takes_system = FAMILIES[request.node.callspec.params["family"]].takes_system

    @settings(deadline=None, max_examples=20)
    @given(st.lists(triples(family, takes_system), min_size=1, max_size=4))
    def check(rows: list[Triple]) -> None:
        for row, examples in zip(rows, examples_of(family, rows), strict=True):
            chat = family.chat(row)
            prompts = [chat[: index + 1] for index, message in enumerate(chat) if message["role"] == "user"]
            answers = [*(answer for _, answer in row.history), row.output]
            for prompt, answer, example in zip(prompts, answers, examples, strict=True):
                assert example.prompt_ids == slow(family, prompt) == family.prompt(prompt)
                assert control_ids(family, example.prompt_ids) == control_ids(family, family.prompt(neutral(prompt)))
                assert example.completion_ids == family.completion(answer)
                assert control_ids(family, example.completion_ids) == [family.contract.stop_token_id]

    check()


@each_family
def test_plain_rows_become_what_transformers_makes_of_them(family: Renderer) -> None:
    """As above with harmless text of any alphabet, which takes the fast way."""

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        rows = [Triple("row", text, "", "Low") for text in texts]
        for row, [example] in zip(rows, examples_of(family, rows), strict=True):
            assert example.prompt_ids == slow(family, family.chat(row))

    check()


def test_a_chat_that_the_template_refuses_is_one_bad_row(tmp_path: Path) -> None:
    renderer = renderer_of(FAMILIES["gemma"], tmp_path)
    rows = [Triple("a", "x", "", "y", system="Be brief."), Triple("b", "x", "", "y")]
    refused, [kept] = renderer.examples(["a", "b"], rows)
    assert isinstance(refused, RowError) and refused.reason == "template" and "System role" in refused.detail
    assert isinstance(kept, Example) and kept.prompt_ids == renderer.prompt(user("x"))
    with pytest.raises(InputError, match="a chat without messages"):
        renderer.prompt([])
