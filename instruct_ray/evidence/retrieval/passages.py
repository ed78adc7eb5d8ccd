"""driver: the passages of `evidence.documents` that go into the prompt of each row."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from instruct_ray.config.evidence import BM25, EvidenceConfig
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.retrieval.bm25 import Bm25Index
from instruct_ray.evidence.retrieval.documents import FIELD, find_documents, read_passages


class Index(Protocol):
    """Ranks texts by a query."""

    def find_best(self, query: str, count: int) -> list[int]:
        """The indices of the best texts, best first."""


def choose_passages(
    rows: Sequence[Triple],
    renderer: Renderer,
    evidence: EvidenceConfig,
    status: Callable[[str], None],
) -> tuple[list[list[str]] | None, list[str]]:
    """Choose the passages of each row, best first; None without documents.

    Returns:
        The passages, and notes on those that are left out since no prompt may contain them, such as text with a special
        token.

    Raises:
        InputError: a document or the embedding model can't be used.
    """
    if not evidence.documents:
        return None, []
    status("reading the documents")
    found = read_passages(find_documents(evidence.documents), renderer, evidence.passage_tokens)
    passages, notes = _drop_rejected(found, renderer)
    status(f"ranking {len(passages):,} passages")
    index = _make_index(evidence.retriever, passages)
    chosen = [
        [passages[place] for place in index.find_best(f"{row.instruction} {row.input}", evidence.num_passages)]
        for row in rows
    ]
    return chosen, notes


def _drop_rejected(passages: Sequence[str], renderer: Renderer) -> tuple[list[str], list[str]]:
    encoded = renderer.encode_prompts([renderer.messages(passage, "") for passage in passages])
    rejected = [one.detail for one in encoded if isinstance(one, RowError)]
    if len(rejected) == len(passages):
        raise InputError(f"{FIELD}: no passage can be in a prompt; the first one {rejected[0]}")
    kept = [passage for passage, one in zip(passages, encoded, strict=True) if not isinstance(one, RowError)]
    if not rejected:
        return kept, []
    return kept, [f"{len(rejected)} of {len(passages)} passages of {FIELD} are left out; the first one {rejected[0]}"]


def _make_index(retriever: str, passages: Sequence[str]) -> Index:
    if retriever == BM25:
        return Bm25Index(passages)
    # Imports torch's encoders, which BM25 does not need.
    from instruct_ray.evidence.retrieval.embedding import EmbeddingIndex  # noqa: PLC0415

    return EmbeddingIndex(Path(retriever), passages)
