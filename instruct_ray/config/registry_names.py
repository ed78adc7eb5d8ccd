"""Names of models and aliases: those that MLflow keeps for itself, and those that OpenAI clients send elsewhere. Pure.

The tables of clients' names are those of langchain-openai 1.7 (`_model_prefers_responses_api`, and the prefix `gpt-6`).
"""

import re

# Set beside `registry.alias`: on a version that was not promoted yet, and on the version that a rollback returns to.
CANDIDATE_ALIAS = "candidate"
PREVIOUS_ALIAS = "previous"
# Of `serving.also_serve`: the base model of the version that is served.
BASE_MODEL = "base"
# MLflow's experiment 0, whose artifacts go to the working directory.
DEFAULT_EXPERIMENT = "Default"
ALIAS_OR_NUMBER = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}|[1-9][0-9]*")
VERSION_ALIAS = re.compile(r"v\d+", re.IGNORECASE)
RESPONSES_PREFIXES = ("gpt-5-pro", "gpt-5.2-pro", "gpt-5.4-pro", "gpt-5.5-pro", "gpt-5.6-sol", "gpt-6")


def check_model_name(name: object) -> object:
    """Return the name unchanged.

    Raises:
        ValueError: the name has a character that references and clients read as a separator, or MLflow keeps it.
    """
    if not isinstance(name, str):
        return name
    for character, reader in ((":", "clients and engines cut"), ("/", "MLflow splits"), ("@", "references split")):
        if character in name:
            raise ValueError(f"{reader} a model name at {character!r}; use letters, digits, '.', '_' and '-'")
    if name == DEFAULT_EXPERIMENT:
        raise ValueError(f"MLflow keeps the name {DEFAULT_EXPERIMENT} for itself; use another name")
    return name


def check_alias(alias: object) -> object:
    """Return the alias unchanged.

    Raises:
        ValueError: MLflow reserves the alias, or the gate sets it.
    """
    if not isinstance(alias, str):
        return alias
    if alias.lower() == "latest" or VERSION_ALIAS.fullmatch(alias):
        raise ValueError(f"MLflow reserves the alias {alias}; use another one, such as champion")
    if alias in (CANDIDATE_ALIAS, PREVIOUS_ALIAS):
        raise ValueError(f"the alias {alias} is set by the gate; use another one, such as champion")
    return alias


def check_further_model(model: object) -> object:
    """Return an entry of `serving.also_serve` as text.

    Raises:
        ValueError: it is no alias, number of a version or `base`, or MLflow reserves the alias.
    """
    text = str(model) if isinstance(model, int) and not isinstance(model, bool) else model
    if not isinstance(text, str):
        return model
    if not ALIAS_OR_NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no model; write an alias such as previous, the number of a version, or base")
    if text.lower() == "latest" or VERSION_ALIAS.fullmatch(text):
        raise ValueError(f"MLflow reserves the alias {text}; write the number of a version, such as 3")
    return text


def describe_client_problem(name: str) -> str | None:
    """Say what clients of OpenAI do with a model name that they take for one of OpenAI's; None if they do nothing."""
    lower = name.lower()
    if "codex" not in lower and not lower.startswith(RESPONSES_PREFIXES):
        return None
    return (
        f"registry.name: LangChain sends requests for a model named {name!r} to /v1/responses, which has no stop, seed "
        "and n; use another name, or ChatOpenAI(use_responses_api=False)"
    )
