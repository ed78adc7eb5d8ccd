"""Sources -> packs on Ray Data: every row has an outcome, bytes are reproducible, and no unfinished files are used."""

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
from instruct_ray.data.prepare import pipeline
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.prepare.tokenize_pass import find_oversized_groups
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.data.sources import files as sources
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.fakes import ray_is_running

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
GOOD = {"instruction": "Rate", "input": "x", "output": "High"}


def read_row_ids(dataset: PackedDataset) -> list[str]:
    return [row_id for pack in dataset.take(range(dataset.num_packs)) for row_id in pack["row_ids"]]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_is_in_a_pack_or_held_out(make_config: Callable[..., Config]) -> None:
    config = make_config()
    dataset = prepare(config, ray_is_running).dataset
    row_ids = read_row_ids(dataset)
    test_lines = RunFolder.from_config(config).test_rows_file.read_text().splitlines()
    manifest = dataset.manifest
    assert len(row_ids) == len(set(row_ids)) == dataset.num_examples == manifest["fates"]["trained"]
    assert sum(manifest["fates"].values()) == manifest["num_read"] == 64
    assert len(test_lines) == manifest["num_test"] == manifest["fates"]["test"]
    assert trained_row_ids(dataset.path) == set(row_ids)
    packs = dataset.take(range(dataset.num_packs))
    assert dataset.num_target_tokens.tolist() == [pack["num_trained"] for pack in packs]
    assert sum((pack["labels"] != IGNORE_INDEX).sum() for pack in packs) == manifest["num_trained_tokens"]
    assert sum(len(pack["input_ids"]) for pack in packs) == manifest["num_computed_tokens"]
    assert PromptContract.load(RunFolder.from_config(config).contract_file).digest == manifest["contract_digest"]


def test_validation_rows_are_taken_from_the_rows_to_train_on(make_config: Callable[..., Config]) -> None:
    without, with_validation = (
        make_config(run={"name": name}, data={"validation_fraction": fraction})
        for name, fraction in (("without", 0.0), ("with", 0.25))
    )
    outcomes = [prepare(config, ray_is_running).dataset.manifest["fates"] for config in (without, with_validation)]
    assert outcomes[0]["validation"] == 0
    assert 0 < outcomes[1]["validation"] == outcomes[0]["trained"] - outcomes[1]["trained"]
    test_rows = [RunFolder.from_config(config).test_rows_file.read_text() for config in (without, with_validation)]
    assert test_rows[0] == test_rows[1]
    validation_rows = RunFolder.from_config(with_validation).validation_rows_file.read_text()
    ids = [json.loads(line)["id"] for line in validation_rows.splitlines()]
    assert len(ids) == outcomes[1]["validation"]
    assert not set(ids) & {json.loads(line)["id"] for line in test_rows[1].splitlines()}


def test_packing_saves_tokens(make_config: Callable[..., Config]) -> None:
    manifest = prepare(make_config(), ray_is_running).dataset.manifest
    assert manifest["num_computed_tokens"] < 0.8 * manifest["num_tokens"]


def test_the_same_config_finds_the_finished_folder(make_config: Callable[..., Config]) -> None:
    first = prepare(make_config(), ray_is_running)
    second = prepare(make_config(), ray_is_running)
    assert (first.already_done, second.already_done) == (False, True)
    assert first.dataset.path == second.dataset.path


def test_another_run_writes_the_same_bytes(make_config: Callable[..., Config]) -> None:
    folders = [prepare(make_config(run={"name": name}), ray_is_running).dataset.path for name in ("a", "b")]
    assert folders[0].name == folders[1].name
    for path in (path for path in folders[0].rglob("*") if path.is_file()):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()


