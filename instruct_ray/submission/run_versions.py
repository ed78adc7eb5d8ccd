"""What the registry and the endpoints say about the versions of runs, for the list of runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.run.frozen import read_registry_uri
from instruct_ray.run.summary import RunSummary
from instruct_ray.tracking.mlflow_client import local_database, local_registry_uri
from instruct_ray.tracking.registry_reader import RegistryReader

HEALTH_SECONDS = 5.0
API_PATH = "/v1"

Warn = Callable[[str], None]


def add_aliases(runs: Sequence[RunSummary], warn: Warn) -> list[RunSummary]:
    """Add the aliases of the runs' versions. Of a registry that can't be read there are none, and `warn` says why."""
    found = [(uri, *run.version.split("/")) if run.version and (uri := _registry_uri(run)) else None for run in runs]
    # By registry and model: NUMBER -> aliases.
    aliases: dict[tuple[str, str], dict[str, list[str]]] = {}
    for uri in sorted({place[0] for place in found if place}):
        names = sorted({place[1] for place in found if place and place[0] == uri})
        try:
            reader = RegistryReader(uri)
            aliases |= {(uri, name): _by_number(reader.aliases(name)) for name in names}
        except (InputError, UnavailableError) as error:
            warn(f"aliases are not shown: {error}")
    return [
        run.model_copy(update={"aliases": aliases.get((place[0], place[1]), {}).get(place[2], [])}) if place else run
        for run, place in zip(runs, found, strict=True)
    ]


def add_endpoints(runs: Sequence[RunSummary], urls: Sequence[str], warn: Warn) -> list[RunSummary]:
    """Add the endpoint that serves a run's version. One that does not say what it serves is none's, and `warn` is told.

    `urls` are those of the API, `http://HOST:PORT/v1`.
    """
    served: dict[str, str] = {}
    for url in urls:
        try:
            served[_ask_version(url)] = url
        except UnavailableError as error:
            warn(str(error))
    return [run.model_copy(update={"endpoint": served.get(run.version)}) if run.version else run for run in runs]


def _registry_uri(run: RunSummary) -> str | None:
    """The registry that the run was registered in; None if it is a database that is not there."""
    storage = Path(run.storage)
    if uri := read_registry_uri(storage / run.name):
        return uri
    # Connecting would create it.
    return local_registry_uri(storage) if local_database(storage).is_file() else None


def _by_number(aliases: dict[str, str]) -> dict[str, list[str]]:
    return {number: sorted(a for a, other in aliases.items() if other == number) for number in aliases.values()}


def _ask_version(url: str) -> str:
    """The version that an endpoint serves, as NAME/NUMBER. The route needs no key.

    Raises:
        UnavailableError: it does not say.
    """
    try:
        response = httpx.get(f"{url.rstrip('/').removesuffix(API_PATH)}/health", timeout=HEALTH_SECONDS)
    # A host name that can't be encoded is a UnicodeError.
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise UnavailableError(f"the endpoint {url} can't be reached ({one_line(error)})") from None
    try:
        values = response.json()
    except ValueError:
        values = {}
    if response.status_code != httpx.codes.OK or not isinstance(values, dict) or not {"model", "version"} <= {*values}:
        raise UnavailableError(
            f"the endpoint {url} does not say which version it serves (HTTP status {response.status_code})"
        )
    return f"{values['model']}/{values['version']}"
