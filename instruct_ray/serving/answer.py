"""replica: one request -> its answer by a loaded version."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from instruct_ray.errors import InputError, one_line
from instruct_ray.inference.grammars import json_grammar
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.choices import Choice, generate_choices
from instruct_ray.serving.completion_request import CompletionRequest
from instruct_ray.serving.loaded_version import LoadedVersion
from instruct_ray.serving.rejection import RejectedRequestError
from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, RequestError
from instruct_ray.serving.tool_use import ToolUse, find_call_grammar, find_tool_use

MAX_ERROR_CHARACTERS = 300
UNSUPPORTED = "unsupported_value"

AnyRequest = ChatRequest | CompletionRequest
ReplicaMessage = AnswerStart | RequestError | ReplicaChunk


async def answer(
    loaded: LoadedVersion, request: AnyRequest, max_new_tokens: int
) -> AsyncGenerator[ReplicaMessage, None]:
    """Answer a request: yields a RequestError and ends, or an AnswerStart and then the chunks of all choices.

    Args:
        loaded: the version that answers.
        request: the request.
        max_new_tokens: limit of the endpoint.
    """
    try:
        use = find_tool_use(loaded.renderer, request) if isinstance(request, ChatRequest) else None
        prompts = _encode_prompts(loaded, request, use)
        choices = _make_choices(loaded, request, prompts, max_new_tokens, use)
    except RejectedRequestError as rejected:
        yield rejected.error
        return
    yield AnswerStart(loaded.info, sum(map(len, prompts)), len(choices))
    # Closed explicitly, so that a client that disconnects cancels its generation immediately.
    async with aclosing(generate_choices(loaded.engine, choices)) as chunks:
        async for chunk in chunks:
            yield chunk


def _make_choices(
    loaded: LoadedVersion, request: AnyRequest, prompts: list[list[int]], max_new_tokens: int, use: ToolUse | None
) -> list[Choice]:
    """The completions to generate, `request.n` for each prompt.

    Raises:
        RejectedRequestError: no answer can have the format that is asked for.
    """
    tokenizer, grammar = loaded.renderer.tokenizer.backend_tokenizer, _find_grammar(loaded, request, use)
    choices: list[Choice] = []
    for prompt_ids in prompts:
        limit = min(loaded.info.max_context - len(prompt_ids), max_new_tokens)
        for choice in range(request.n):
            sampling = request.sampling_params(limit, choice, grammar)
            stop_strings, is_first = request.stop_strings, choice == 0
            choices.append(Choice(len(choices), prompt_ids, sampling, tokenizer, stop_strings, use, is_first=is_first))
    return choices


def _find_grammar(loaded: LoadedVersion, request: AnyRequest, use: ToolUse | None) -> str | None:
    """What the answer must be; None if it is free."""
    if use is not None and isinstance(request, ChatRequest):
        if loaded.label_grammar is not None:
            raise RejectedRequestError(400, "every answer of this endpoint is a label", "tools", UNSUPPORTED)
        return find_call_grammar(use, request)
    if loaded.label_grammar is not None and request.stop_strings:
        raise RejectedRequestError(
            400, "every answer of this endpoint is a label, which must not be cut", "stop", UNSUPPORTED
        )
    schema = request.response_format.schema_of_answer if isinstance(request, ChatRequest) else None
    if schema is None or not isinstance(request, ChatRequest):
        return loaded.label_grammar
    if loaded.label_grammar is not None:
        raise RejectedRequestError(400, "every answer of this endpoint is a label", request.format_field, UNSUPPORTED)
    try:
        return json_grammar(loaded.renderer.contract, schema)
    except ValueError as error:
        message = one_line(error, MAX_ERROR_CHARACTERS)
        raise RejectedRequestError(400, message, request.format_field, "invalid_json_schema") from None


def _encode_prompts(loaded: LoadedVersion, request: AnyRequest, use: ToolUse | None) -> list[list[int]]:
    """The prompts of a request as token ids: one for a chat.

    Raises:
        RejectedRequestError: the request can't be answered.
    """
    info, vocab_size = loaded.info, loaded.engine.vocab_size
    if unknown := [token_id for token_id, _ in request.biased_tokens if token_id >= vocab_size]:
        message = f"logit_bias: the model has no token {unknown[0]}; it has {vocab_size}"
        raise RejectedRequestError(400, message, "logit_bias", "invalid_token_id")
    renderer, param = loaded.renderer, request.prompt_field
    try:
        if isinstance(request, ChatRequest):
            messages, tools = [message.to_message() for message in request.messages], None if use is None else use.tools
            prompts = [renderer.prompt(messages, tools)]
        else:
            prompts = [renderer.continued_text(text) for text in request.prompts]
    except InputError as error:
        raise RejectedRequestError(400, str(error), param, f"invalid_{param}") from None
    for prompt in prompts:
        # At least one token, if the client set no limit.
        num_prompt, num_completion = len(prompt), request.max_tokens_requested or 1
        if num_prompt + num_completion > info.max_context:
            message = (
                f"This model's maximum context length is {info.max_context} tokens. However, you requested "
                f"{num_prompt + num_completion} tokens ({num_prompt} in the {param}, {num_completion} in the "
                f"completion). Please reduce the length of the {param} or completion."
            )
            raise RejectedRequestError(400, message, param, "context_length_exceeded")
    return prompts