def test_no_row_is_lost_with_many_chunks_and_shards(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"instruction": "How bad is it?" if n % 2 else f"Rate {n % 7}.", "input": f"room {n % 90}", "output": "High"}
        for n in range(400)
    ]
    config = make_config(data={"sources": [write_rows(tmp_path / "many.jsonl", rows)], "near_duplicates": None})
    monkeypatch.setattr(sources, "CHUNK_BYTES", 3_000)
    monkeypatch.setattr(pipeline, "SHARD_BYTES", 8_000)
    oversized_groups: list[frozenset[int]] = []

    def find_and_record(*arguments: object) -> frozenset[int]:
        oversized_groups.append(find_oversized_groups(*arguments))  # type: ignore[arg-type]
        return oversized_groups[-1]

    monkeypatch.setattr(pipeline, "find_oversized_groups", find_and_record)
    manifest = prepare(config, ray_is_running).dataset.manifest
    assert len(manifest["files"]) > 2
    assert len(oversized_groups[0]) == 1, "half of all rows have one instruction: too many for a shard"
    distinct = {(row["instruction"], row["input"]) for row in rows}
    outcomes = manifest["fates"]
    assert outcomes["trained"] + outcomes["test"] == len(distinct)
    assert outcomes["duplicate"] == 400 - len(distinct)
    row_ids = read_row_ids(PackedDataset(RunFolder.from_config(config).packs_dir / manifest["digest"][:16], manifest))
    assert len(set(row_ids)) == len(row_ids) == outcomes["trained"]


