"""Validators of the resources that KubeRay defines."""

import gzip
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from tests.cluster.manifests import ROOT, Document

CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"


@pytest.fixture(scope="session")
def ray_schemas() -> dict[str, dict[str, Any]]:
    """The OpenAPI schema of each kind of KubeRay's resources."""
    if not CRDS.is_dir():
        pytest.skip(f"no KubeRay resource definitions in {CRDS}")
    schemas = {}
    for path in CRDS.glob("*.yaml.gz"):
        definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)["spec"]
        [version] = [version for version in definition["versions"] if version["name"] == "v1"]
        schemas[definition["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    return schemas


@pytest.fixture(scope="session")
def validate_ray_resource(ray_schemas: dict[str, dict[str, Any]]) -> Callable[[Document], list[str]]:
    """Validates a Ray resource against its resource definition, without the CEL rules; returns the errors."""
    # OpenAPI 3.0 is based on draft 4.
    validators = {kind: Draft4Validator(make_strict(schema)) for kind, schema in ray_schemas.items()}

    def validate(document: Document) -> list[str]:
        errors = validators[document["kind"]].iter_errors(document)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]

    return validate


def make_strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Make a schema reject unknown keys, as `kubectl apply` does."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: make_strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            strict[key] = make_strict(schema[key])
    return strict
