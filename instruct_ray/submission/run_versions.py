"""What the registry and the endpoints say about the versions of runs, for the list of runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from instruct_ray.errors import InputError, UnavailableError, one_line
from instruct_ray.run.frozen import read_registry_uri
from instruct_ray.run.summary import RunSummary
from instruct_ray.tracking.mlflow_client import local_registry_uri, missing_database
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

    An endpoint does not say which registry it reads, so one whose NAME/NUMBER exists in registries of several runs is
    none's either. `urls` are those of the API, `http://HOST:PORT/v1`.
    """
    served: dict[str, str] = {}
    for url in urls:
        try:
            served[_ask_version(url)] = url
        except UnavailableError as error:
            warn(str(error))
    registries: dict[str, set[str]] = {}
    for run in runs:
        if run.version in served:
            registries.setdefault(run.version, set()).add(_registry_uri(run) or run.storage)
    for version in [version for version, uris in registries.items() if len(uris) > 1]:
        warn(f"{served.pop(version)} serves {version}, which is in several registries; whose it is is not shown")
    return [run.model_copy(update={"endpoint": served.get(run.version)}) if run.version else run for run in runs]


def _registry_uri(run: RunSummary) -> str | None:
    """The registry that the run was registered in; None if it is a database that is not there."""
    storage = Path(run.storage)
    uri = read_registry_uri(storage / run.name) or local_registry_uri(storage)
    return uri if missing_database(uri) is None else None


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
