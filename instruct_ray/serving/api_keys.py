"""gateway: the API keys of an endpoint. They are named, stored as hashes, and read again when their file changes."""

import hashlib
import logging
import os
import secrets
import time
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from instruct_ray.errors import InputError, one_line

KEYS_VARIABLE = "INSTRUCT_RAY_API_KEYS"
# How often the file is looked at, in seconds.
CHECK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class ApiKey(BaseModel):
    """An entry of the key file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")
    """Who uses it; for logs and metrics."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex digest of the key."""
    requests_per_minute: PositiveInt | None = None
    """Limit of its requests; null sets none."""
    tokens_per_minute: PositiveInt | None = None
    """Limit of its tokens, prompts and completions together; null sets none."""


def make_key() -> str:
    """Make a new key: 256 random bits."""
    return f"sk-instruct-ray-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """The digest by which a key is stored. Keys are random, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def parse_keys(text: str, source: str) -> dict[str, ApiKey]:
    """Parse a list of keys in YAML; returns them by their digest.

    Raises:
        InputError: it is not such a list, or two entries have the same name or key; names the source and the entry.
    """
    try:
        keys = TypeAdapter(list[ApiKey]).validate_python(yaml.safe_load(text), strict=True)
    except yaml.MarkedYAMLError as error:
        # Without the text of the line, which may be a key.
        place = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise InputError(f"{source}: not valid YAML{place}: {error.problem}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise InputError(f"{source}: {place}: {problem['msg']}; needs a list of name and sha256") from None
    # Bytes that YAML does not allow, a date that does not exist, lists in lists without end.
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{source}: not valid YAML") from None
    for field in ("name", "sha256"):
        values = [str(vars(key)[field]) for key in keys]
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise InputError(f"{source}: {field} {repeated[0]} stands there twice")
    return {key.sha256: key for key in keys}


class ApiKeys:
    """The keys of one endpoint."""

    def __init__(self, file: Path | None) -> None:
        """Load them from the file or, if that is None, from the environment.

        Raises:
            InputError: the file can't be read or is invalid.
        """
        self._file = file
        self._file_state = (0, 0)
        self._check_due = 0.0
        self._keys: dict[str, ApiKey] = {}
        text = os.environ.get(KEYS_VARIABLE)
        self.are_required = file is not None or text is not None
        """Whether requests need a key. With an empty list no key is valid, and every request is refused."""
        if file is not None:
            self._read(file)
        elif text is not None:
            self._keys = parse_keys(text, KEYS_VARIABLE)

    def find(self, key: str) -> ApiKey | None:
        """Return the entry of a key; None if it is unknown."""
        if self._file is not None and time.monotonic() >= self._check_due:
            self._read_if_changed(self._file)
        return self._keys.get(hash_key(key))

    def _read_if_changed(self, file: Path) -> None:
        """Read the file again. One that is invalid or missing changes nothing: the keys before go on."""
        self._check_due = time.monotonic() + CHECK_SECONDS
        try:
            if _file_state(file) != self._file_state:
                self._read(file)
                logger.info("%s: %d API keys", file, len(self._keys))
        except (OSError, InputError) as error:
            logger.warning("the API keys stay as they are: %s", one_line(error))

    def _read(self, file: Path) -> None:
        try:
            # Before its content: a change in between is found at the next look.
            state = _file_state(file)
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"serving.api_keys_file: {file} can't be read ({one_line(error)})") from None
        # Kept if the content is invalid too: it is reported once.
        self._file_state = state
        self._keys = parse_keys(text, str(file))


def _file_state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_ino
