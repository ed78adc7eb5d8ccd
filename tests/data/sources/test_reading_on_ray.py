"""Files of every kind through a whole prepare: each row has one fate, whatever the chunks."""

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
from tests.data.sources.test_tables import booby_trapped
from tests.fakes import no_start

pytestmark = pytest.mark.usefixtures("ray_4_cpus")
FRACTION = 0.25


def noise(seed: str) -> str:
    return hashlib.sha256(seed.encode()).hexdigest()


def is_held_out(text: str) -> bool:
    return Triple("", "Rate", text, "High").assign_split(FRACTION) == "test"


def near(text: str) -> str:
    """A few letters away, and on the side that is trained on."""
    return next(other for n in range(100) if not is_held_out(other := f"{text}{n}"))


REPORTS = [f"{noise(str(n))} is what the machine said" for n in range(90)]
HELD_OUT = [text for text in REPORTS if is_held_out(text)]
NEAR = [near(text) for text in HELD_OUT]
LONG = [" ".join(noise(f"{n} {part}") for part in range(6)) for n in range(12)]


def write_sources(folder: Path) -> dict[str, int]:
    """Four files; returns how many of their rows have which fate."""
    rows = [{"instruction": "Rate", "input": text, "output": "High"} for text in REPORTS]
    lines = [json.dumps(row) for row in rows]
    bad = ["{broken", '{"instruction": "a"}', '{"instruction": "a", "output": NaN}', "[]", "\ud800"]
    content = "\r\n".join([*lines[:40], *bad, "", *lines[40:]]).encode(errors="surrogatepass")
    (folder / "a.jsonl").write_bytes(content)
    with gzip.open(folder / "b.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("instruction", "input", "output"), *(row.values() for row in rows[:30]), ("one",)])
    near = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "Low"}]} for t in NEAR]
    long = [{"instruction": "Rate", "input": text, "output": "Low"} for text in LONG]
    (folder / "d.json").write_text(json.dumps([*near, *long, {"instruction": "Rate"}]))
    return {"duplicate": 30, "near_duplicate": len(NEAR), "quarantined": len(bad) + 2}


def fates_of(packs: Path) -> list[dict[str, Any]]:
    entries = [entry for batch in read_entries(packs) for entry in batch.to_pylist()]
    return sorted(entries, key=lambda entry: str(entry["row_id"]))


def test_every_row_has_the_same_fate_from_any_chunks(
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
    for name, chunk_bytes in (("whole", 2**20), ("pieces", 3000)):
        monkeypatch.setattr(sources, "CHUNK_BYTES", chunk_bytes)
        dataset = prepare(make_config(run={"name": name}, data=options), no_start).dataset
        entries.append(fates_of(dataset.path))
    assert entries[0] == entries[1]
    fates = Counter(entry["fate"] for entry in entries[0])
    assert {fate: fates[fate] for fate in expected} == expected
    assert fates.total() == dataset.manifest["num_read"] == 90 + 5 + 31 + len(NEAR) + 12 + 1
    assert dict(fates) == {fate: count for fate, count in dataset.manifest["fates"].items() if count}
    cut = [entry for entry in entries[0] if entry["was_truncated"]]
    assert len(cut) == len(LONG) == dataset.manifest["num_cut"]
    assert all(118 < entry["num_tokens"] <= 128 for entry in cut)
    # The whole input decides the side, so that rows that share it stay together however short they are cut.
    assert [entry["fate"] == "test" for entry in sorted(cut, key=lambda entry: int(entry["position"]))] == [
        is_held_out(text) for text in LONG
    ]
    # Of equal rows, the first stays, and the bytes that a line of the ledger names are those it was made from.
    assert {entry["file"] for entry in entries[0] if entry["fate"] == "duplicate"} == {str(folder / "b.csv.gz")}
    content = (folder / "a.jsonl").read_bytes()
    for entry in entries[0]:
        if entry["file"] == str(folder / "a.jsonl"):
            line = content[entry["position"] :].partition(b"\n")
            assert hashlib.sha256(b"".join(line[:2])).digest() == entry["digest"]
    reasons = {entry["reason"] for entry in entries[0] if entry["fate"] == "quarantined"}
    assert reasons == {"not_json", "missing_field", "not_an_object", "not_utf8", "not_csv"}
    test = [json.loads(line)["input"] for line in RunFolder.from_config(make_config(run={"name": "whole"})).test.open()]
    assert set(HELD_OUT) <= set(test)
    assert len(test) == len(set(test))


def test_a_pickle_in_the_schema_never_runs_on_a_worker(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = booby_trapped(tmp_path / "a.parquet", tmp_path / "canary", "tensor")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({**GOOD, "input": text}) + "\n" for text in REPORTS))
    manifest = prepare(make_config(data={"sources": [path, tmp_path / "b.jsonl"]}), no_start).dataset.manifest
    assert manifest["num_read"] == 5 + 90
    assert not (tmp_path / "canary").exists()


def test_a_file_that_breaks_later_is_one_error(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "input": "y"}])[:-1] + ", broken")
    config = make_config(data={"sources": [path]})
    started: list[bool] = []
    with pytest.raises(InputError, match=r"a.json is a broken JSON array: row 3") as error:
        prepare(config, lambda: started.append(True))
    assert started, "two good rows before it are all that is looked at in advance"
    assert type(error.value) is InputError
    assert not RunFolder.from_config(config).path.exists()
