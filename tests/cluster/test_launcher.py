"""The files of `ray up` pass Ray's own validation, and start clusters that need a token."""

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.manifests import CLUSTER, Document

FILES = ("aws", "on-premises")


def load(name: str) -> Document:
    """A launcher file."""
    config: Document = yaml.safe_load((CLUSTER / "launcher" / f"{name}.yaml").read_text())
    return config


@pytest.mark.parametrize("name", FILES)
def test_launcher_file_is_valid_for_ray(name: str) -> None:
    validate_config(prepare_config(load(name)))
    with pytest.raises(ValidationError):
        validate_config(prepare_config(load(name) | {"max_worker": 1}))


@pytest.mark.parametrize("name", FILES)
def test_cluster_needs_a_token(name: str) -> None:
    config = load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    [start] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()


def test_nodes_on_aws_get_roles_and_security_groups_of_the_owner() -> None:
    types = load("aws")["available_node_types"]
    for name, node_type in types.items():
        node = node_type["node_config"]
        assert node["IamInstanceProfile"]["Arn"].endswith("head" if name == "head" else "worker"), name
        interfaces = node.get("NetworkInterfaces")
        # Otherwise the launcher makes a group whose port 22 is open to everyone. Interfaces have groups of their own.
        assert bool(node.get("SecurityGroupIds")) != bool(interfaces), name
        assert all(interface["Groups"] and interface["SubnetId"] for interface in interfaces or []), name
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
    assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    cards = [interface["NetworkCardIndex"] for interface in types["gpu-efa"]["node_config"]["NetworkInterfaces"]]
    assert cards == [0, 1, 2, 3]
