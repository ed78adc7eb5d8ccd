"""An endpoint of OpenAI's chat completions on this machine, which answers as it is told and counts its requests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (status, body, headers)
Reply = tuple[int, dict[str, Any], dict[str, str]]


class FakeRival:
    """The requests that an endpoint got, and its address."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.base_url = ""
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any], key: str | None) -> Reply:
        """Record a request and make its reply."""
        with self._lock:
            self.requests.append(body)
            self.keys.add(key)
            number = sum(request == body for request in self.requests)
        return self.reply(body, number)


def completion(text: str, **message: Any) -> Reply:
    """A reply with an answer."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}, {}


@contextmanager
def serve_rival(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[FakeRival]:
    """Serve replies made from the body of a request and how often it came."""
    rival = FakeRival(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, values, headers = rival.answer(body, self.headers["Authorization"])
            content = json.dumps(values).encode()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    rival.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield rival
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
