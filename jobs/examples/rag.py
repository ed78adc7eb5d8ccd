"""Retrieval for facts, tuning for behaviour: passages that fit the question go into the prompt of the tuned model.

python -m jobs.examples.rag --model incidents --embeddings FOLDER

Needs `pip install sentence-transformers`; the folder holds a model of it, such as all-MiniLM-L6-v2.
"""

from collections.abc import Sequence

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from sentence_transformers import SentenceTransformer

from jobs.examples.arguments import make_llm, make_parser

DOCUMENTS = (
    "The checkout service is run by the payments team. Outages of it are always critical.",
    "The imprint is maintained by the legal team. Mistakes in it are fixed within a week.",
    "Backups run every night at two. A failed backup is repeated once before somebody is called.",
)
QUESTION = "How urgent is it that customers can't pay?"
TEMPLATE = "How urgent is this incident? Use these facts.\n\n{facts}\n\n{question}"


class LocalEmbeddings(Embeddings):
    """The embeddings of a sentence-transformers model."""

    def __init__(self, folder: str) -> None:
        self._model = SentenceTransformer(folder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed texts."""
        vectors: list[list[float]] = self._model.encode(texts, normalize_embeddings=True).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a question."""
        return self.embed_documents([text])[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = make_parser(__doc__)
    parser.add_argument("--embeddings", required=True, help="folder of the embedding model")
    options = parser.parse_args(arguments)
    store = InMemoryVectorStore.from_documents(
        [Document(text) for text in DOCUMENTS], LocalEmbeddings(options.embeddings)
    )
    retriever = store.as_retriever(search_kwargs={"k": 1})
    facts = retriever | (lambda documents: "\n".join(document.page_content for document in documents))
    chain = (
        {"facts": facts, "question": RunnablePassthrough()}
        | PromptTemplate.from_template(TEMPLATE)
        | make_llm(options)
        | StrOutputParser()
    )
    print("facts: ", facts.invoke(QUESTION))
    print("answer:", chain.invoke(QUESTION))


if __name__ == "__main__":
    main()
