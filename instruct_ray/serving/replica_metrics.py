"""replica: Prometheus metrics of one replica, through the metrics agent that Ray runs on each node."""

from ray.serve import metrics

from instruct_ray.serving.served_models import ServedModels

# Ray's agents forget a gauge that is not set again within two of their report intervals, of 1 s at least. So a version
# that is no longer served disappears.
EXPORT_SECONDS = 1.0


class ReplicaMetrics:
    """What a replica serves, and whether it can. Serve adds the labels deployment, replica and application."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._version = metrics.Gauge(
            "instruct_ray_served_version", "1 for each version that is served", ("model", "version")
        )
        self._is_alive = metrics.Gauge("instruct_ray_engine_alive", "0 once an engine has died")
        self._not_followed = metrics.Gauge(
            "instruct_ray_version_not_followed", "1 while another version than that under the alias is served"
        )

    def set_gauges(self) -> None:
        """Set all gauges."""
        info = self._models.info
        for version in set(info.served_models.values()):
            self._version.set(1, {"model": info.name, "version": version})
        self._is_alive.set(int(self._models.is_alive), {})
        self._not_followed.set(int(info.not_followed is not None), {})
