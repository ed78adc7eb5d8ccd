"""Names of models and aliases that are refused or warned about."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from instruct_ray.config.registry_names import describe_client_problem
from instruct_ray.config.schema import RegistryConfig


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base:lora", "clients and engines cut a model name at ':'"),
        ("org/model", "MLflow splits a model name at '/'"),
        ("tiny@champion", "references split a model name at '@'"),
        ("Default", "MLflow keeps the name Default for itself"),
    ],
)
def test_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        RegistryConfig(name=name)
    assert message in str(error.value)


@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V12", "candidate", "previous"])
def test_alias_is_refused(alias: str) -> None:
    with pytest.raises(ValidationError, match=f"alias {alias}"):
        RegistryConfig(name="tiny", alias=alias)


@pytest.mark.parametrize("make", [lambda: RegistryConfig(name=3), lambda: RegistryConfig(name="x", alias=3)])
def test_value_of_another_type_keeps_its_own_message(make: Callable[[], RegistryConfig]) -> None:
    with pytest.raises(ValidationError, match="valid string"):
        make()


@pytest.mark.parametrize("name", ["my-codex", "CODEX", "gpt-5-pro-tuned", "gpt-5.6-sol", "gpt-6", "GPT-6-astra"])
def test_name_that_clients_send_elsewhere_is_described(name: str) -> None:
    problem = describe_client_problem(name)
    assert problem is not None and repr(name) in problem and "/v1/responses" in problem


@pytest.mark.parametrize("name", ["incidents", "gpt-4o-like", "gpt-5", "code-x"])
def test_other_names_are_fine(name: str) -> None:
    assert describe_client_problem(name) is None
