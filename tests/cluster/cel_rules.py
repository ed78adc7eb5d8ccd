"""The CEL rules of resource definitions (x-kubernetes-validations), which the API server evaluates, too."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cel

RULES = "x-kubernetes-validations"
# Of a rule. `messageExpression` and `optionalOldSelf` are in none.
SUPPORTED_KEYS = {"rule", "message"}


@dataclass(frozen=True)
class CelRule:
    """A rule, and the values that it is about."""

    path: str
    text: str
    message: str
    value: Any
    old_value: Any
    """Before the update; None if there is no update, or there was no value."""

    @property
    def is_transition(self) -> bool:
        """Whether it compares with the value before an update, and so says nothing about a new resource."""
        return "oldSelf" in self.text

    def find_error(self) -> str | None:
        """What is wrong with the value; None if nothing is."""
        if self.is_transition and self.old_value is None:
            return None
        is_valid = cel.evaluate(self.text, {"self": self.value, "oldSelf": self.old_value})
        return None if is_valid else f"{self.path}: {self.message}"


def find_rules(schema: dict[str, Any], value: Any, old_value: Any = None, path: str = "") -> Iterator[CelRule]:
    """The rules for a value and all that it contains. Lists are compared with no earlier ones, as in Kubernetes."""
    for rule in schema.get(RULES, ()):
        assert rule.keys() <= SUPPORTED_KEYS, rule
        yield CelRule(path, rule["rule"], rule["message"], value, old_value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from find_rules(schema["items"], item, None, f"{path}[{index}]")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        old_values = old_value if isinstance(old_value, dict) else {}
        for name, item in value.items():
            inner = properties.get(name, others if isinstance(others, dict) else {})
            yield from find_rules(inner, item, old_values.get(name), f"{path}.{name}".lstrip("."))


def list_rules(schema: dict[str, Any]) -> set[str]:
    """The texts of all rules in a schema."""
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    texts = {rule["rule"] for rule in schema.get(RULES, ())}
    return texts.union(*(list_rules(one) for one in inner if isinstance(one, dict)))
