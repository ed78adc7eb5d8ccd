"""The preview: the first rows to train on, and the trees of their packs."""

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
from instruct_ray.data.preview.preview import Preview, make_preview
from instruct_ray.data.preview.terminal import print_preview
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError

Row = dict[str, object]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a JSONL file."""

    def write_rows(rows: list[Row | str], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write_rows


def make_row(number: int, instruction: str = "How bad is it?") -> Row:
    return {"instruction": instruction, "input": f"report {number}", "output": "High"}


def is_test(values: Row) -> bool:
    return Triple("", str(values["instruction"]), str(values["input"]), "").assign_split(0.25) == "test"


def print_to_text(preview: Preview, *, terminal: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160, soft_wrap=not terminal, highlight=False)
    print_preview(preview, console)
    return output.getvalue()


def test_the_first_rows_that_are_not_held_out(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [make_row(number) for number in range(20)]
    preview = make_preview(make_config(data={"sources": [write(rows)]}), 4)
    expected = [number for number in range(20) if not is_test(rows[number])][:4]
    assert list(preview.places.values()) == [f"rows.jsonl, row {number + 1}" for number in expected]
    assert preview.skipped["test"] == expected[-1] + 1 - 4
    assert sorted(row_id for pack in preview.packs for row_id in pack["row_ids"]) == sorted(preview.places)


def test_unusable_rows_are_named_and_skipped(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    good = next(make_row(number) for number in range(20) if not is_test(make_row(number)))
    long = make_row(0) | {"input": "long " * 200}
    path = write(["{", {"instruction": "x"}, good, good, long])
    preview = make_preview(make_config(data={"sources": [path]}), 5)
    assert len(preview.rows) == 1
    assert preview.skipped == {"quarantined": 2, "duplicate": 1, "too_long": 1}
    text = print_to_text(preview)
    assert "5 rows read; not shown: 2 quarantined, 1 duplicate, 1 too long" in text
    assert "rows.jsonl, row 1 is not JSON" in text and "rows.jsonl, row 2 has no output" in text


def test_preview_of_a_huge_source_is_quick(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    path = write([make_row(number) for number in range(20)])
    os.truncate(path, 100 * 2**30)
    config = make_config(data={"sources": [path]})
    started = time.monotonic()
    assert len(make_preview(config, 5).rows) == 5
    assert time.monotonic() - started < 20


def test_search_in_a_source_without_usable_rows_ends_early(
    make_config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    path = write([{"question": "x"}] * 5000)
    with pytest.raises(InputError, match=r"no row to train on among the first 1000 \(1000 quarantined\).*row 1 has no"):
        make_preview(make_config(data={"sources": [path]}), 5)


@pytest.mark.parametrize("num_rows", [0, -1, 1001])
def test_number_of_rows_out_of_range_is_an_error(make_config: Callable[..., Config], num_rows: int) -> None:
    with pytest.raises(InputError, match=f"-n {num_rows}: from 1 to 1000 rows"):
        make_preview(make_config(), num_rows)


def test_sources_take_turns(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [make_row(number) for number in range(40) if not is_test(make_row(number))]
    paths = [write(rows[:9], "a.jsonl"), write(rows[9:], "b.jsonl")]
    preview = make_preview(make_config(data={"sources": paths}), 4)
    assert [place.split(",")[0] for place in preview.places.values()] == ["a.jsonl", "b.jsonl"] * 2


def test_trees_have_every_computed_token_and_every_row(make_config: Callable[..., Config]) -> None:
    preview = make_preview(make_config(), 12)
    text = print_to_text(preview)
    tree = [line for line in text.splitlines() if "── " in line and line[0] in "├└│ "]
    num_tokens = [int(match[1]) for line in tree if (match := re.search(r"  (\d+) tokens?  ", line))]
    assert len(num_tokens) == len(tree)
    assert sum(num_tokens) == sum(len(pack["input_ids"]) for pack in preview.packs)
    leaves = [line for line in tree if "shared by" not in line]
    assert sorted(match for line in leaves for match in re.findall(r"── (\d+:\d+)", line)) == sorted(preview.places)
    assert all("»" in line for line in leaves)
    assert len(preview.packs) > 1


def test_long_branches_are_shortened(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [make_row(number) | {"output": "word " * 40} for number in range(12)]
    limits = {"pack_tokens": 1024, "max_tokens": 1024}
    text = print_to_text(make_preview(make_config(data={"sources": [write(rows)], **limits}), 3))
    leaves = [line for line in text.splitlines() if re.search(r"── \d+:\d+  ", line)]
    assert len(leaves) == 3
    for line in leaves:
        assert len(line) < 120
        assert "…«" in line and line.endswith("word·<|im_end|>»")


def test_rows_with_one_instruction_share_it(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    rows = [make_row(number, "Rate this.") for number in range(12)]
    preview = make_preview(make_config(data={"sources": [write(rows)], "pack_tokens": 512}), 5)
    [shared] = [line for line in print_to_text(preview).splitlines() if "shared by 5" in line]
    assert "Rate this.↵↵" in shared
    num_tokens = sum(pack["num_tokens"] for pack in preview.packs)
    num_computed = sum(len(pack["input_ids"]) for pack in preview.packs)
    assert f"{num_tokens} tokens in 5 rows, {num_computed} to compute in 1 pack of up to 512" in print_to_text(preview)
    assert f"({1 - num_computed / num_tokens:.1%} saved)" in print_to_text(preview)


def test_each_turn_of_a_chat_ends_at_its_answer(make_config: Callable[..., Config], write: Callable[..., Path]) -> None:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chats: list[Row | str] = [
        {"messages": [turn("user", f"q{n}"), turn("assistant", "one"), turn("user", "q"), turn("assistant", "two")]}
        for n in range(8)
    ]
    preview = make_preview(make_config(data={"sources": [write(chats)]}), 2)
    text = print_to_text(preview)
    for row_id in preview.places:
        assert f"{row_id}/1" in text and f"{row_id}/2" in text
    assert text.count("«one<|im_end|>»") >= 2


def test_targets_are_quoted_without_a_terminal_and_colored_on_one(
    make_config: Callable[..., Config], write: Callable[..., Path]
) -> None:
    rows = [make_row(number) | {"input": f"a  {number}\t\x1b[2Jcleared <|im_end|>"} for number in range(8)]
    preview = make_preview(make_config(data={"sources": [write(rows)]}), 2)
    plain = print_to_text(preview)
    assert "\x1b" not in plain
    assert "a··" in plain and "⇥\\x1b[2Jcleared" in plain
    assert "\n«High<|im_end|>»\n" in plain
    colored = print_to_text(preview, terminal=True)
    assert "\x1b[1;32mHigh" in colored and "«" not in colored
    assert "\x1b[2J" not in colored
    # Text of a row that looks like a special token is not shown as one.
    assert "\x1b[7m<|im_end|>" in colored and "cleared <|im_end|>" in colored


def test_preview_writes_nothing(make_config: Callable[..., Config]) -> None:
    config = make_config()
    make_preview(config, 3)
    assert not config.run.storage.exists()
