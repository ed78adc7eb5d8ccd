"""Packs: every example once, every shared token once, and nobody sees anybody else."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.packs.dataset import from_table, to_table
from instruct_ray.data.packs.tree import Pack, empty_pack, pack_examples

PREFIXES = [[1, 2, 3], [1, 2, 4], [1, 2], [5]]
tokens = st.integers(1, 6)
examples = st.lists(
    st.builds(
        lambda prefix, rest, answer: ([*prefix, *rest], [*answer, 0]),
        st.sampled_from(PREFIXES),
        st.lists(tokens, max_size=4),
        st.lists(tokens, max_size=3),
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: [Example(str(i), prompt, completion) for i, (prompt, completion) in enumerate(rows)])


def visible(found: Pack, query: int) -> list[int]:
    return [key for key in range(query + 1) if query < found["subtree_end"][key]]


def trained_paths(packs: list[Pack]) -> list[tuple[list[int], int]]:
    """What each trained position sees, itself last, and what it is trained to predict."""
    return [
        ([found["input_ids"][key] for key in visible(found, query)], label)
        for found in packs
        for query, label in enumerate(found["labels"])
        if label != IGNORE_INDEX
    ]


def expected_paths(rows: list[Example]) -> list[tuple[list[int], int]]:
    paths = []
    for row in rows:
        whole = [*row.prompt_ids, *row.completion_ids]
        paths += [(whole[:end], whole[end]) for end in range(len(row.prompt_ids), len(whole))]
    return paths


@given(examples, st.integers(12, 40))
def test_each_trained_token_sees_exactly_its_own_example(rows: list[Example], pack_tokens: int) -> None:
    packs = list(pack_examples(rows, pack_tokens))
    assert sorted(trained_paths(packs)) == sorted(expected_paths(rows))


@given(examples, st.integers(12, 40))
def test_rows_counts_and_positions(rows: list[Example], pack_tokens: int) -> None:
    packs = list(pack_examples(rows, pack_tokens))
    assert sorted(row_id for found in packs for row_id in found["row_ids"]) == sorted(row.row_id for row in rows)
    assert sum(found["num_tokens"] for found in packs) == sum(row.num_tokens for row in rows)
    for found in packs:
        size = len(found["input_ids"])
        assert size <= pack_tokens
        assert len(found["labels"]) == len(found["position_ids"]) == len(found["subtree_end"]) == size
        assert found["num_trained"] == sum(label != IGNORE_INDEX for label in found["labels"])
        assert all(index < end <= size for index, end in enumerate(found["subtree_end"]))
        for query in range(size):
            assert found["position_ids"][query] == len(visible(found, query)) - 1


def test_a_shared_prompt_stands_once() -> None:
    rows = [Example(str(i), [1, 2, 3, 10 + i, 4], [7, 0]) for i in range(5)]
    [found] = pack_examples(rows, 64)
    # 1 2 3 once, then each row's own input, the prompt's last token and the answer.
    assert len(found["input_ids"]) == 3 + 5 * 3


def test_the_position_that_predicts_the_answer_is_each_examples_own() -> None:
    [found] = pack_examples([Example("a", [1, 2], [5, 0]), Example("b", [1, 2], [6, 0])], 64)
    assert found["input_ids"].tolist() == [1, 2, 5, 2, 6]
    assert found["labels"].tolist() == [IGNORE_INDEX, 5, 0, 6, 0]


def test_equal_rows_are_all_trained() -> None:
    [found] = pack_examples([Example(name, [1, 2], [5, 0]) for name in "abc"], 64)
    assert found["num_trained"] == 6
    assert found["labels"].tolist().count(5) == 3


def test_order_decides_the_bytes() -> None:
    rows = [Example(str(i), [1, i % 3, i], [5, 0]) for i in range(30)]
    again = list(rows)
    random.Random(0).shuffle(again)
    assert to_table(list(pack_examples(rows, 20))).equals(to_table(list(pack_examples(list(rows), 20))))
    assert not to_table(list(pack_examples(rows, 20))).equals(to_table(list(pack_examples(again, 20))))


@given(examples)
def test_packs_survive_arrow(rows: list[Example]) -> None:
    packs = list(pack_examples(rows, 40))
    table = to_table(packs)
    assert to_table(from_table(table)).equals(table)
    assert [made["row_ids"] for made in from_table(table)] == [made["row_ids"] for made in packs]


def test_the_turns_of_a_chat_share_their_history_and_count_it_once() -> None:
    first, second = Example("a/1", [1, 2, 3], [7, 0]), Example("a/2", [1, 2, 3, 7, 0, 4], [8, 0], num_counted=5)
    [found] = pack_examples([first, second], 64)
    # The stop token of the first answer is read by the second turn only.
    assert found["input_ids"].tolist() == [1, 2, 3, 7, 0, 4, 8]
    assert found["labels"].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 7, 0, IGNORE_INDEX, 8, 0]
    assert found["num_tokens"] == len(second.prompt_ids) + len(second.completion_ids)


def test_a_row_longer_than_a_pack_is_named() -> None:
    with pytest.raises(ValueError, match="row x has 10 tokens, a pack only 8"):
        list(pack_examples([Example("x", [1] * 8, [1, 0])], 8))


def test_an_empty_pack_trains_nothing() -> None:
    found = empty_pack()
    assert found["num_trained"] == 0
    assert found["labels"].tolist() == [IGNORE_INDEX]