def test_a_weight_is_the_number_of_copies(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [GOOD | {"input": f"report {n}"} for n in range(200)]
    twice = write_rows(tmp_path / "a.jsonl", rows[:100])
    half = write_rows(tmp_path / "b.jsonl", rows[100:])
    entries = [{"path": str(twice), "weight": 2.5}, {"path": str(half), "weight": 0.5}]
    config = make_config(data={"sources": entries, "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    num_copies = Counter(row_id.split("#")[0] for row_id in read_row_ids(dataset))
    assert {count for row_id, count in num_copies.items() if row_id.startswith("0:")} == {2, 3}
    assert {count for row_id, count in num_copies.items() if row_id.startswith("1:")} == {1}
    assert 15 < dataset.manifest["fates"]["left_out"] < 60
    assert dataset.num_examples == sum(num_copies.values())
    ledger_copies = sum(pc.sum(batch["copies"]).as_py() for batch in read_entries(dataset.path, "copies"))
    assert ledger_copies == dataset.num_examples


def test_a_few_invalid_rows_are_quarantined_and_recorded(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD | {"input": f"report {n}"} for n in range(199)])
    with path.open("a") as file:
        file.write("{broken\n")
    config = make_config(data={"sources": [path], "near_duplicates": None})
    dataset = prepare(config, ray_is_running).dataset
    assert dataset.manifest["fates"]["quarantined"] == 1
    assert dataset.manifest["quarantine_reasons"] == {"not_json": 1}
    entries = [entry for batch in read_entries(dataset.path) for entry in batch.to_pylist()]
    quarantined = [entry for entry in entries if entry["fate"] == "quarantined"]
    assert [(entry["file"], entry["reason"]) for entry in quarantined] == [(str(path), "not_json")]
    assert path.read_bytes()[quarantined[0]["position"] :] == b"{broken\n"


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
    assert {row_id.split("/")[1] for row_id in read_row_ids(dataset)} == {"1", "2"}
    first = json.loads(RunFolder.from_config(config).test_rows_file.read_text().splitlines()[0])
    assert first["history"][0][1] == "High"
    assert first["output"] == "Low"


def test_placeholder_inputs_are_neither_on_one_side_nor_near_duplicates(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    topics = ["apples", "the history of engines", "rivers in spring", "a poem on night trains", "tickets for a fair"]
    rows: list[dict[str, object]] = [
        {"instruction": f"{topics[n % 5]}, {n * 7919} ({chr(97 + n % 26) * 9})", "input": "None", "output": f"Use {n}"}
        for n in range(120)
    ]
    config = make_config(data={"sources": [write_rows(tmp_path / "none.jsonl", rows)], "near_duplicates": 0.95})
    outcomes = prepare(config, ray_is_running).dataset.manifest["fates"]
    assert 15 < outcomes["test"] < 50
    assert outcomes["trained"] + outcomes["test"] == 120
    constant = [{"instruction": "Write a poem.", "output": f"Poem {n}"} for n in range(120)]
    config = make_config(run={"name": "constant"}, data={"sources": [write_rows(tmp_path / "one.jsonl", constant)]})
    with pytest.raises(InputError, match=r"120 rows have the same input or prompt 'write a poem\.'"):
        prepare(config, ray_is_running)


def test_changed_sources_need_another_run_name(
    make_config: Callable[..., Config], triples_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(triples_file.read_text())
    prepare(make_config(data={"sources": [path]}), ray_is_running)
    with pytest.raises(InputError, match=r"source 1: weight was 1.0, now 2.0; use another run.name"):
        prepare(make_config(data={"sources": [{"path": str(path), "weight": 2.0}]}), ray_is_running)
    path.write_text(triples_file.read_text() + json.dumps(GOOD) + "\n")
    with pytest.raises(InputError, match=r"rows.jsonl changed since the run was prepared; use another run.name"):
        prepare(make_config(data={"sources": [path]}), ray_is_running)


def test_rows_that_an_earlier_version_could_not_read_need_another_run_name(make_config: Callable[..., Config]) -> None:
    config = make_config()
    file = prepare(config, ray_is_running).dataset.path / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest.pop("reading_version") == 2
    file.write_text(json.dumps(manifest | {"quarantine_reasons": {"not_json": 1}}))
    assert prepare(config, ray_is_running).already_done
    file.write_text(json.dumps(manifest | {"quarantine_reasons": {"roles": 3, "not_json": 1}}))
    with pytest.raises(InputError, match=r"quarantined 3 rows \(roles 3\) of .*tool calls.*Use another run.name"):
        prepare(config, ray_is_running)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"instruction": "a", "input": "b"}], r"1 of 2 rows .*missing_field 1\); .*: row 2 has no output"),
        ([GOOD, {**GOOD, "output": ""}, {}], r"2 of 3 rows .* row 2 has an empty output: .*; .* row 3 has no"),
        ([{**GOOD, "input": "word " * 200}] * 2, "no row is held out"),
        ([GOOD], "1 of 1 rows .* can be used; two are needed"),
    ],
)
def test_unusable_rows_are_named_and_no_files_are_left(
    make_config: Callable[..., Config], tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    config = make_config(data={"sources": [write_rows(tmp_path / "rows.jsonl", rows)]})
    with pytest.raises(InputError, match=message):
        prepare(config, ray_is_running)
    assert not RunFolder.from_config(config).path.exists()


def test_unfinished_packs_of_a_killed_run_are_not_used(make_config: Callable[..., Config]) -> None:
    config = make_config()
    unfinished_dir = RunFolder.from_config(config).packs_dir / ".unfinished"
    unfinished_dir.mkdir(parents=True)
    (unfinished_dir / "manifest.json").write_text("{}")
    assert not prepare(config, ray_is_running).already_done
    assert prepare(config, ray_is_running).dataset.num_examples > 0


def test_stream_packs_follows_the_plan_from_any_step(make_config: Callable[..., Config]) -> None:
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
        steps = list(stream_packs(dataset.path, plan, start, rank, world_size))
        assert [[pack["row_ids"] for pack in packs] for packs in steps] == expected


def test_sample_evenly_spreads_packs_over_the_data_set(make_config: Callable[..., Config]) -> None:
    dataset = prepare(make_config(), ray_is_running).dataset
    assert dataset.num_packs > 3
    row_ids = [pack["row_ids"] for pack in dataset.take(range(dataset.num_packs))]
    assert [pack["row_ids"] for pack in dataset.sample_evenly(2)] == [row_ids[0], row_ids[-1]]
    assert [pack["row_ids"] for pack in dataset.sample_evenly(1000)] == row_ids
