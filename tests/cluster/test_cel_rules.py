"""What cluster/ renders to keeps the CEL rules of KubeRay's resource definitions."""

from copy import deepcopy
from itertools import permutations
from typing import Any

import pytest

from tests.cluster.cel_rules import find_rules, list_rules
from tests.cluster.manifests import OVERLAYS, Document, find_document, is_ray_resource, load_documents

Schemas = dict[str, dict[str, Any]]
# Compares a value with the one before an update. Of a resource that is new there is nothing to evaluate.
IMMUTABLE = "self == oldSelf"


def find_errors(schemas: Schemas, document: Document, old: Document | None = None) -> list[str]:
    """What the API server would say about the rules when a resource is made, or replaces an old one."""
    rules = find_rules(schemas[document["kind"]], document, old)
    return [error for rule in rules if (error := rule.find_error())]


def test_definitions_have_the_rules_that_are_known_here(ray_schemas: Schemas) -> None:
    """A new rule of a new release of KubeRay is looked at by someone before it counts as checked."""
    texts = set().union(*(list_rules(schema) for schema in ray_schemas.values()))
    assert texts == {
        "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']",
        "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))",
        "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))",
        "!(has(self.jobStatus) && has(self.jobDeploymentStatus))",
        "has(self.jobStatus) || has(self.jobDeploymentStatus)",
        IMMUTABLE,
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_resources_keep_the_rules(ray_schemas: Schemas, overlay: str) -> None:
    resources = [document for document in load_documents(overlay) if is_ray_resource(document)]
    assert [find_errors(ray_schemas, resource) for resource in resources] == [[]] * 4
    # Some rule was evaluated: those of the deletion rules of the jobs.
    rules = [rule for one in resources for rule in find_rules(ray_schemas[one["kind"]], one)]
    assert len([rule for rule in rules if not rule.is_transition]) >= 12


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("managedBy", "argo", "the managedBy field value must be either"),
        ("deletionStrategy", {}, "deletionStrategy requires either BOTH onSuccess and onFailure"),
        (
            "deletionStrategy",
            {"onSuccess": {"policy": "DeleteCluster"}, "deletionRules": []},
            "legacy policies (onSuccess/onFailure) and deletionRules cannot be used together",
        ),
        (
            "deletionStrategy",
            {"deletionRules": [{"condition": {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}}]},
            "deletionStrategy.deletionRules[0].condition: JobStatus and JobDeploymentStatus cannot be used together",
        ),
        (
            "deletionStrategy",
            {"deletionRules": [{"condition": {"ttlSeconds": 3}}]},
            "the deletion condition requires either",
        ),
    ],
)
def test_broken_rule_is_found(ray_schemas: Schemas, key: str, value: object, message: str) -> None:
    document = deepcopy(find_document(load_documents("overlays/gpu"), "RayJob", "instruct-ray-tune"))
    document["spec"][key] = value
    [error] = find_errors(ray_schemas, document)
    assert message in error


@pytest.mark.parametrize(("old", "new"), permutations(OVERLAYS, 2))
def test_an_overlay_can_be_applied_over_another(ray_schemas: Schemas, old: str, new: str) -> None:
    old_documents = load_documents(old)
    for document in filter(is_ray_resource, load_documents(new)):
        before = find_document(old_documents, document["kind"], document["metadata"]["name"])
        assert find_errors(ray_schemas, document, before) == []


def test_change_of_an_immutable_field_is_found(ray_schemas: Schemas) -> None:
    old = find_document(load_documents("overlays/gpu"), "RayCluster", "instruct-ray")
    new = deepcopy(old)
    new["spec"]["gcsFaultToleranceOptions"]["backend"] = "redis"
    [error] = find_errors(ray_schemas, new, old)
    assert error == "spec.gcsFaultToleranceOptions.backend: gcsFaultToleranceOptions.backend is immutable"
