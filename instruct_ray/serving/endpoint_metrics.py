"""gateway: Prometheus metrics of the endpoint, and the middleware that counts requests."""

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instruct_ray.serving.access_control import ClientGoneError, route_path
from instruct_ray.serving.replica_messages import ModelInfo

SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class EndpointMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route, status and API key", "route", "status", "key")
        self.tokens = self._counter("tokens", "Tokens of answered requests", "kind", "key")
        self.answers = self._counter("answers", "Answers that were begun, by the version that gives them", "version")
        self.failed_streams = self._counter("failed_streams", "Streams that ended with an error event")
        self.running = Gauge("instruct_ray_running_requests", "Requests being answered", registry=self._registry)
        self.seconds = self._histogram("request_seconds", "Duration of requests by route", "route")
        self.first_token_seconds = self._histogram("first_token_seconds", "Time to the first part of a streamed answer")
        self._version = Gauge(
            "instruct_ray_served_version", "1 for each version that is served", ("model", "version"),
            registry=self._registry,
        )  # fmt: skip

    def render(self, info: ModelInfo | None) -> bytes:
        """The metrics in Prometheus' text format, with the versions that are served, if a replica says them."""
        self._version.clear()
        if info is not None:
            for version in info.served_models.values():
                self._version.labels(info.name, version).set(1)
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"instruct_ray_{name}", description, labels, registry=self._registry)

    def _histogram(self, name: str, description: str, *labels: str) -> Histogram:
        return Histogram(f"instruct_ray_{name}", description, labels, registry=self._registry, buckets=SECONDS_BUCKETS)


class RequestCounter:
    """ASGI middleware that counts and times requests until the end of their responses."""

    def __init__(self, app: ASGIApp, metrics: EndpointMetrics, paths: Collection[str]) -> None:
        """Count requests of `paths` apart. Others are not named: clients choose them."""
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Stays at it if the client leaves before there is a response.
        status, started = 499, time.perf_counter()

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, send_and_look)
        except ClientGoneError:
            pass
        finally:
            self._metrics.running.dec()
            path = route_path(scope)
            route = path if path in self._paths else "other"
            key = scope.get("state", {}).get("api_key")
            self._metrics.requests.labels(route, str(status), key.name if key else "").inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
