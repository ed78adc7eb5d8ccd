"""A tiny model that is tuned here on chats with a calculator, and its endpoint in this process, over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.example import IGNORE_INDEX, Example
from instruct_ray.data.rendering.derive_contract import derive_renderer
from instruct_ray.data.rendering.renderer import Renderer
from instruct_ray.data.sources.records import RowError
from instruct_ray.inference.engines import create_engine
from instruct_ray.serving.gateway import Gateway
from instruct_ray.serving.loaded_version import LoadedVersion
from instruct_ray.serving.replica_messages import VersionInfo
from tests.data.rendering.families import TEMPLATES
from tests.data.sources.chats import parse
from tests.serving.local_replica import LocalReplica

MARKS = ["<tool_call>", "</tool_call>"]
NUM_STEPS, LEARNING_RATE = 120, 4e-3
QUESTIONS = (("What is 2 + 3?", 2, "+", 3), ("Multiply 4 by 5.", 4, "*", 5), ("Take 1 from 9.", 9, "-", 1))


@tool
def calculate(a: int, operator: Literal["+", "-", "*"], b: int) -> int:
    """Calculate with two whole numbers."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def make_definition(function: Any = calculate) -> dict[str, Any]:
    """The function definition that LangChain sends for a tool."""
    definition: dict[str, Any] = convert_to_openai_tool(function)
    return definition


TOOL = make_definition()
ADD_QUESTION = {"role": "user", "content": "What is 2 + 3?"}
ADD_ARGUMENTS = {"a": 2, "operator": "+", "b": 3}


def make_rows(definition: dict[str, Any]) -> list[dict[str, Any]]:
    """Chats with one call each, and some with two calls at once or none."""
    rows = []
    for question, a, operator, b in QUESTIONS:
        arguments = {"a": a, "operator": operator, "b": b}
        result = str(calculate.invoke(arguments))
        call = {"id": "call_1", "type": "function", "function": {"name": "calculate", "arguments": arguments}}
        rows.append(
            [
                {"role": "user", "content": question},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": result},
                {"role": "assistant", "content": f"It is {result}."},
            ]
        )
    functions = [
        {"name": "calculate", "arguments": json.dumps({"a": a, "operator": "+", "b": 4})} for a in (1, 2)
    ]  # fmt: skip
    calls = [{"id": f"c{n}", "type": "function", "function": function} for n, function in enumerate(functions)]
    both = {"role": "assistant", "content": "I add twice.", "tool_calls": calls}
    rows.append([{"role": "user", "content": "Both: 1 + 4 and 2 + 4?"}, both])
    rows.append([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi, how are you?"}])
    return [{"messages": messages, "tools": [definition]} for messages in rows]


def make_tokenizer(texts: list[str], *, are_special: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a template that writes tools; its marks of calls are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(MARKS if are_special else [])],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if not are_special:
        tokenizer.add_tokens(MARKS)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (TEMPLATES / "hermes.jinja").read_text()
    return fast


def tune(folder: Path, definition: dict[str, Any], *, are_special: bool = False) -> Renderer:
    """Tune a tiny Llama on the rows, and save it; returns the renderer of its contract."""
    rows = make_rows(definition)
    texts = [json.dumps(definition)] + [json.dumps(row["messages"]) for row in rows]
    tokenizer = make_tokenizer(texts, are_special=are_special)
    tokenizer.save_pretrained(folder)
    renderer = derive_renderer(folder, None)
    triples = [renderer.clean(parse(row)) for row in rows]
    examples: list[Example] = []
    for encoded in renderer.examples([str(number) for number in range(len(rows))], triples):
        assert not isinstance(encoded, RowError), encoded
        examples += encoded
    model = _train(examples, len(tokenizer), renderer.contract.pad_token_id)
    model.save_pretrained(folder)
    return renderer


def _train(examples: list[Example], vocab_size: int, pad_token_id: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
        )
    )
    pairs = [example.inputs_and_labels() for example in examples]
    longest = max(len(inputs) for inputs, _ in pairs)
    inputs_BT = torch.full((len(pairs), longest), pad_token_id)
    labels_BT = torch.full((len(pairs), longest), IGNORE_INDEX)
    for row, (inputs, labels) in enumerate(pairs):
        inputs_BT[row, : len(inputs)] = torch.from_numpy(inputs)
        labels_BT[row, : len(labels)] = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 10, 2 * (1 - step / NUM_STEPS))
        hidden_BTD = model.model(inputs_BT).last_hidden_state
        is_target_BT = labels_BT != IGNORE_INDEX
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden_BTD[is_target_BT]), labels_BT[is_target_BT])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@contextmanager
def serve(folder: Path, renderer: Renderer, name: str) -> Iterator[str]:
    """Serve a tuned model with the real gateway and engine, without Ray; yields the address of its API."""
    serving = ServingConfig(max_new_tokens=200)
    info = VersionInfo(
        name=name, version="1", contract_digest=renderer.contract.digest, data_digest=None, max_context=1024,
        layout=renderer.contract.layout,
    )  # fmt: skip
    engine = create_engine(folder, renderer.contract, serving)
    replica: Any = LocalReplica(LoadedVersion(info, renderer, engine), "champion", max_new_tokens=200)
    api = Gateway(replica, serving).__serve_build_asgi_app__()
    config = uvicorn.Config(api, "127.0.0.1", 0, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        engine.close()
