"""A look at the data before anything runs: the first usable rows, and the tree that they make."""

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from instruct_ray.config.schema import Config
from instruct_ray.data.preview.select import Preview, make_preview
from instruct_ray.data.preview.terminal import print_preview
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

Row = dict[str, object]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: list[Row | str], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return make


def row(number: int, instruction: str = "How bad is it?") -> Row:
    return {"instruction": instruction, "input": f"report {number}", "output": "High"}


def is_test(values: Row) -> bool:
    return Triple("", str(values["instruction"]), str(values["input"]), "").assign_split(0.25) == "test"


def drawn(found: Preview, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160, soft_wrap=not terminal, highlight=False)
    print_preview(found, console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_the_first_rows_that_are_not_held_out(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [row(number) for number in range(20)]
    found = make_preview(make_config(data={"sources": [write(rows)]}), 4)
    wanted = [number for number in range(20) if not is_test(rows[number])][:4]
    assert list(found.places.values()) == [f"rows.jsonl, row {number + 1}" for number in wanted]
    assert found.passed_over["held out"] == wanted[-1] + 1 - 4
    assert sorted(name for made in found.packs for name in made["row_ids"]) == sorted(found.places)


def test_bad_rows_are_named_and_passed_over(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    good = next(row(number) for number in range(20) if not is_test(row(number)))
    long = row(0) | {"input": "long " * 200}
    path = write(["{", {"instruction": "x"}, good, good, long])
    found = make_preview(make_config(data={"sources": [path]}), 5)
    assert len(found.rows) == 1
    assert found.passed_over == {"set aside": 2, "duplicate": 1, "too long": 1}
    text = drawn(found)
    assert "5 rows read; passed over: 2 set aside, 1 duplicate, 1 too long" in text
    assert "rows.jsonl, row 1 is not JSON" in text and "rows.jsonl, row 2 has no output" in text


def test_a_huge_source_answers_at_once(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    path = write([row(number) for number in range(20)])
    os.truncate(path, 100 * 2**30)
    config = make_config(data={"sources": [path]})
    began = time.monotonic()
    assert len(make_preview(config, 5).rows) == 5
    assert time.monotonic() - began < 20


def test_a_source_without_a_usable_row_is_given_up_early(
    make_config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    path = write([{"question": "x"}] * 5000)
    with pytest.raises(InputError, match=r"no row to train on among the first 1000 \(1000 set aside\).*row 1 has no"):
        make_preview(make_config(data={"sources": [path]}), 5)


@pytest.mark.parametrize("num_rows", [0, -1, 1001])
def test_a_number_of_rows_out_of_range(make_config: Callable[..., Config], num_rows: int) -> None:
    with pytest.raises(InputError, match=f"-n {num_rows}: from 1 to 1000 rows"):
        make_preview(make_config(), num_rows)


def test_every_source_is_seen(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [row(number) for number in range(40) if not is_test(row(number))]
    paths = [write(rows[:9], "a.jsonl"), write(rows[9:], "b.jsonl")]
    found = make_preview(make_config(data={"sources": paths}), 4)
    assert [place.split(",")[0] for place in found.places.values()] == ["a.jsonl", "b.jsonl"] * 2


def test_the_tree_holds_every_computed_token_and_every_row(make_config: Callable[..., Config]) -> None:
    found = make_preview(make_config(), 12)
    text = drawn(found)
    tree = [line for line in text.splitlines() if "── " in line and line[0] in "├└│ "]
    counted = [int(match[1]) for line in tree if (match := re.search(r"  (\d+) tokens?  ", line))]
    assert len(counted) == len(tree)
    assert sum(counted) == sum(len(made["input_ids"]) for made in found.packs)
    leaves = [line for line in tree if "shared by" not in line]
    assert sorted(match for line in leaves for match in re.findall(r"── (\d+:\d+)", line)) == sorted(found.places)
    assert all("»" in line for line in leaves)
    assert len(found.packs) > 1


def test_long_runs_are_shortened(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [row(number) | {"output": "word " * 40} for number in range(12)]
    limits = {"pack_tokens": 1024, "max_tokens": 1024}
    text = drawn(make_preview(make_config(data={"sources": [write(rows)], **limits}), 3))
    leaves = [line for line in text.splitlines() if re.search(r"── \d+:\d+  ", line)]
    assert len(leaves) == 3
    for line in leaves:
        assert len(line) < 120
        assert "…«" in line and line.endswith("word·<|im_end|>»")


def test_rows_of_one_instruction_share_it(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [row(number, "Rate this.") for number in range(12)]
    found = make_preview(make_config(data={"sources": [write(rows)], "pack_tokens": 512}), 5)
    [shared] = [line for line in drawn(found).splitlines() if "shared by 5" in line]
    assert "Rate this.↵↵" in shared
    num_tokens = sum(made["num_tokens"] for made in found.packs)
    num_computed = sum(len(made["input_ids"]) for made in found.packs)
    assert f"{num_tokens} tokens in 5 rows, {num_computed} to compute in 1 pack of up to 512" in drawn(found)
    assert f"({1 - num_computed / num_tokens:.1%} saved)" in drawn(found)


def test_a_chat_ends_in_the_tree_where_each_answer_does(
    make_config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chats: list[Row | str] = [
        {"messages": [turn("user", f"q{n}"), turn("assistant", "one"), turn("user", "q"), turn("assistant", "two")]}
        for n in range(8)
    ]
    found = make_preview(make_config(data={"sources": [write(chats)]}), 2)
    text = drawn(found)
    for row_id in found.places:
        assert f"{row_id}/1" in text and f"{row_id}/2" in text
    assert text.count("«one<|im_end|>»") >= 2


def test_trained_text_is_marked_without_a_terminal_and_coloured_on_one(
    make_config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    rows = [row(number) | {"input": f"a  {number}\t\x1b[2Jcleared <|im_end|>"} for number in range(8)]
    found = make_preview(make_config(data={"sources": [write(rows)]}), 2)
    plain = drawn(found)
    assert "\x1b" not in plain
    assert "a··" in plain and "⇥\\x1b[2Jcleared" in plain
    assert "\n«High<|im_end|>»\n" in plain
    coloured = drawn(found, terminal=True)
    assert "\x1b[1;32mHigh" in coloured and "«" not in coloured
    assert "\x1b[2J" not in coloured
    # A user's own text that looks like a control token is none, and does not look like one.
    assert "\x1b[7m<|im_end|>" in coloured and "cleared <|im_end|>" in coloured


def test_nothing_is_written(make_config: Callable[..., Config]) -> None:
    config = make_config()
    make_preview(config, 3)
    assert not config.run.storage.exists()
