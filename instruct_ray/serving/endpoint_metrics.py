"""gateway: Prometheus metrics of the endpoint, and the middleware that counts requests.

Every value is recorded twice: for the metrics agents of Ray, where the Prometheus of a cluster finds all processes, and
for `/metrics`, which serves those of this gateway alone.
"""

import time
from collections.abc import Collection

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from ray.serve import metrics as ray_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instruct_ray.serving.access_control import ClientGoneError, route_path
from instruct_ray.serving.replica_messages import ModelInfo

PREFIX = "instruct_ray_"
SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counter:
    """A counter in both places, with the methods of Prometheus' client."""

    def __init__(self, registry: CollectorRegistry, name: str, description: str, *labels: str) -> None:
        self._labels = labels
        self._own = prometheus_client.Counter(PREFIX + name, description, labels, registry=registry)
        self._ray = ray_metrics.Counter(PREFIX + name, description, labels)

    def labels(self, *values: str) -> "CounterSeries":
        """The series whose labels have these values."""
        own = self._own.labels(*values) if values else self._own
        return CounterSeries(own, self._ray, dict(zip(self._labels, values, strict=True)))

    def inc(self) -> None:
        """Increase a counter without labels by 1."""
        self.labels().inc()


class CounterSeries:
    """One series of a counter in both places."""

    def __init__(self, own: prometheus_client.Counter, ray: ray_metrics.Counter, tags: dict[str, str]) -> None:
        self._own, self._ray, self._tags = own, ray, tags

    def inc(self, amount: int = 1) -> None:
        """Increase it."""
        self._own.inc(amount)
        # Ray refuses an increment by 0.
        if amount:
            self._ray.inc(amount, self._tags)


class Histogram:
    """A histogram of seconds in both places. Ray's has only the counts of the buckets right, not the sum."""

    def __init__(self, registry: CollectorRegistry, name: str, description: str, *labels: str) -> None:
        self._labels = labels
        self._own = prometheus_client.Histogram(
            PREFIX + name, description, labels, registry=registry, buckets=SECONDS_BUCKETS
        )
        self._ray = ray_metrics.Histogram(PREFIX + name, description, list(SECONDS_BUCKETS), labels)

    def labels(self, *values: str) -> "HistogramSeries":
        """The series whose labels have these values."""
        own = self._own.labels(*values) if values else self._own
        return HistogramSeries(own, self._ray, dict(zip(self._labels, values, strict=True)))

    def observe(self, seconds: float) -> None:
        """Add a duration to a histogram without labels."""
        self.labels().observe(seconds)


class HistogramSeries:
    """One series of a histogram in both places."""

    def __init__(self, own: prometheus_client.Histogram, ray: ray_metrics.Histogram, tags: dict[str, str]) -> None:
        self._own, self._ray, self._tags = own, ray, tags

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self._own.observe(seconds)
        self._ray.observe(seconds, self._tags)


class EndpointMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(registry, "requests", "Requests by route, status and API key", "route", "status", "key")
        self.tokens = Counter(registry, "tokens", "Tokens of answered requests", "kind", "key")
        self.answers = Counter(registry, "answers", "Answers begun, by the version that gives them", "version")
        self.failed_streams = Counter(registry, "failed_streams", "Streams that ended with an error event")
        self.refused = Counter(registry, "refused_requests", "Requests refused because the queue was full")
        self.seconds = Histogram(registry, "request_seconds", "Duration of requests by route", "route")
        self.first_token_seconds = Histogram(
            registry, "first_token_seconds", "Time to the first part of a streamed answer"
        )
        # Of these two Ray has its own, and the replicas theirs.
        self.running = prometheus_client.Gauge(
            f"{PREFIX}running_requests", "Requests being answered", registry=registry
        )
        self._version = prometheus_client.Gauge(
            f"{PREFIX}served_version", "1 for each version that is served", ("model", "version"), registry=registry
        )

    def render(self, info: ModelInfo | None) -> bytes:
        """The metrics in Prometheus' text format, with the versions that are served, if a replica says them."""
        self._version.clear()
        if info is not None:
            for version in info.served_models.values():
                self._version.labels(info.name, version).set(1)
        return generate_latest(self._registry)


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
