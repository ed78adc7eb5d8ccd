"""gateway: which version the replicas serve, asked at most once a second, and remembered while none has room."""

import asyncio
import time

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaState

from instruct_ray.errors import one_line
from instruct_ray.serving.replica_messages import ModelInfo

FRESH_SECONDS = 1.0
# How long a replica may take to say it: its requests are answered one after another.
MAX_WAIT_SECONDS = 2.0
# How long what it said last holds while no replica has room.
MAX_AGE_SECONDS = 60.0


class NoReplicaError(RuntimeError):
    """No replica responds."""


class ServedVersion:
    """Asks the replicas for their version."""

    def __init__(self, replica: DeploymentHandle, *, scales_to_zero: bool) -> None:
        """Ask nothing yet.

        Args:
            replica: the handle of the replicas.
            scales_to_zero: whether there may be none; asking would start one.
        """
        self._replica, self._scales_to_zero = replica, scales_to_zero
        self._info: ModelInfo | None = None
        self._asked_at = 0.0

    async def get(self) -> ModelInfo:
        """Return the version.

        Raises:
            NoReplicaError: no replica has said it for MAX_AGE_SECONDS.
        """
        age = time.monotonic() - self._asked_at
        if self._info is not None and age < FRESH_SECONDS:
            return self._info
        if self._info is not None and await self.is_idle():
            self._asked_at = time.monotonic()
            return self._info
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                info: ModelInfo = await self._replica.info.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            if self._info is None or age > MAX_AGE_SECONDS:
                raise NoReplicaError(one_line(error)) from error
            return self._info
        self._info, self._asked_at = info, time.monotonic()
        return info

    async def is_idle(self) -> bool:
        """Whether there is no replica because there are no requests."""
        if not self._scales_to_zero:
            return False
        status = await asyncio.to_thread(serve.status)
        deployment = status.applications[self._replica.app_name].deployments[self._replica.deployment_name]
        # One that starts, perhaps again and again, is no idle endpoint.
        return all(state == ReplicaState.STOPPING for state, number in deployment.replica_states.items() if number)
