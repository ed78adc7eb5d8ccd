"""Free text: token F1 as in SQuAD, and ROUGE-L. Pure."""

import re
import unicodedata
from collections import Counter

from rouge_score.rouge_scorer import RougeScorer

from instruct_ray.evidence.metrics import is_exact

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Kana, Chinese characters and Thai, one at a time; anything else as a whole.
_UNSPACED = "぀-ヿ㐀-鿿豈-﫿฀-๿"
_TOKENS = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")


class WordTokenizer:
    """Splits a text into case-folded words, of any script.

    The tokenizer of `rouge-score` keeps ASCII letters and digits only, so that any two Chinese or Greek texts score 0.
    Scripts without spaces are split into characters.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [token for word in _remove_punctuation(text).split() for token in _TOKENS.findall(word)]


_SCORER = RougeScorer(["rougeL"], tokenizer=WordTokenizer())


def token_f1(answer: str, expected: str) -> float:
    """F1 of the tokens of two texts, in [0, 1], regardless of their order.

    As in SQuAD (Rajpurkar et al. 2016): case, punctuation and English articles don't count. Unlike there, signs such as
    `$` and `+` do. Texts without any word are compared as for exact match.
    """
    answered, wanted = (Counter(_squad_words(text)) for text in (answer, expected))
    if not answered and not wanted:
        return float(is_exact(answer, expected))
    return 2 * (answered & wanted).total() / (answered.total() + wanted.total())


def rouge_l(answer: str, expected: str) -> float:
    """F measure of the longest common subsequence of words, in [0, 1] (Lin 2004).

    Texts without any word are compared as for exact match.
    """
    tokenizer = WordTokenizer()
    if not tokenizer.tokenize(answer) and not tokenizer.tokenize(expected):
        return float(is_exact(answer, expected))
    return float(_SCORER.score(expected, answer)["rougeL"].fmeasure)


def _squad_words(text: str) -> list[str]:
    return WordTokenizer().tokenize(_ARTICLES.sub(" ", _remove_punctuation(text)))


def _remove_punctuation(text: str) -> str:
    """The case-folded text without punctuation, so that `don't` is one word."""
    return "".join(character for character in text.casefold() if not unicodedata.category(character).startswith("P"))
