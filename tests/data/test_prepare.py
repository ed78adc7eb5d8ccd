"""Sources -> packs on Ray Data: counts add up, the same bytes again, nothing half made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config import Config
from instruct_ray.data.contract import Contract
from instruct_ray.data.feed import stream
from instruct_ray.data.plan import Plan
from instruct_ray.data.prepare import prepare
from instruct_ray.errors import InputError
from instruct_ray.run import RunFolder
from tests.fakes import no_start

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def test_every_row_is_in_a_pack_or_held_out(make_config: Callable[..., Config]) -> None:
    config = make_config()
    dataset = prepare(config, no_start).dataset
    rows = [row for index in range(dataset.num_packs) for row in dataset.read(index)["row_ids"]]
    test = RunFolder.of(config).test.read_text().splitlines()
    assert len(rows) == len(set(rows)) == dataset.num_train
    assert len(rows) + len(test) == 64
    assert dataset.manifest["num_test"] == len(test)
    assert dataset.num_trained.tolist() == [dataset.read(i)["num_trained"] for i in range(dataset.num_packs)]
    assert Contract.load(RunFolder.of(config).contract).digest == dataset.manifest["contract_digest"]


def test_packs_are_smaller_than_their_rows(make_config: Callable[..., Config]) -> None:
    manifest = prepare(make_config(), no_start).dataset.manifest
    assert manifest["num_computed_tokens"] < 0.8 * manifest["num_tokens"]


def test_the_same_request_finds_the_finished_folder(make_config: Callable[..., Config]) -> None:
    first = prepare(make_config(), no_start)
    second = prepare(make_config(), no_start)
    assert (first.already_done, second.already_done) == (False, True)
    assert first.dataset.path == second.dataset.path


def test_another_run_makes_the_same_bytes(make_config: Callable[..., Config]) -> None:
    folders = [prepare(make_config(run={"name": name}), no_start).dataset.path for name in ("a", "b")]
    assert folders[0].name == folders[1].name
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[1] / file.name).read_bytes()


def test_changed_sources_under_the_same_name_are_refused(
    make_config: Callable[..., Config], triples_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(triples_file.read_text())
    prepare(make_config(data={"sources": [path]}), no_start)
    path.write_text(triples_file.read_text() + json.dumps(GOOD) + "\n")
    with pytest.raises(InputError, match=r"was made from other source files .* take another run.name"):
        prepare(make_config(data={"sources": [path]}), no_start)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"instruction": "a", "input": "b"}], "row 2 has no output"),
        ([GOOD, {**GOOD, "output": ""}, {}], r"row 2 has an empty output: .* \(1 more bad rows\)"),
        (
            [{**GOOD, "input": "word " * 200}],
            r"row 1 has [0-9]+ tokens; data.max_tokens and data.pack_tokens allow 128",
        ),
        ([GOOD], "no row is (held out|left to train on)"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_left(
    make_config: Callable[..., Config], tmp_path: Path, rows: list[dict[str, str]], message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(data={"sources": [path]})
    with pytest.raises(InputError, match=message):
        prepare(config, no_start)
    assert not RunFolder.of(config).path.exists()


def test_what_a_killed_run_left_behind_is_not_used(make_config: Callable[..., Config]) -> None:
    config = make_config()
    (RunFolder.of(config).packs / ".half.made").mkdir(parents=True)
    (RunFolder.of(config).packs / ".half.made" / "manifest.json").write_text("{}")
    assert not prepare(config, no_start).already_done
    assert prepare(config, no_start).dataset.num_train > 0


def test_the_feed_streams_the_plan_from_any_step(make_config: Callable[..., Config]) -> None:
    dataset = prepare(make_config(), no_start).dataset
    plan = Plan(dataset.num_packs, 2, 2, 0)
    for start, rank, world_size in ((0, 0, 1), (1, 1, 3)):
        expected = [
            [] if index is None else dataset.read(index)["row_ids"] for index in plan.stream(start, rank, world_size)
        ]
        found = list(stream(dataset.path, plan, start, rank, world_size))
        assert [pack["row_ids"] for pack in found] == expected
