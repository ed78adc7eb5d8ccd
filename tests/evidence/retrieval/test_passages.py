"""Documents: which files are read, how they are split, and which passages a row gets."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from instruct_ray.config.evidence import EvidenceConfig
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from instruct_ray.evidence.retrieval.bm25 import Bm25Index
from instruct_ray.evidence.retrieval.documents import find_documents, read_passages, split_text
from instruct_ray.evidence.retrieval.embedding import EmbeddingIndex
from instruct_ray.evidence.retrieval.passages import choose_passages
from tests.data.rendering.families import make_word_renderer
from tests.fakes import ignore_status


def split(text: str, max_tokens: int) -> list[str]:
    return list(split_text(text, max_tokens, lambda words: [1] * len(words)))


def test_text_is_split_between_words_and_at_paragraphs() -> None:
    assert split("a b c d e", 2) == ["a b", "c d", "e"]
    assert split("one two three\n\nfour five six", 5) == ["one two three", "four five six"]
    assert split("one\n\ntwo three four", 4) == ["one\n\ntwo three four"]
    assert split(" \n", 4) == []
    # A word is never cut.
    assert list(split_text("long short", 3, lambda words: [9, 1])) == ["long", "short"]


def test_text_without_spaces_is_split_too() -> None:
    text = "数据库已经停止响应" * 50
    passages = list(split_text(text, 60, lambda words: [len(word) for word in words]))
    assert "".join(passages) == text and max(map(len, passages)) <= 60
    # Words that are only long stay whole where they fit.
    assert split("Donaudampfschifffahrtsgesellschaft fährt", 9) == ["Donaudampfschifffahrtsgesellschaft fährt"]


def test_passages_that_no_prompt_may_contain_are_left_out_and_noted(tmp_path: Path) -> None:
    renderer = make_word_renderer(tmp_path / "base")
    (tmp_path / "a.txt").write_text("shops are down: 服务")
    (tmp_path / "b.txt").write_text("printers jam")
    rows = [Triple("a", "Rate.", "the shop is down", "")]
    evidence = EvidenceConfig(documents=(tmp_path / "a.txt", tmp_path / "b.txt"), num_passages=2)
    found, [note] = choose_passages(rows, renderer, evidence, ignore_status)
    assert found == [["printers jam"]]
    assert note.startswith("1 of 2 passages of evidence.documents are left out; the first one has characters that")
    (tmp_path / "b.txt").write_text("停止")
    with pytest.raises(InputError, match=r"evidence\.documents: no passage can be in a prompt"):
        choose_passages(rows, renderer, evidence, ignore_status)


def test_folders_give_text_files_and_files_themselves(tmp_path: Path, base_folder: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.MD").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.rst").write_text("third")
    files = find_documents([tmp_path, tmp_path / "c.rst", tmp_path / "a.txt"])
    assert [file.name for file in files] == ["a.txt", "b.MD", "c.rst"]
    assert read_passages(files, derive_renderer(base_folder, None), 50) == ["first", "second", "third"]


def test_unusable_documents_are_refused_by_name(tmp_path: Path, base_folder: Path) -> None:
    renderer = derive_renderer(base_folder, None)
    with pytest.raises(InputError, match=r"evidence\.documents: no file or folder .*nowhere"):
        find_documents([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"has no \.txt or \.md files"):
        find_documents([tmp_path])
    binary = tmp_path / "x.txt"
    binary.write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"x\.txt is no text in UTF-8 \(byte 2\)"):
        read_passages([binary], renderer, 50)
    binary.write_text(" ")
    with pytest.raises(InputError, match="the files have no text"):
        read_passages([binary], renderer, 50)


def test_bm25_ranks_texts_of_any_script() -> None:
    index = Bm25Index(["der Drucker klemmt", "", "the shop is down", "数据库 ist aus"])
    assert index.find_best("数据", 1) == [3] and index.find_best("Drucker!", 2)[0] == 0
    # Nothing in common: the first ones.
    assert index.find_best("zzz", 2) == [0, 1] == index.find_best("", 2)
    assert Bm25Index(["", "!"]).find_best("x", 5) == [0, 1]


def test_each_row_gets_its_passages(tmp_path: Path, base_folder: Path) -> None:
    (tmp_path / "a.txt").write_text("printers jam when hot\n\n" * 3 + "shops are down at night " * 3)
    evidence = EvidenceConfig(documents=(tmp_path,), num_passages=1, passage_tokens=30)
    rows = [Triple("a", "Rate.", "the shop is down", ""), Triple("b", "Rate.", "jam in printers", "")]
    found, _ = choose_passages(rows, derive_renderer(base_folder, None), evidence, ignore_status)
    assert found is not None and "shops" in found[0][0] and "printers" in found[1][0]
    assert choose_passages(rows, derive_renderer(base_folder, None), EvidenceConfig(), ignore_status) == (None, [])


@pytest.fixture
def encoder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random BERT."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_embedding_model_ranks_by_cosine_of_mean_states(encoder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["the shop is down", "printer jams", "a typo on the page and more words than the others", "nice"]
    model = BertModel.from_pretrained(encoder).eval()

    def embed(text: str) -> torch.Tensor:
        with torch.inference_mode():
            states = model(**tokenizer([text], return_tensors="pt", return_token_type_ids=False)).last_hidden_state
        return states[0].mean(dim=0)

    query = "printer is down"
    scores = [float(torch.cosine_similarity(embed(text), embed(query), dim=0)) for text in texts]
    expected = sorted(range(4), key=lambda index: -scores[index])
    assert EmbeddingIndex(encoder, texts).find_best(query, 3) == expected[:3]


def test_folder_without_an_embedding_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evidence\.retriever: no folder"):
        EmbeddingIndex(tmp_path / "none", ["x"])
    with pytest.raises(InputError, match=r"evidence\.retriever: .* can't be loaded"):
        EmbeddingIndex(tmp_path, ["x"])
