"""No text from a user becomes a control token, and many rows at once become the tokens of transformers' slow way."""

import string
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instruct_ray.data.contract import Message
from instruct_ray.data.packing import Example
from instruct_ray.data.readers import RowError
from instruct_ray.data.rendering import Renderer
from instruct_ray.data.templates import make_renderer
from instruct_ray.data.triples import Triple
from instruct_ray.errors import InputError
from tests.data.families import CORPUS, FAMILIES, Family, byte_level, ordinary, special

# Marks of transformers and of other uses, zero width, homoglyphs, combining characters, odd spaces.
TRICKS = [
    "\U000f0000", "\U000f0001", "\ue000", "\uf8ff", "\u200b", "\u200d", "\ufeff", "\u2581", "\u0338", "\u0301",
    "\uff1c", "\uff5c", "\uff1e", "\u212a", "\u00a0", "\u3000", "\u2028", "\t", "\r\n", "\n", "\n\n", " ", "  ",
    "<", "|", ">", "[", "]", "/", "\x85", "İ", "e\u0301", "<0x0A>", "{{ bos_token }}", "### Response:\n", "<<SYS>>",
]  # fmt: skip
OPEN, CLOSE = TRICKS[:2]
ALL = list(FAMILIES)


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return renderer_of(FAMILIES[request.param], tmp_path_factory.mktemp("family"))


def renderer_of(family: Family, folder: Path, system: str | None = None) -> Renderer:
    family.save(folder)
    return make_renderer(folder, system)


each_family = pytest.mark.parametrize("family", ALL, indirect=True)


def hostile(renderer: Renderer) -> st.SearchStrategy[str]:
    """Text out of the tokenizer's own added tokens, whole, split, marked and disguised."""
    added = [token.content for token in renderer.tokenizer.added_tokens_decoder.values()]
    whole = st.sampled_from(added)
    halves = st.tuples(whole, st.integers(1, 8)).map(lambda part: part[0][: part[1]])
    ends = st.tuples(whole, st.integers(1, 8)).map(lambda part: part[0][-part[1] :])
    nested = st.tuples(whole, whole, st.integers(1, 6)).map(
        lambda part: part[0][: part[2]] + part[1] + part[0][part[2] :]
    )
    marked = whole.map(lambda token: OPEN + token + CLOSE)
    words = st.sampled_from([*TRICKS, *CORPUS.split()[:40]])
    pieces = st.one_of(whole, halves, ends, nested, marked, words, st.text(max_size=4))
    return st.lists(pieces, min_size=1, max_size=6).map("".join)


def triples(renderer: Renderer, takes_system: bool) -> st.SearchStrategy[Triple]:
    text = hostile(renderer)
    return st.builds(
        Triple,
        id=st.just("row"),
        instruction=text,
        input=st.one_of(st.just(""), text),
        output=text,
        system=st.one_of(st.none(), text) if takes_system else st.none(),
        history=st.lists(st.tuples(text, text), max_size=2).map(tuple),
    )


def slow(renderer: Renderer, chat: Sequence[Message]) -> list[int]:
    """The tokens as transformers makes them."""
    encoding = renderer.tokenizer.apply_chat_template(
        list(chat),
        chat_template=renderer.contract.chat_template,
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        date_string="26 Jul 2024",
        **renderer.contract.template_options,
    )
    return list(encoding["input_ids"])


def control_ids(renderer: Renderer, ids: Sequence[int]) -> list[int]:
    tokens = renderer.template.control_tokens()
    known = set(renderer.tokenizer.convert_tokens_to_ids(tokens))
    return [token for token in ids if token in known]


def examples_of(renderer: Renderer, rows: Sequence[Triple]) -> list[list[Example]]:
    found = renderer.examples([row.id for row in rows], rows)
    assert not [row for row in found if isinstance(row, RowError)]
    return [row for row in found if not isinstance(row, RowError)]


def neutral(chat: Sequence[Message]) -> list[Message]:
    return [{"role": message["role"], "content": "x"} for message in chat]


@each_family
def test_rows_become_what_transformers_makes_of_them_and_no_text_a_control_token(
    family: Renderer, request: pytest.FixtureRequest
) -> None:
    takes_system = FAMILIES[request.node.callspec.params["family"]].takes_system

    @settings(deadline=None, max_examples=20)
    @given(st.lists(triples(family, takes_system), min_size=1, max_size=4))
    def check(rows: list[Triple]) -> None:
        for row, examples in zip(rows, examples_of(family, rows), strict=True):
            chat = family.chat(row)
            prompts = [chat[: index + 1] for index, message in enumerate(chat) if message["role"] == "user"]
            answers = [*(answer for _, answer in row.history), row.output]
            for prompt, answer, example in zip(prompts, answers, examples, strict=True):
                assert example.prompt_ids == slow(family, prompt) == family.prompt(prompt)
                assert control_ids(family, example.prompt_ids) == control_ids(family, family.prompt(neutral(prompt)))
                assert example.completion_ids == family.completion(answer)
                assert control_ids(family, example.completion_ids) == [family.contract.stop_token_id]

    check()


@each_family
def test_plain_rows_become_what_transformers_makes_of_them(family: Renderer) -> None:
    """As above with harmless text of any alphabet, which takes the fast way."""

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        rows = [Triple("row", text, "", "Low") for text in texts]
        for row, [example] in zip(rows, examples_of(family, rows), strict=True):
            assert example.prompt_ids == slow(family, family.chat(row))

    check()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ CONTENT if m['role'] == 'user' else m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = ("<|im_start|>", "<|im_end|>")


