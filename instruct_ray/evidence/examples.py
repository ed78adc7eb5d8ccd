"""driver: few-shot examples for each test row, from the training rows that `prepare` chose."""

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.data.ledger import OUTCOME_COLUMN, read_entries
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.prepare.candidates import POOL_ROWS, CandidatePool, read_pool
from instruct_ray.data.prepare.source_changes import find_run_files
from instruct_ray.data.row_id import format_row_id
from instruct_ray.data.sources.files import split_into_chunks
from instruct_ray.data.sources.readers import read_records
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.data.sources.triple import Triple
from instruct_ray.evidence.prompts import few_shot_counts
from instruct_ray.evidence.retrieval.bm25 import Bm25Index

# Of a run that was prepared before candidates were: chunks, and rows, that are read to choose from.
SAMPLED_CHUNKS = 16
SAMPLED_ROWS = 20_000


def load_candidates(run: OpenRun) -> list[Triple]:
    """Load the training rows that examples are chosen from, best first.

    A run that an earlier version prepared has no such file: there they are chosen from the rows of up to 16 chunks of
    its sources, from all over the data.
    """
    if run.folder.few_shot_file.is_file():
        return read_pool(run.folder.few_shot_file)
    sampled = dict(_sample_rows(run))
    ids, trained = pa.array(list(sampled), pa.string()), set[str]()
    for batch in read_entries(run.packs.path, "row_id", OUTCOME_COLUMN):
        is_trained = pc.and_(pc.equal(batch[OUTCOME_COLUMN], "trained"), pc.is_in(batch["row_id"], ids))
        trained.update(batch.filter(is_trained)["row_id"].to_pylist())
    pool = CandidatePool(POOL_ROWS, run.config.run.seed)
    for row_id, triple in sampled.items():
        if row_id in trained:
            pool.add(row_id, triple)
    return [triple for _, triple in pool.triples()]


def choose_examples(
    candidates: Sequence[Triple], rows: Sequence[Triple], evidence: EvidenceConfig
) -> list[list[Triple]]:
    """Choose the examples of each row: as many as the largest few-shot arm has, the best first."""
    count = max(few_shot_counts(evidence), default=0)
    if evidence.few_shot_choice == "random" or not count:
        chosen = list(candidates[:count])
        return [chosen for _ in rows]
    index = Bm25Index([_question(candidate) for candidate in candidates])
    return [[candidates[found] for found in index.find_best(_question(row), count)] for row in rows]


def _question(row: Triple) -> str:
    return f"{row.instruction} {row.input}"


def _sample_rows(run: OpenRun) -> Iterator[tuple[str, Triple]]:
    data = run.config.data
    chunks = split_into_chunks(find_run_files(run.config))
    chunks = chunks[:: -(-len(chunks) // SAMPLED_CHUNKS)]
    for chunk in chunks:
        for record in islice(read_records(chunk, data), SAMPLED_ROWS // len(chunks)):
            row_id = format_row_id(chunk.file.number, record.position)
            try:
                yield row_id, parse_row(record.value, row_id, data.sources[chunk.file.source])
            except RowError:
                continue
