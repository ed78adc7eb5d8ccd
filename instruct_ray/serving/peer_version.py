"""replica: which version the other replicas serve, asked by one that starts.

During a canary they still serve the old version, or have rejected the new one. A replica that started with the version
under the alias would give it all of its requests.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ReplicaState

from instruct_ray.errors import one_line
from instruct_ray.serving.replica_messages import ModelInfo

logger = logging.getLogger(__name__)

# A replica that is busy answers later; then the one that starts does not wait for it.
MAX_WAIT_SECONDS = 5.0


def find_peer_version(name: str) -> str | None:
    """The number of the version of a model that a running replica of this deployment serves.

    None if there is no such replica, if it does not respond, or outside of Ray Serve.
    """
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return None
    with ThreadPoolExecutor(1) as pool:
        # In a thread: replicas are made in an event loop, which must not be waited in.
        info = pool.submit(_ask, context.app_name, context.deployment).result()
    return info.version if info is not None and info.name == name else None


def _ask(app_name: str, deployment_name: str) -> ModelInfo | None:
    try:
        deployment = serve.status().applications[app_name].deployments[deployment_name]
        if not deployment.replica_states.get(ReplicaState.RUNNING):
            return None
        handle = serve.get_deployment_handle(deployment_name, app_name)
        info: ModelInfo = handle.info.remote().result(timeout_s=MAX_WAIT_SECONDS)
    except (KeyError, TimeoutError, RayError, RayServeException) as error:
        logger.warning("no other replica says which version it serves: %s", one_line(error))
        return None
    return info
