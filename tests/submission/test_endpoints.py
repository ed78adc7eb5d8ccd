"""The URLs of the applications in what Ray Serve says about itself."""

from typing import Any

import pytest
from ray.serve.schema import ServeInstanceDetails

from instruct_ray.submission.job_server import find_endpoints


def make_details(host: str, **statuses: str) -> dict[str, Any]:
    """What the dashboard answers: two proxies, of which the second is healthy, and applications by name and status."""
    proxies = {
        node: {"node_id": node, "node_ip": address, "actor_id": "a", "actor_name": "p", "status": status}
        for node, address, status in (("1", "10.0.0.4", "UNHEALTHY"), ("2", "10.0.0.5", "HEALTHY"))
    }
    applications = {
        name: {
            "name": name, "route_prefix": None if name == "private" else f"/{name}".replace("/root", "/"),
            "docs_path": None, "status": status, "message": "", "last_deployed_time_s": 1.0,
            "deployed_app_config": None, "source": "declarative", "deployments": {}, "external_scaler_enabled": False,
        }
        for name, status in statuses.items()
    }  # fmt: skip
    details = ServeInstanceDetails(
        controller_info={}, proxy_location="EveryNode", http_options={"host": host, "port": 8000}, grpc_options={},
        proxies=proxies, applications=applications, target_capacity=None,
    )  # fmt: skip
    answer: dict[str, Any] = details.model_dump(mode="json")
    return answer


@pytest.mark.parametrize(
    ("host", "base"),
    [
        # An address of a node, since nobody can ask for all interfaces.
        ("0.0.0.0", "http://10.0.0.5:8000"),
        ("::", "http://10.0.0.5:8000"),
        # By default Serve listens on the loopback interface alone: the node's address would not answer.
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("fd00::7", "http://[fd00::7]:8000"),
    ],
)
def test_host_is_one_that_serve_listens_on(host: str, base: str) -> None:
    assert find_endpoints(make_details(host, root="RUNNING", other="RUNNING")) == [f"{base}/v1", f"{base}/other/v1"]


def test_applications_that_do_not_answer_are_left_out() -> None:
    assert find_endpoints(make_details("0.0.0.0", root="DEPLOYING", private="RUNNING")) == []


@pytest.mark.parametrize("details", [{}, {"http_options": {}}, {"http_options": {"port": 8000}}], ids=str)
def test_what_serve_was_not_told_is_its_default(details: dict[str, Any]) -> None:
    values = make_details("127.0.0.1", root="RUNNING")
    del values["http_options"]
    assert find_endpoints(values | details) == ["http://127.0.0.1:8000/v1"]
    # A cluster that serves nothing.
    assert find_endpoints({"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}) == []
