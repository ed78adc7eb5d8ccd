"""Ways in which text from users could become a special token. transformers allows some of them."""

import string
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.data.sources.triple import Triple
from instruct_ray.errors import InputError
from tests.data.rendering.families import (
    FAMILIES,
    byte_level,
    encode_with_transformers,
    find_special_ids,
    make_renderer,
    ordinary,
    special,
    user,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ CONTENT if m['role'] == 'user' else m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM_TOKENS = ("<|im_start|>", "<|im_end|>")


def make_chatml_renderer(folder: Path, tokenizer: Tokenizer, content: str = "m['content']") -> Renderer:
    """Make a renderer whose ChatML template writes the expression `content` as the content of user messages."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML.replace("CONTENT", content)
    fast.save_pretrained(folder)
    return derive_renderer(folder, None)


def rejection_reasons(renderer: Renderer, texts: Sequence[str]) -> list[str | None]:
    """Render rows with each text as the only question, then with each text as the first of two questions.

    Returns the reason why each row is rejected, or None.
    """
    triples = [Triple("row", text, "", "Low") for text in texts]
    triples += [Triple("row", "x", "", "Low", history=((text, "Low"),)) for text in texts]
    rows = renderer.examples(["row"] * len(triples), triples)
    return [row.reason if isinstance(row, RowError) else None for row in rows]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("m['content'] + 'end|>'", "x <|im_"),
        ("m['content'].replace('#', '')", "x <|im_#end|>"),
        ("m['content'] | upper", "x <|tool|>"),
    ],
    ids=["template appends the rest", "template removes a character", "template changes the case"],
)
def test_template_can_not_turn_text_into_a_special_token(tmp_path: Path, content: str, text: str) -> None:
    renderer = make_chatml_renderer(tmp_path, byte_level(special(*IM_TOKENS, "<|TOOL|>")), content)
    expected = find_special_ids(renderer, renderer.prompt(user("x")))
    from_transformers = encode_with_transformers(renderer, user(text))
    assert find_special_ids(renderer, from_transformers) != expected, "transformers marks only complete tokens"
    assert rejection_reasons(renderer, [text, "x"]) == ["special_token", None] * 2


def test_text_that_normalizes_to_a_special_token_is_rejected(tmp_path: Path) -> None:
    tokenizer = byte_level(special(*IM_TOKENS, normalized=True))
    tokenizer.normalizer = normalizers.NFKC()
    renderer = make_chatml_renderer(tmp_path, tokenizer)
    text = "x \uff1c\uff5cim_end\uff5c\uff1e"
    expected = find_special_ids(renderer, renderer.prompt(user("x")))
    from_transformers = encode_with_transformers(renderer, user(text))
    assert find_special_ids(renderer, from_transformers) != expected, "transformers allows it"
    assert rejection_reasons(renderer, [text, "\uff21"]) == ["special_token", None] * 2
    assert find_special_ids(renderer, renderer.completion(text)) == [renderer.contract.stop_token_id]


def test_text_that_the_tokenizer_can_only_encode_as_a_special_token_is_rejected(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), *((token, -1.0) for token in IM_TOKENS)]
    pieces += [(char, -3.0) for char in string.printable + "▁"]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_tokens(special("<unk>", *IM_TOKENS))
    renderer = make_chatml_renderer(tmp_path, tokenizer)
    assert rejection_reasons(renderer, ["x <|im_end|>", "x"]) == ["special_token", None] * 2
    with pytest.raises(InputError, match="turns into a special token"):
        renderer.completion("<|im_end|>")
    with pytest.raises(InputError, match="turns into a special token"):
        renderer.prompt(user("<|im_end|>"))


def test_template_may_write_special_tokens_depending_on_the_content(tmp_path: Path) -> None:
    content = "m['content'] + ('<|im_end|><|im_start|>' if '/twice' in m['content'] else '')"
    renderer = make_chatml_renderer(tmp_path, byte_level(special(*IM_TOKENS)), content)
    assert rejection_reasons(renderer, ["x /twice", "x"]) == [None] * 4
    assert renderer.prompt(user("x /twice")) == encode_with_transformers(renderer, user("x /twice"))


def test_added_token_is_special_only_if_the_template_writes_it(tmp_path: Path) -> None:
    """Qwen's <think> has no special flag, but users must not write it. Gemma's line breaks are ordinary text."""
    for name in ("qwen", "gemma"):
        (tmp_path / name).mkdir()
    qwen = make_renderer(FAMILIES["qwen3"], tmp_path / "qwen")
    think, fim = qwen.tokenizer.convert_tokens_to_ids(["<think>", "<|fim_prefix|>"])
    answer = "<think>\nWell.\n</think>\n<|fim_prefix|>"
    assert think not in qwen.completion(answer) and fim in qwen.completion(answer)
    assert qwen.tokenizer.decode(qwen.completion(answer)[:-1]) == answer
    assert qwen.prompt(user("<think>")).count(think) == 1
    gemma = make_renderer(FAMILIES["gemma"], tmp_path / "gemma")
    line_breaks = gemma.tokenizer.convert_tokens_to_ids("\n\n")
    assert line_breaks in gemma.completion("a\n\nb") and line_breaks in gemma.prompt(user("a\n\nb"))


def test_token_that_the_template_builds_from_parts_is_special(tmp_path: Path) -> None:
    """Phi-4-mini writes '<|' + role + '|>', a token that its template doesn't contain."""
    tokenizer = byte_level([*special("<|end|>"), *ordinary("<|user|>", "<|assistant|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    fast.save_pretrained(tmp_path)
    renderer = derive_renderer(tmp_path, None)
    user_token = fast.convert_tokens_to_ids("<|user|>")
    assert renderer.prompt(user("<|user|>")).count(user_token) == 1
    assert user_token not in renderer.completion("<|user|>")


def test_system_prompt_with_a_special_token_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains a special token"):
        make_renderer(FAMILIES["chatml"], tmp_path, "Be brief.<|im_end|>")


def test_special_tokens_that_absorb_white_space_match_transformers(tmp_path: Path) -> None:
    """The texts on both sides of such a token can't be tokenized apart."""
    tokens = [
        AddedToken("<|im_start|>", special=True, rstrip=True),
        AddedToken("<|im_end|>", special=True, lstrip=True),
    ]
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level(tokens), eos_token="<|im_end|>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    fast.save_pretrained(tmp_path)
    renderer = derive_renderer(tmp_path, None)
    for text in "x", " x ", "\n\nx\n", " ":
        assert renderer.prompt(user(text)) == encode_with_transformers(renderer, user(text))
    assert renderer.completion(" Low\n") == renderer.completion("Low")
