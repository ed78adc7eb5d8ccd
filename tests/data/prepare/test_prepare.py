"""Sources -> packs on Ray Data: every row accounted for, the same bytes from any chunks and CPUs, nothing half made."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.example import IGNORE_INDEX
from instruct_ray.data.ledger import read_entries, trained_row_ids
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.packs.plan import BatchPlan
from instruct_ray.data.packs.stream import stream_packs
from instruct_ray.data.prepare import pipeline as preparing
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.prepare.tokenize_pass import find_oversized_groups
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.sources import files as sources
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.fakes import ray_is_running

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def all_row_ids(dataset: PackedDataset) -> list[str]:
    return [row_id for pack in dataset.take(range(dataset.num_packs)) for row_id in pack["row_ids"]]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_is_in_a_pack_or_held_out(make_config: Callable[..., Config]) -> None:
    config = make_config()
    dataset = prepare(config, ray_is_running).dataset
    rows = all_row_ids(dataset)
    test = RunFolder.from_config(config).test_rows_file.read_text().splitlines()
    manifest = dataset.manifest
    assert len(rows) == len(set(rows)) == dataset.num_examples == manifest["fates"]["trained"]
    assert sum(manifest["fates"].values()) == manifest["num_read"] == 64
    assert len(test) == manifest["num_test"] == manifest["fates"]["test"]
    assert trained_row_ids(dataset.path) == set(rows)
    packs = dataset.take(range(dataset.num_packs))
    assert dataset.num_target_tokens.tolist() == [pack["num_trained"] for pack in packs]
    assert sum((pack["labels"] != IGNORE_INDEX).sum() for pack in packs) == manifest["num_trained_tokens"]
    assert sum(len(pack["input_ids"]) for pack in packs) == manifest["num_computed_tokens"]
    assert PromptContract.load(RunFolder.from_config(config).contract_file).digest == manifest["contract_digest"]


def test_rows_for_validation_are_taken_from_those_to_train_on(make_config: Callable[..., Config]) -> None:
    plain, split = (
        make_config(run={"name": name}, data={"validation_fraction": fraction})
        for name, fraction in (("plain", 0.0), ("split", 0.25))
    )
    fates = [prepare(config, ray_is_running).dataset.manifest["fates"] for config in (plain, split)]
    assert fates[0]["validation"] == 0
    assert 0 < fates[1]["validation"] == fates[0]["trained"] - fates[1]["trained"]
    texts = [RunFolder.from_config(config).test_rows_file.read_text() for config in (plain, split)]
    assert texts[0] == texts[1]
    ids = [
        json.loads(line)["id"] for line in RunFolder.from_config(split).validation_rows_file.read_text().splitlines()
    ]
    assert len(ids) == fates[1]["validation"]
    assert not set(ids) & {json.loads(line)["id"] for line in texts[1].splitlines()}


def test_packs_are_smaller_than_their_rows(make_config: Callable[..., Config]) -> None:
    manifest = prepare(make_config(), ray_is_running).dataset.manifest
    assert manifest["num_computed_tokens"] < 0.8 * manifest["num_tokens"]


def test_the_same_request_finds_the_finished_folder(make_config: Callable[..., Config]) -> None:
    first = prepare(make_config(), ray_is_running)
    second = prepare(make_config(), ray_is_running)
    assert (first.already_done, second.already_done) == (False, True)
    assert first.dataset.path == second.dataset.path


def test_another_run_makes_the_same_bytes(make_config: Callable[..., Config]) -> None:
    folders = [prepare(make_config(run={"name": name}), ray_is_running).dataset.path for name in ("a", "b")]
    assert folders[0].name == folders[1].name
    for file in (path for path in folders[0].rglob("*") if path.is_file()):
        assert file.read_bytes() == (folders[1] / file.relative_to(folders[0])).read_bytes()


def test_rows_of_many_chunks_and_shards_are_all_there(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"instruction": "How bad is it?" if n % 2 else f"Rate {n % 7}.", "input": f"room {n % 90}", "output": "High"}
        for n in range(400)
    ]
    config = make_config(data={"sources": [write_rows(tmp_path / "many.jsonl", rows)], "near_duplicates": None})
    monkeypatch.setattr(sources, "CHUNK_BYTES", 3_000)
    monkeypatch.setattr(preparing, "SHARD_BYTES", 8_000)
    spread: list[frozenset[int]] = []

    def find(*arguments: object) -> frozenset[int]:
        spread.append(find_oversized_groups(*arguments))  # type: ignore[arg-type]
        return spread[-1]

    monkeypatch.setattr(preparing, "find_spread_groups", find)
    manifest = prepare(config, ray_is_running).dataset.manifest
    assert len(manifest["files"]) > 2
    assert len(spread[0]) == 1, "half of all rows have one instruction: too many for a shard"
    distinct = {(row["instruction"], row["input"]) for row in rows}
    fates = manifest["fates"]
    assert fates["trained"] + fates["test"] == len(distinct)
    assert fates["duplicate"] == 400 - len(distinct)
    trained = all_row_ids(PackedDataset(RunFolder.from_config(config).packs_dir / manifest["digest"][:16], manifest))
    assert len(set(trained)) == len(trained) == fates["trained"]


def test_weights_are_copies(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [GOOD | {"input": f"report {n}"} for n in range(200)]
    twice = write_rows(tmp_path / "a.jsonl", rows[:100])
    half = write_rows(tmp_path / "b.jsonl", rows[100:])
    entries = [{"path": str(twice), "weight": 2.5}, {"path": str(half), "weight": 0.5}]
    config = make_config(data={"sources": entries, "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    names = Counter(row_id.split("#")[0] for row_id in all_row_ids(dataset))
    assert {count for name, count in names.items() if name.startswith("0:")} == {2, 3}
    assert {count for name, count in names.items() if name.startswith("1:")} == {1}
    assert 15 < dataset.manifest["fates"]["left_out"] < 60
    assert dataset.num_examples == sum(names.values())
    [copies] = {sum(pc.sum(batch["copies"]).as_py() for batch in read_entries(dataset.path, "copies"))}
    assert copies == dataset.num_examples


def test_a_few_bad_rows_are_set_aside_and_written_down(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD | {"input": f"report {n}"} for n in range(199)])
    with path.open("a") as file:
        file.write("{broken\n")
    config = make_config(data={"sources": [path], "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    assert dataset.manifest["fates"]["quarantined"] == 1
    assert dataset.manifest["quarantine_reasons"] == {"not_json": 1}
    bad = [row for batch in read_entries(dataset.path) for row in batch.to_pylist() if row["fate"] == "quarantined"]
    assert [(row["file"], row["reason"]) for row in bad] == [(str(path), "not_json")]
    content = path.read_bytes()
    assert content[bad[0]["position"] :] == b"{broken\n"


def test_a_chat_is_trained_turn_by_turn(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "user", "content": f"the shop is down {n}"},
                {"role": "assistant", "content": "High"},
                {"role": "user", "content": "and now?"},
                {"role": "assistant", "content": "Low"},
            ]
        }
        for n in range(30)
    ]
    config = make_config(data={"sources": [write_rows(tmp_path / "chats.jsonl", rows)], "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    assert dataset.num_examples == 2 * dataset.manifest["fates"]["trained"]
    assert {row_id.split("/")[1] for row_id in all_row_ids(dataset)} == {"1", "2"}
    [first] = [json.loads(line) for line in RunFolder.from_config(config).test_rows_file.read_text().splitlines()][:1]
    assert first["history"][0][1] == "High"
    assert first["output"] == "Low"


def test_changed_sources_under_the_same_name_are_refused(
    make_config: Callable[..., Config], triples_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(triples_file.read_text())
    prepare(make_config(data={"sources": [path]}), ray_is_running)
    path.write_text(triples_file.read_text() + json.dumps(GOOD) + "\n")
    with pytest.raises(InputError, match=r"was made from other source files .* take another run.name"):
        prepare(make_config(data={"sources": [path]}), ray_is_running)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"instruction": "a", "input": "b"}], r"1 of 2 rows .*missing_field 1\); .*: row 2 has no output"),
        ([GOOD, {**GOOD, "output": ""}, {}], r"2 of 3 rows .* row 2 has an empty output: .*; .* row 3 has no"),
        ([{**GOOD, "input": "word " * 200}] * 2, "no row is held out"),
        ([GOOD], "1 of 1 rows .* can be used; two are needed"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_left(
    make_config: Callable[..., Config], tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    config = make_config(data={"sources": [write_rows(tmp_path / "bad.jsonl", rows)]})
    with pytest.raises(InputError, match=message):
        prepare(config, ray_is_running)
    assert not RunFolder.from_config(config).path.exists()


def test_what_a_killed_run_left_behind_is_not_used(make_config: Callable[..., Config]) -> None:
    config = make_config()
    (RunFolder.from_config(config).packs_dir / ".half.made").mkdir(parents=True)
    (RunFolder.from_config(config).packs_dir / ".half.made" / "manifest.json").write_text("{}")
    assert not prepare(config, ray_is_running).already_done
    assert prepare(config, ray_is_running).dataset.num_examples > 0


def test_the_feed_streams_the_plan_from_any_step(make_config: Callable[..., Config]) -> None:
    dataset = prepare(make_config(), ray_is_running).dataset
    plan = BatchPlan(dataset.row_groups, 2, 2, 0)
    for start, rank, world_size in ((0, 0, 1), (1, 1, 3)):
        expected = [
            [
                [] if index is None else dataset.take([index])[0]["row_ids"]
                for index in plan.rank_packs(step, rank, world_size)
            ]
            for step in range(start, plan.num_steps)
        ]
        found = list(stream_packs(dataset.path, plan, start, rank, world_size))
        assert [[pack["row_ids"] for pack in step] for step in found] == expected
