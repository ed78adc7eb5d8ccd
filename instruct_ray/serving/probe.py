"""gateway: a probe of the engine: whether it generates a token."""

import asyncio
import logging

from fastapi.responses import JSONResponse
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from instruct_ray.serving.answer_reader import AnswerFailedError, AnswerReader
from instruct_ray.serving.chat_request import ChatRequest
from instruct_ray.serving.errors import build_error, error_response
from instruct_ray.serving.replica_messages import AnswerStart, RequestError
from instruct_ray.serving.served_version import NoReplicaError, ServedVersion

logger = logging.getLogger(__name__)

PROBE_MESSAGES = [{"role": "user", "content": "Hello"}]
PROBE_SECONDS = 30.0


async def generate_probe_token(version: ServedVersion, streaming_replica: DeploymentHandle) -> JSONResponse:
    """Ask a replica for one token; the response has the status 503 if there is none within PROBE_SECONDS.

    An endpoint without replicas, because it has no requests, stays so.
    """
    try:
        if await version.is_idle():
            return JSONResponse({"status": "idle"})
        info = await version.get()
        body = ChatRequest.model_validate({"model": info.name, "messages": PROBE_MESSAGES, "max_tokens": 1})
        deadline = asyncio.get_running_loop().time() + PROBE_SECONDS
        reader = AnswerReader(streaming_replica.answer.remote(body), deadline)
        try:
            start = await reader.read_start()
            if isinstance(start, AnswerStart):
                async for _ in reader.read_chunks():
                    pass
        finally:
            reader.close()
    except BackPressureError:
        # It has so much to do because it works.
        return JSONResponse({"status": "busy"})
    except (AnswerFailedError, NoReplicaError, TimeoutError, RayError, RayServeException) as error:
        logger.error("the probe failed: %s", error)
        return error_response(503, build_error("no token was generated", type="server_error"))
    if isinstance(start, RequestError):
        return error_response(503, build_error(f"no token was generated: {start.message}", type="server_error"))
    return JSONResponse({"status": "ok", "model": info.name, "version": info.version})
