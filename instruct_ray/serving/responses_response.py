"""The responses of OpenAI's responses API: output items, which are a message with one text and calls of functions."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from instruct_ray.serving.replica_messages import AnswerStart, ReplicaChunk, TokenCounts, ToolCall
from instruct_ray.serving.response_builder import Body, format_event, join_text
from instruct_ray.serving.responses_items import ResponsesTool
from instruct_ray.serving.responses_request import ResponsesRequest

# Where the text is in a response.
TEXT_PLACE = {"output_index": 0, "content_index": 0}


class ResponsesResponse:
    """Builds one response, either its body or the events of its stream."""

    def __init__(self, request: ResponsesRequest, start: AnswerStart) -> None:
        self._request, self._start = request, start
        self._id, self._item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        # Of a stream: events so far, the text so far, the calls, and why it ended.
        self._num_events, self._text, self._finish_reason = 0, "", "stop"
        self._calls: tuple[ToolCall, ...] = ()
        self._has_message = False

    def body(self, chunks: Sequence[Sequence[ReplicaChunk]], counts: TokenCounts) -> Body:
        """Build the body of a response that is not streamed from the chunks of its only choice."""
        [of_choice] = chunks
        self._text, self._finish_reason = join_text(of_choice), of_choice[-1].finish_reason or "stop"
        self._calls = of_choice[-1].tool_calls
        return self._finished(counts)

    def opening_events(self) -> list[str]:
        """The response begins, and its message if it has one for sure."""
        response = self._response("in_progress", [])
        events = [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]
        return events if self._request.tools else events + self._open_message()

    def chunk_events(self, chunk: ReplicaChunk) -> list[str]:
        """New text."""
        self._text += chunk.text
        self._calls += chunk.tool_calls
        self._finish_reason = chunk.finish_reason or self._finish_reason
        if not chunk.text:
            return []
        opening = [] if self._has_message else self._open_message()
        values = {"item_id": self._item_id, **TEXT_PLACE, "delta": chunk.text, "logprobs": []}
        return [*opening, self._event("response.output_text.delta", **values)]

    def closing_events(self, counts: TokenCounts) -> list[str]:
        """Text and message end, the calls follow, and the response ends."""
        events = [] if self._has_message or self._calls else self._open_message()
        response = self._finished(counts)
        for index, item in enumerate(response["output"]):
            events += self._end_call(index, item) if item["type"] == "function_call" else self._end_message(item)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def error_event(self, body: Body) -> str:
        """The last event of a stream that failed."""
        error = body["error"]
        return self._event("error", code=error["code"] or error["type"], message=error["message"], param=None)

    def _open_message(self) -> list[str]:
        self._has_message = True
        item = self._item("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", item_id=self._item_id, **TEXT_PLACE, part=_text_part("")),
        ]

    def _end_message(self, item: Body) -> list[str]:
        place = {"item_id": self._item_id, **TEXT_PLACE}
        return [
            self._event("response.output_text.done", **place, text=self._text, logprobs=[]),
            self._event("response.content_part.done", **place, part=_text_part(self._text)),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _end_call(self, index: int, item: Body) -> list[str]:
        """A call, which is sent as a whole."""
        place = {"item_id": item["id"], "output_index": index}
        arguments = item["arguments"]
        begun = {**item, "status": "in_progress", "arguments": ""}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _finished(self, counts: TokenCounts) -> Body:
        status = "incomplete" if self._finish_reason == "length" else "completed"
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = {
            "input_tokens": counts.num_prompt,
            "input_tokens_details": {"cached_tokens": counts.num_cached},
            "output_tokens": counts.num_completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts.num_prompt + counts.num_completion,
        }
        has_message = bool(self._text) or not self._calls
        output = [self._item(status, [_text_part(self._text)])] if has_message else []
        output += [_call_item(call) for call in self._calls]
        return {**self._response(status, output), "incomplete_details": details, "usage": usage}

    def _response(self, status: str, output: list[Body]) -> Body:
        request = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "model": request.model,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": request.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": request.model_dump(include={"tool_choice"})["tool_choice"],
            "tools": [_echo_tool(tool) for tool in request.tools],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
            "system_fingerprint": self._start.info.fingerprint,
        }

    def _item(self, status: str, content: list[Body]) -> Body:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _event(self, name: str, /, **values: Any) -> str:
        body = {"type": name, "sequence_number": self._num_events, **values}
        self._num_events += 1
        return format_event(body, name)


def _call_item(call: ToolCall) -> Body:
    # Its id follows from that of the call, so that all events of a stream have the same.
    return {
        "id": f"fc_{call.id.removeprefix('call_')}",
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _echo_tool(tool: ResponsesTool) -> Body:
    return {**tool.model_dump(), "strict": bool(tool.strict)}


def _text_part(text: str) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