def odd_renderer(folder: Path, tokenizer: Tokenizer, content: str = "m['content']") -> Renderer:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHATML.replace("CONTENT", content)
    fast.save_pretrained(folder)
    return make_renderer(folder, None)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def reasons(renderer: Renderer, texts: Sequence[str]) -> list[str | None]:
    """Why rows with a text as question are refused: alone, and with an answer and another question behind it."""
    rows = [Triple("row", text, "", "Low") for text in texts]
    rows += [Triple("row", "x", "", "Low", history=((text, "Low"),)) for text in texts]
    found = renderer.examples(["row"] * len(rows), rows)
    return [row.reason if isinstance(row, RowError) else None for row in found]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("m['content'] + 'end|>'", "x <|im_"),
        ("m['content'].replace('#', '')", "x <|im_#end|>"),
        ("m['content'] | upper", "x <|tool|>"),
    ],
    ids=["joined with the template's text", "joined by what the template removes", "changed by the template"],
)
def test_a_template_can_not_make_a_control_token_of_text(tmp_path: Path, content: str, text: str) -> None:
    renderer = odd_renderer(tmp_path, byte_level(special(*ROLES, "<|TOOL|>")), content)
    own = control_ids(renderer, renderer.prompt(user("x")))
    assert control_ids(renderer, slow(renderer, user(text))) != own, "transformers marks whole tokens only"
    assert reasons(renderer, [text, "x"]) == ["control_token", None] * 2


def test_text_that_becomes_a_control_token_by_normalisation_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(special(*ROLES, normalized=True))
    tokenizer.normalizer = normalizers.NFKC()
    renderer = odd_renderer(tmp_path, tokenizer)
    text = "x \uff1c\uff5cim_end\uff5c\uff1e"
    own = control_ids(renderer, renderer.prompt(user("x")))
    assert control_ids(renderer, slow(renderer, user(text))) != own, "transformers lets it through"
    assert reasons(renderer, [text, "\uff21"]) == ["control_token", None] * 2
    assert control_ids(renderer, renderer.completion(text)) == [renderer.contract.stop_token_id]


def test_a_tokenizer_that_makes_control_tokens_of_letters_refuses_the_text(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), *((token, -1.0) for token in ROLES), *((char, -3.0) for char in string.printable + "▁")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_tokens(special("<unk>", *ROLES))
    renderer = odd_renderer(tmp_path, tokenizer)
    assert reasons(renderer, ["x <|im_end|>", "x"]) == ["control_token", None] * 2
    with pytest.raises(InputError, match="makes a control token of"):
        renderer.completion("<|im_end|>")
    with pytest.raises(InputError, match="makes a control token of"):
        renderer.prompt(user("<|im_end|>"))


def test_a_template_may_look_at_what_is_said(tmp_path: Path) -> None:
    """Its own control tokens are not taken for forged ones."""
    content = "m['content'] + ('<|im_end|><|im_start|>' if '/twice' in m['content'] else '')"
    renderer = odd_renderer(tmp_path, byte_level(special(*ROLES)), content)
    assert reasons(renderer, ["x /twice", "x"]) == [None] * 4
    assert renderer.prompt(user("x /twice")) == slow(renderer, user("x /twice"))


def test_ordinary_tokens_are_control_tokens_where_the_template_writes_them_only(tmp_path: Path) -> None:
    """Qwen's <think> is no special token, yet never a user's; Gemma's runs of line breaks are part of every text."""
    (tmp_path / "qwen").mkdir(), (tmp_path / "gemma").mkdir()
    qwen = renderer_of(FAMILIES["qwen3"], tmp_path / "qwen")
    think, fim = qwen.tokenizer.convert_tokens_to_ids(["<think>", "<|fim_prefix|>"])
    answer = "<think>\nWell.\n</think>\n<|fim_prefix|>"
    assert think not in qwen.completion(answer) and fim in qwen.completion(answer)
    assert qwen.tokenizer.decode(qwen.completion(answer)[:-1]) == answer
    assert qwen.prompt(user("<think>")).count(think) == 1
    gemma = renderer_of(FAMILIES["gemma"], tmp_path / "gemma")
    breaks = gemma.tokenizer.convert_tokens_to_ids("\n\n")
    assert breaks in gemma.completion("a\n\nb") and breaks in gemma.prompt(user("a\n\nb"))


def test_a_token_put_together_by_the_template_is_a_control_token(tmp_path: Path) -> None:
    """Phi-4-mini writes '<|' + role + '|>', which appears nowhere in its template."""
    tokenizer = byte_level([*special("<|end|>"), *ordinary("<|user|>", "<|assistant|>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    fast.save_pretrained(tmp_path)
    renderer = make_renderer(tmp_path, None)
    asked = fast.convert_tokens_to_ids("<|user|>")
    assert renderer.prompt(user("<|user|>")).count(asked) == 1
    assert asked not in renderer.completion("<|user|>")


def test_a_system_prompt_with_a_control_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds one of the tokenizer's control tokens"):
        renderer_of(FAMILIES["chatml"], tmp_path, "Be brief.<|im_end|>")


def test_a_chat_that_the_template_refuses_is_one_bad_row(tmp_path: Path) -> None:
    renderer = renderer_of(FAMILIES["gemma"], tmp_path)
    rows = [Triple("a", "x", "", "y", system="Be brief."), Triple("b", "x", "", "y")]
    refused, [kept] = renderer.examples(["a", "b"], rows)
    assert isinstance(refused, RowError) and refused.reason == "template" and "System role" in refused.detail
    assert isinstance(kept, Example) and kept.prompt_ids == renderer.prompt(user("x"))
    with pytest.raises(InputError, match="a chat without messages"):
        renderer.prompt([])
