"""Triples -> packs: the Ray Data pipeline from source files to a finished folder of Parquet."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data.expressions import col

from instruct_ray import base, run
from instruct_ray.config import Config
from instruct_ray.data.contract import Contract, Renderer, make_renderer
from instruct_ray.data.dataset import MANIFEST, SCHEMA, PackedDataset
from instruct_ray.data.packing import Example, pack
from instruct_ray.data.triples import check_sources, parse, read_rows
from instruct_ray.errors import InputError

# Rows that are sorted and packed together: bounds a task's memory and is counted from the data, never from the CPUs.
ROWS_PER_SHARD = 50_000
# What decides the packs.
SECTIONS = ("run", "data", "model")
# Raised when the same rows would be packed otherwise.
PACKING_VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found or made."""

    dataset: PackedDataset
    already_done: bool


def find(config: Config) -> PackedDataset:
    """The finished packs of a run.

    Raises:
        InputError: the run has none yet.
    """
    folder = run.RunFolder.of(config)
    finished = _finished(folder)
    if not finished:
        raise InputError(f"{folder.packs}: no prepared packs; run `python -m jobs.prepare` with this config first")
    return PackedDataset.open(finished[0])


def _finished(folder: run.RunFolder) -> list[Path]:
    """Complete folders of packs; what a killed run left behind has a name that begins with a dot."""
    return sorted(manifest.parent for manifest in folder.packs.glob(f"[!.]*/{MANIFEST}"))


def check_unchanged(config: Config) -> None:
    """Refuse source files that are not those the run was prepared from.

    Raises:
        InputError: names the first that differs.
    """
    prepared = [source["sha256"] for source in find(config).manifest["sources"]]
    for source, digest, expected in zip(config.data.sources, source_digests(config), prepared, strict=True):
        if digest != expected:
            raise InputError(f"data.sources: {source} changed since the run was prepared; take another run.name")


