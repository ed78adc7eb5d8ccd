"""Packs: every example once, every shared token once, and no token attends to another example."""

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


def attended_keys(pack: Pack, query: int) -> list[int]:
    return [key for key in range(query + 1) if query < pack["subtree_end"][key]]


def contexts_in_packs(packs: list[Pack]) -> list[tuple[list[int], int]]:
    """For each position with a target: the tokens that it attends to, itself last, and its label."""
    return [
        ([pack["input_ids"][key] for key in attended_keys(pack, query)], label)
        for pack in packs
        for query, label in enumerate(pack["labels"])
        if label != IGNORE_INDEX
    ]


def contexts_in_examples(rows: list[Example]) -> list[tuple[list[int], int]]:
    contexts = []
    for row in rows:
        ids = [*row.prompt_ids, *row.completion_ids]
        contexts += [(ids[:end], ids[end]) for end in range(len(row.prompt_ids), len(ids))]
    return contexts


@given(examples, st.integers(12, 40))
def test_each_target_attends_to_exactly_its_own_example(rows: list[Example], pack_tokens: int) -> None:
    packs = list(pack_examples(rows, pack_tokens))
    assert sorted(contexts_in_packs(packs)) == sorted(contexts_in_examples(rows))


@given(examples, st.integers(12, 40))
def test_rows_counts_and_positions(rows: list[Example], pack_tokens: int) -> None:
    packs = list(pack_examples(rows, pack_tokens))
    assert sorted(row_id for pack in packs for row_id in pack["row_ids"]) == sorted(row.row_id for row in rows)
    assert sum(pack["num_tokens"] for pack in packs) == sum(row.num_tokens for row in rows)
    for pack in packs:
        size = len(pack["input_ids"])
        assert size <= pack_tokens
        assert len(pack["labels"]) == len(pack["position_ids"]) == len(pack["subtree_end"]) == size
        assert pack["num_trained"] == sum(label != IGNORE_INDEX for label in pack["labels"])
        assert all(index < end <= size for index, end in enumerate(pack["subtree_end"]))
        for query in range(size):
            assert pack["position_ids"][query] == len(attended_keys(pack, query)) - 1


def test_a_shared_prompt_is_stored_once() -> None:
    rows = [Example(str(i), [1, 2, 3, 10 + i, 4], [7, 0]) for i in range(5)]
    [pack] = pack_examples(rows, 64)
    # 1 2 3 once, then for each row its input, the last token of the prompt and the answer.
    assert len(pack["input_ids"]) == 3 + 5 * 3


def test_the_position_that_predicts_the_answer_is_not_shared() -> None:
    [pack] = pack_examples([Example("a", [1, 2], [5, 0]), Example("b", [1, 2], [6, 0])], 64)
    assert pack["input_ids"].tolist() == [1, 2, 5, 2, 6]
    assert pack["labels"].tolist() == [IGNORE_INDEX, 5, 0, 6, 0]


def test_equal_rows_keep_all_their_targets() -> None:
    [pack] = pack_examples([Example(name, [1, 2], [5, 0]) for name in "abc"], 64)
    assert pack["num_trained"] == 6
    assert pack["labels"].tolist().count(5) == 3


def test_the_order_of_examples_decides_the_packs() -> None:
    rows = [Example(str(i), [1, i % 3, i], [5, 0]) for i in range(30)]
    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    assert to_table(list(pack_examples(rows, 20))).equals(to_table(list(pack_examples(list(rows), 20))))
    assert not to_table(list(pack_examples(rows, 20))).equals(to_table(list(pack_examples(shuffled, 20))))


@given(examples)
def test_packs_round_trip_through_arrow(rows: list[Example]) -> None:
    packs = list(pack_examples(rows, 40))
    table = to_table(packs)
    assert to_table(from_table(table)).equals(table)
    assert [pack["row_ids"] for pack in from_table(table)] == [pack["row_ids"] for pack in packs]


def test_the_turns_of_a_chat_share_their_history_and_count_it_once() -> None:
    first, second = Example("a/1", [1, 2, 3], [7, 0]), Example("a/2", [1, 2, 3, 7, 0, 4], [8, 0], num_counted=5)
    [pack] = pack_examples([first, second], 64)
    # The stop token of the first answer is read by the second turn only.
    assert pack["input_ids"].tolist() == [1, 2, 3, 7, 0, 4, 8]
    assert pack["labels"].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 7, 0, IGNORE_INDEX, 8, 0]
    assert pack["num_tokens"] == len(second.prompt_ids) + len(second.completion_ids)


def test_a_row_longer_than_a_pack_is_an_error() -> None:
    with pytest.raises(ValueError, match="row x has 10 tokens, a pack only 8"):
        list(pack_examples([Example("x", [1] * 8, [1, 0])], 8))


def test_an_empty_pack_has_no_target() -> None:
    pack = empty_pack()
    assert pack["num_trained"] == 0
    assert pack["labels"].tolist() == [IGNORE_INDEX]
