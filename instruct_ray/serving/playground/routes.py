"""gateway: the routes of the playground. Its page is static and open; what it asks for needs a key like any route."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from instruct_ray.config.serving import ServingConfig
from instruct_ray.errors import one_line
from instruct_ray.files import DISK_FULL_ERRORS
from instruct_ray.serving.api_keys import ApiKey
from instruct_ray.serving.errors import build_error, error_response
from instruct_ray.serving.playground.page import PAGE_FILES, add_page
from instruct_ray.serving.playground.triple_request import TripleRequest
from instruct_ray.serving.playground.triples_file import TriplesFile, TriplesFileFullError

logger = logging.getLogger(__name__)

SaveRoute = Callable[[TripleRequest, Request], Coroutine[None, None, JSONResponse]]


def add_playground(api: FastAPI, serving: ServingConfig) -> frozenset[str]:
    """Add the playground to an application, if it is wanted.

    Returns the paths of its page, which holds no data and is for everyone.

    Raises:
        InputError: serving.feedback_file can't be written.
    """
    if not serving.playground:
        return frozenset()
    settings = {"saves_triples": serving.feedback_file is not None, "max_new_tokens": serving.max_new_tokens}

    async def get_settings() -> dict[str, Any]:
        """Return what the page has to know of the configuration."""
        return settings

    add_page(api)
    api.get("/playground/settings")(get_settings)
    if serving.feedback_file is not None:
        save = _make_save_route(TriplesFile(serving.feedback_file, serving.max_feedback_bytes))
        api.post("/playground/triples", status_code=201, response_model=None)(save)
    return frozenset(PAGE_FILES)


def _make_save_route(file: TriplesFile) -> SaveRoute:
    async def save_triple(body: TripleRequest, request: Request) -> JSONResponse:
        """Append a triple to the file; the response comes when it is on the disk."""
        key: ApiKey | None = request.state.api_key
        row = body.to_row(key.name if key else None)
        try:
            # In a thread: a network disk may take long.
            await asyncio.to_thread(file.append, row)
        except TriplesFileFullError as error:
            logger.error("a triple could not be saved: %s", error)
            message = "the triple is not saved: serving.feedback_file has reached serving.max_feedback_bytes"
            return error_response(507, build_error(message, type="server_error", code="storage_full"))
        except OSError as error:
            logger.error("a triple could not be saved: %s", one_line(error))
            if error.errno in DISK_FULL_ERRORS:
                message = "the triple is not saved: the disk of serving.feedback_file is full"
                return error_response(507, build_error(message, type="server_error", code="storage_full"))
            message = "the triple is not saved: serving.feedback_file can't be written"
            return error_response(500, build_error(message, type="server_error", code="storage_failed"))
        return JSONResponse({"id": row["id"]}, 201)

    return save_triple
