"""A triple: its side of the split, and the digest of its content."""

from hypothesis import example, given
from hypothesis import strategies as st

from instruct_ray.data.sources.triple import Triple


def test_reworded_instruction_stays_in_its_split() -> None:
    texts = [f"report {number}" for number in range(200)]
    is_test = [Triple("a", "Rate this.", text, "x").assign_split(0.25) == "test" for text in texts]
    reworded = [Triple("b", "How bad?", f"  {text.upper()} ", "x").assign_split(0.25) == "test" for text in texts]
    assert is_test == reworded
    assert 20 < sum(is_test) < 80


texts = st.text(st.sampled_from("ab1:\x1e"), max_size=4)
triples = st.builds(
    Triple,
    st.just("a"),
    texts,
    texts,
    texts,
    st.none() | texts,
    st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
)


@given(triples, triples)
@example(Triple("a", "b\x1ec", "d", "e"), Triple("a", "b", "c\x1ed", "e"))
def test_content_digest_is_equal_only_for_same_content(first: Triple, second: Triple) -> None:
    contents = [(t.system or "", t.history, t.instruction, t.input, t.output) for t in (first, second)]
    assert (first.content_digest == second.content_digest) == (contents[0] == contents[1])
