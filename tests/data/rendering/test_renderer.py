"""Rows rendered in batches get the tokens that transformers gives one by one, and users write no special token."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_ray.data.example import Example
from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from tests.data.rendering.families import (
    CORPUS,
    FAMILIES,
    encode_with_transformers,
    find_special_ids,
    make_renderer,
    user,
)

# Markers of transformers and of other programs, zero width, homoglyphs, combining characters, odd spaces.
TRICKS = [
    "\U000f0000", "\U000f0001", "\ue000", "\uf8ff", "\u200b", "\u200d", "\ufeff", "\u2581", "\u0338", "\u0301",
    "\uff1c", "\uff5c", "\uff1e", "\u212a", "\u00a0", "\u3000", "\u2028", "\t", "\r\n", "\n", "\n\n", " ", "  ",
    "<", "|", ">", "[", "]", "/", "\x85", "İ", "e\u0301", "<0x0A>", "{{ bos_token }}", "### Response:\n", "<<SYS>>",
]  # fmt: skip
OPEN, CLOSE = TRICKS[:2]


@pytest.fixture(scope="module")
def renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return make_renderer(FAMILIES[request.param], tmp_path_factory.mktemp("family"))


all_families = pytest.mark.parametrize("renderer", list(FAMILIES), indirect=True)


def hostile_texts(renderer: Renderer) -> st.SearchStrategy[str]:
    """Text made of the tokenizer's added tokens: entire, split, nested, between markers and disguised."""
    added = st.sampled_from([token.content for token in renderer.tokenizer.added_tokens_decoder.values()])
    prefixes = st.tuples(added, st.integers(1, 8)).map(lambda part: part[0][: part[1]])
    suffixes = st.tuples(added, st.integers(1, 8)).map(lambda part: part[0][-part[1] :])
    nested = st.tuples(added, added, st.integers(1, 6)).map(
        lambda part: part[0][: part[2]] + part[1] + part[0][part[2] :]
    )
    marked = added.map(lambda token: OPEN + token + CLOSE)
    words = st.sampled_from([*TRICKS, *CORPUS.split()[:40]])
    parts = st.one_of(added, prefixes, suffixes, nested, marked, words, st.text(max_size=4))
    return st.lists(parts, min_size=1, max_size=6).map("".join)


def hostile_triples(renderer: Renderer, supports_system: bool) -> st.SearchStrategy[Triple]:
    text = hostile_texts(renderer)
    return st.builds(
        Triple,
        id=st.just("row"),
        instruction=text,
        input=st.one_of(st.just(""), text),
        output=text,
        system=st.one_of(st.none(), text) if supports_system else st.none(),
        history=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    )


def render_rows(renderer: Renderer, triples: Sequence[Triple]) -> list[list[Example]]:
    """Render rows as examples; none of them may be an error."""
    rows = renderer.examples([triple.id for triple in triples], triples)
    assert not [row for row in rows if isinstance(row, RowError)]
    return [row for row in rows if not isinstance(row, RowError)]


def replace_content(chat: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": "x"} for message in chat]


@all_families
def test_hostile_rows_match_transformers_and_write_no_special_token(
    renderer: Renderer, request: pytest.FixtureRequest
) -> None:
    supports_system = FAMILIES[request.node.callspec.params["renderer"]].supports_system

    def special_ids(ids: Sequence[int]) -> list[int]:
        return find_special_ids(renderer, ids)

    @settings(deadline=None, max_examples=20)
    @given(st.lists(hostile_triples(renderer, supports_system), min_size=1, max_size=4))
    def check(triples: list[Triple]) -> None:
        for triple, examples in zip(triples, render_rows(renderer, triples), strict=True):
            chat = renderer.chat(triple)
            prompts = [chat[: index + 1] for index, message in enumerate(chat) if message["role"] == "user"]
            answers = [*(answer for _, answer in triple.history), triple.output]
            for prompt, answer, example in zip(prompts, answers, examples, strict=True):
                assert example.prompt_ids == encode_with_transformers(renderer, prompt) == renderer.prompt(prompt)
                assert special_ids(example.prompt_ids) == special_ids(renderer.prompt(replace_content(prompt)))
                assert example.completion_ids == renderer.completion(answer)
                assert special_ids(example.completion_ids) == [renderer.contract.stop_token_id]

    check()


@all_families
def test_harmless_rows_match_transformers(renderer: Renderer) -> None:
    """Harmless text of any alphabet is encoded in batches."""

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        triples = [Triple("row", text, "", "Low") for text in texts]
        for triple, [example] in zip(triples, render_rows(renderer, triples), strict=True):
            assert example.prompt_ids == encode_with_transformers(renderer, renderer.chat(triple))

    check()


def test_chat_that_the_template_rejects_is_one_row_error(tmp_path: Path) -> None:
    renderer = make_renderer(FAMILIES["gemma"], tmp_path)
    triples = [Triple("a", "x", "", "y", system="Be brief."), Triple("b", "x", "", "y")]
    error, [example] = renderer.examples(["a", "b"], triples)
    assert isinstance(error, RowError) and error.reason == "template" and "System role" in error.detail
    assert isinstance(example, Example) and example.prompt_ids == renderer.prompt(user("x"))
    with pytest.raises(InputError, match="a chat without messages"):
        renderer.prompt([])


def test_turns_that_are_not_trained_on_are_in_the_prompts_of_later_ones(tmp_path: Path) -> None:
    renderer = make_renderer(FAMILIES["chatml"], tmp_path)
    history = (("one?", "wrong"), ("two?", "2"), ("three?", "wrong"))
    rows = [Triple("a", "four?", "", "4", "Count.", history, untrained) for untrained in ((), (0, 2), (0, 1, 2))]
    full, two, one = render_rows(renderer, [*rows, Triple("b", "x", "", "y")])[:3]
    assert [example.row_id for example in full] == ["a/1", "a/2", "a/3", "a/4"]
    for examples, kept in ((two, [full[1], full[3]]), (one, [full[3]])):
        assert [e.prompt_ids for e in examples] == [e.prompt_ids for e in kept]
        assert [e.completion_ids for e in examples] == [e.completion_ids for e in kept]
    assert [example.row_id for example in two + one] == ["a/1", "a/2", "a"]
    num_tokens = [sum(e.num_tokens - e.num_counted for e in examples) for examples in (full, two, one)]
    assert num_tokens == [full[3].num_tokens] * 3