def source_digests(config: Config) -> list[str]:
    """sha256 of each source file."""
    digests = []
    for source in config.data.sources:
        with source.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def plan_digest(config: Config, contract: Contract, sources: list[str]) -> str:
    """The digest that names the packs, from everything that decides their content."""
    options = config.data.model_dump(mode="json", exclude={"sources"})
    content = [PACKING_VERSION, sources, contract.digest, options, config.run.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prepare(config: Config, start_ray: Callable[[], None]) -> Prepared:
    """Read, check, split, tokenise and pack the sources of a run; does nothing if that was done before.

    `start_ray` is called once there is work for it.

    Raises:
        InputError: a source, a row or the base model's chat template can't be used; names file, row and reason.
    """
    check_sources(config.data.sources)
    renderer = make_renderer(base.resolve(config).folder, config.data.system_prompt)
    folder = run.RunFolder.of(config)
    run.check_pinned(config, *SECTIONS)
    sources = source_digests(config)
    digest = plan_digest(config, renderer.contract, sources)
    target = folder.packs / digest[:16]
    if (target / MANIFEST).is_file():
        return Prepared(PackedDataset.open(target), already_done=True)
    if _finished(folder):
        raise InputError(f"{folder.packs} was made from other source files or another base; take another run.name")

    start_ray()
    rows = _rendered_rows(config, renderer)
    _refuse_bad_rows(rows, config.data.sources)
    test = rows.filter(expr=col("side") == "test").select_columns(["row_id", "triple"]).take_all()
    train = rows.filter(expr=col("side") == "train")
    num_train = train.count()
    if not test or not num_train:
        side = "left to train on" if test else "held out"
        raise InputError(
            f"data.test_fraction={config.data.test_fraction}: no row is {side}; give more rows or change it"
        )

    run.pin(config, *SECTIONS)
    with run.complete_folder(target) as unfinished:
        counts = _write_packs(train, num_train, config, unfinished)
        _write_test_rows(test, folder.test)
        renderer.contract.save(folder.contract)
        manifest = {
            "digest": digest,
            "contract_digest": renderer.contract.digest,
            "sources": [{"name": p.name, "sha256": s} for p, s in zip(config.data.sources, sources, strict=True)],
            "num_train": num_train,
            "num_test": len(test),
            **counts,
        }
        run.write_json(unfinished / MANIFEST, manifest)
    return Prepared(PackedDataset.open(target), already_done=False)


def _rendered_rows(config: Config, renderer: Renderer) -> ray.data.Dataset:
    """Every row with its fate: `side` is train, test or refused."""
    sources = [{"number": number, "source": str(source)} for number, source in enumerate(config.data.sources)]

    def read(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for number, row in read_rows(Path(item["source"])):
            yield _row(f"{item['number']}:{number}", row, config, renderer)

    return ray.data.from_items(sources, override_num_blocks=len(sources)).flat_map(read).materialize()


def _row(row_id: str, row: Any, config: Config, renderer: Renderer) -> dict[str, Any]:
    result: dict[str, Any] = {"row_id": row_id, "side": "refused", "reason": "", "triple": "", "group": ""}
    result |= {"prompt_ids": [0], "completion_ids": [0]}
    try:
        triple = parse(row, row_id)
        prompt_ids = renderer.prompt(renderer.messages(triple.instruction, triple.input))
        completion_ids = renderer.completion(triple.output)
        example = Example(row_id, prompt_ids, completion_ids)
        limit = min(config.data.max_tokens, config.data.pack_tokens)
        if example.num_tokens > limit:
            raise InputError(f"has {example.num_tokens} tokens; data.max_tokens and data.pack_tokens allow {limit}")
    except InputError as error:
        return result | {"reason": str(error)}
    return result | {
        "group": triple.instruction if triple.input else "",
        "side": "test" if triple.is_test(config.data.test_fraction) else "train",
        "triple": json.dumps(asdict(triple), ensure_ascii=False),
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
    }


def _refuse_bad_rows(rows: ray.data.Dataset, sources: tuple[Path, ...]) -> None:
    refused = rows.filter(expr=col("side") == "refused").select_columns(["row_id", "reason"])
    bad = refused.take(1)
    if bad:
        source, _, row = bad[0]["row_id"].partition(":")
        others = refused.count() - 1
        more = f" ({others} more bad rows)" if others else ""
        raise InputError(f"{sources[int(source)]}: row {row} {bad[0]['reason']}{more}")
    if rows.count() == 0:
        raise InputError(f"data.sources: no rows in {', '.join(str(source) for source in sources)}")


def _write_packs(rows: ray.data.Dataset, num_rows: int, config: Config, folder: Path) -> dict[str, Any]:
    """Deal the rows to shards by a seeded hash; each shard becomes one Parquet file. Returns the counts."""
    num_shards = -(-num_rows // ROWS_PER_SHARD)
    seed, pack_tokens = config.run.seed, config.data.pack_tokens

    def write_shard(shard: pa.Table) -> pa.Table:
        number = shard["shard"][0].as_py()
        # Rows of a group, which share their prompt up to the input, lie together, shuffled among themselves.
        rows = sorted(shard.to_pylist(), key=lambda row: (_hash(seed, row["group"]), _hash(seed, row["row_id"])))
        examples = [Example(row["row_id"], row["prompt_ids"], row["completion_ids"]) for row in rows]
        packs = list(pack(examples, pack_tokens))
        pq.write_table(pa.Table.from_pylist(packs, schema=SCHEMA), folder / _shard_file(number), row_group_size=64)
        counts = {
            "num_packs": len(packs),
            "num_tokens": sum(p["num_tokens"] for p in packs),
            "num_computed_tokens": sum(len(p["input_ids"]) for p in packs),
            "num_trained_tokens": sum(p["num_trained"] for p in packs),
        }
        return pa.table({name: [count] for name, count in counts.items()} | {"shard": [number]})

    shards = (
        rows.map_batches(lambda table: _with_shard(table, seed, num_shards), batch_format="pyarrow")
        .groupby("shard", num_partitions=num_shards)
        .map_groups(write_shard, batch_format="pyarrow")
        .take_all()
    )
    totals = {name: sum(shard[name] for shard in shards) for name in shards[0] if name != "shard"}
    return totals | {"files": [_shard_file(shard) for shard in sorted(shard["shard"] for shard in shards)]}


def _with_shard(table: pa.Table, seed: int, num_shards: int) -> pa.Table:
    shards = [_hash(seed, row_id) % num_shards for row_id in table["row_id"].to_pylist()]
    return table.select(["row_id", "group", "prompt_ids", "completion_ids"]).append_column("shard", pa.array(shards))


def _hash(seed: int, row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:8], "big")


def _shard_file(number: int) -> str:
    return f"packs-{number:05d}.parquet"


def _write_test_rows(rows: list[dict[str, Any]], path: Path) -> None:
    rows = sorted(rows, key=lambda row: [int(part) for part in row["row_id"].split(":")])
    run.write_text(path, "".join(row["triple"] + "\n" for row in rows))
