"""The journal of answers: what a killed process leaves is read, a half-written line is not."""

from pathlib import Path

import pytest

from instruct_ray.evidence.asking.journal import Journal, make_key


def test_values_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "evidence" / "journal.jsonl"
    key = make_key("model", [1, 2], 16)
    with Journal(path) as journal:
        journal.add([(key, {"text": "line\u2028end\n"}), ("other", 1)])
    with Journal(path) as journal:
        assert key in journal and journal[key] == {"text": "line\u2028end\n"} and "third" not in journal
        journal.remove()
    assert not path.exists()


@pytest.mark.parametrize("left", ['{"key": "b", "val', '{"key": "b", "value": 2}', "\0\0\0\0"])
def test_half_written_line_is_cut_off(tmp_path: Path, left: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "a", "value": 1}\n' + left)
    with Journal(path) as journal:
        assert "a" in journal and "b" not in journal
        journal.add([("c", 3)])
    with Journal(path) as journal:
        assert (journal["a"], journal["c"]) == (1, 3)


def test_key_names_all_that_decides_the_answer() -> None:
    keys = {make_key(*content) for content in (("m", [1], 16), ("n", [1], 16), ("m", [2], 16), ("m", [1], 8))}
    assert len(keys) == 4 and make_key("m", [1], 16) in keys
