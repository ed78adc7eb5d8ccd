"""`instruct-ray new-key`: makes an API key for an endpoint."""

import yaml
from pydantic import ValidationError

from instruct_ray.errors import InputError
from instruct_ray.serving.api_keys import ApiKey, hash_key, make_key


def run_new_key(name: str) -> None:
    """Print a new key, which is stored nowhere, and the entry for serving.api_keys_file, which holds only its hash.

    Raises:
        InputError: the name is not valid.
    """
    key = make_key()
    try:
        entry = ApiKey(name=name, sha256=hash_key(key))
    except ValidationError as error:
        raise InputError(f"NAME: {error.errors()[0]['msg']}") from None
    print(f"key, shown only now: {key}")
    print("entry for serving.api_keys_file, with limits if you like, such as requests_per_minute: 60:")
    print(yaml.safe_dump([entry.model_dump(exclude_none=True)], sort_keys=False), end="")
