"""The prepare stage on files of all formats: each row has one outcome, however files are split into chunks."""

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import read_entries
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.sources import files as sources
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.data.sources.read_all import GOOD
from tests.data.sources.test_tables import write_malicious_table
from tests.fakes import ray_is_running

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
FRACTION = 0.25


def random_text(seed: str) -> str:
    return hashlib.sha256(seed.encode()).hexdigest()


def is_held_out(text: str) -> bool:
    return Triple("", "Rate", text, "High").assign_split(FRACTION) == "test"


def make_near_duplicate(text: str) -> str:
    """Append a number with which the text is in the train split."""
    return next(variant for n in range(100) if not is_held_out(variant := f"{text}{n}"))


REPORTS = [f"{random_text(str(n))} is what the machine reported" for n in range(90)]
HELD_OUT = [text for text in REPORTS if is_held_out(text)]
NEAR = [make_near_duplicate(text) for text in HELD_OUT]
LONG = [" ".join(random_text(f"{n} {part}") for part in range(6)) for n in range(12)]


def write_sources(folder: Path) -> dict[str, int]:
    """Write three files; returns the expected number of rows by outcome, for some outcomes."""
    rows = [{"instruction": "Rate", "input": text, "output": "High"} for text in REPORTS]
    lines = [json.dumps(row) for row in rows]
    invalid = ["{broken", '{"instruction": "a"}', '{"instruction": "a", "output": NaN}', "[]", "\ud800"]
    content = "\r\n".join([*lines[:40], *invalid, "", *lines[40:]]).encode(errors="surrogatepass")
    (folder / "a.jsonl").write_bytes(content)
    with gzip.open(folder / "b.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("instruction", "input", "output"), *(row.values() for row in rows[:30]), ("one",)])
    near = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "Low"}]} for t in NEAR]
    long = [{"instruction": "Rate", "input": text, "output": "Low"} for text in LONG]
    (folder / "d.json").write_text(json.dumps([*near, *long, {"instruction": "Rate"}]))
    return {"duplicate": 30, "near_duplicate": len(NEAR), "quarantined": len(invalid) + 2}


def read_ledger(packs: Path) -> list[dict[str, Any]]:
    entries = [entry for batch in read_entries(packs) for entry in batch.to_pylist()]
    return sorted(entries, key=lambda entry: str(entry["row_id"]))


def test_outcomes_do_not_depend_on_chunks(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    expected = write_sources(folder)
    options = {
        "sources": [folder],
        "too_long": "cut",
        "max_bad_fraction": 0.1,
        "test_fraction": FRACTION,
        "near_duplicates": 0.8,
    }
    entries = []
    for name, chunk_bytes in (("large-chunks", 2**20), ("small-chunks", 3000)):
        monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
        dataset = prepare(make_config(run={"name": name}, data=options), ray_is_running).dataset
        entries.append(read_ledger(dataset.path))
    assert entries[0] == entries[1]
    outcomes = Counter(entry["fate"] for entry in entries[0])
    assert {outcome: outcomes[outcome] for outcome in expected} == expected
    assert outcomes.total() == dataset.manifest["num_read"] == 90 + 5 + 31 + len(NEAR) + 12 + 1
    assert dict(outcomes) == {outcome: count for outcome, count in dataset.manifest["fates"].items() if count}
    truncated = [entry for entry in entries[0] if entry["was_cut"]]
    assert len(truncated) == len(LONG) == dataset.manifest["num_cut"]
    assert all(118 < entry["num_tokens"] <= 128 for entry in truncated)
    # The complete input decides the split, so that rows with the same input stay together however they are truncated.
    assert [entry["fate"] == "test" for entry in sorted(truncated, key=lambda entry: int(entry["position"]))] == [
        is_held_out(text) for text in LONG
    ]
    # The first of equal rows is kept. The digest in the ledger is that of the bytes at the row's position.
    assert {entry["file"] for entry in entries[0] if entry["fate"] == "duplicate"} == {str(folder / "b.csv.gz")}
    content = (folder / "a.jsonl").read_bytes()
    for entry in entries[0]:
        if entry["file"] == str(folder / "a.jsonl"):
            line = content[entry["position"] :].partition(b"\n")
            assert hashlib.sha256(b"".join(line[:2])).digest() == entry["digest"]
    reasons = {entry["reason"] for entry in entries[0] if entry["fate"] == "quarantined"}
    assert reasons == {"not_json", "missing_field", "not_an_object", "not_utf8", "not_csv"}
    test = [
        json.loads(line)["input"]
        for line in RunFolder.from_config(make_config(run={"name": "large-chunks"})).test_rows_file.open()
    ]
    assert set(HELD_OUT) <= set(test)
    assert len(test) == len(set(test))


def test_pickle_in_schema_is_never_run_on_a_worker(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = write_malicious_table(tmp_path / "a.parquet", tmp_path / "canary", "tensor")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({**GOOD, "input": text}) + "\n" for text in REPORTS))
    manifest = prepare(make_config(data={"sources": [path, tmp_path / "b.jsonl"]}), ray_is_running).dataset.manifest
    assert manifest["num_read"] == 5 + 90
    assert not (tmp_path / "canary").exists()


def test_file_that_is_broken_later_is_an_input_error(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "input": "y"}])[:-1] + ", broken")
    config = make_config(data={"sources": [path]})
    started: list[bool] = []
    with pytest.raises(InputError, match=r"a.json is a broken JSON array: row 3") as error:
        prepare(config, lambda: started.append(True))
    assert started, "only the first two rows are checked before Ray starts"
    assert type(error.value) is InputError
    assert not RunFolder.from_config(config).path.exists()
