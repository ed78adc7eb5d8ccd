"""driver: texts ranked by the similarity of their embeddings: an encoder in Hugging Face format, mean pooling."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from instruct_ray.errors import InputError, one_line

FIELD = "evidence.retriever"
BATCH_SIZE = 32
# Shape suffixes: N = texts, B = texts of a batch, T = tokens, D = dimensions


class EmbeddingIndex:
    """Texts ranked by cosine similarity."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        """Load the model and embed the texts.

        Raises:
            InputError: the folder holds no model that can be loaded from safetensors without code of its own.
        """
        if not folder.is_dir():
            raise InputError(f"{FIELD}: no folder {folder}; give bm25 or the folder of an embedding model")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{FIELD}: {folder} can't be loaded: {one_line(error, 200)}") from None
        if self._tokenizer.pad_token is None:
            raise InputError(f"{FIELD}: the tokenizer in {folder} has no pad token; an encoder has one")
        self._embeddings_ND = self._embed(texts)

    def find_best(self, query: str, count: int) -> list[int]:
        """The indices of the most similar texts, best first; the earlier one of equals."""
        scores_N = (self._embeddings_ND @ self._embed([query])[0]).tolist()
        return sorted(range(len(scores_N)), key=lambda index: -scores_N[index])[:count]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; shape (N, D), of length 1."""
        # Texts of similar length share a batch, which needs less padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        parts = [
            self._embed_batch([texts[index] for index in order[start : start + BATCH_SIZE]])
            for start in range(0, len(order), BATCH_SIZE)
        ]
        sorted_ND = torch.cat(parts)
        return sorted_ND[torch.tensor(order).argsort()]

    def _embed_batch(self, texts: list[str]) -> Tensor:
        limit = self._model.config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        states_BTD = self._model(**tokens).last_hidden_state
        mask_BT1 = tokens["attention_mask"].unsqueeze(-1)
        means_BD = (states_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        return torch.nn.functional.normalize(means_BD.float(), dim=-1)
