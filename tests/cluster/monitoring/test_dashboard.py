"""A run on two nodes and an endpoint, scraped by a real Prometheus: every panel and every alert finds its series."""

import json
import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from instruct_ray.config.schema import Config
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking.mlflow_client import connect_mlflow, tracking_uri
from instruct_ray.tracking.tracked_run import load_tracking_record
from tests import tiny
from tests.cluster.monitoring.prometheus_server import MONITORING, PrometheusServer, needs_prometheus, run_prometheus
from tests.cluster.monitoring.ray_nodes import TOKEN, RayNodes
from tests.ports import find_free_ports

pytestmark = [pytest.mark.servers, needs_prometheus, pytest.mark.timeout(900)]

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# The peak of a CPU is not known.
ONLY_ON_GPUS = {"MFU"}
CHAT = "/v1/chat/completions"
# Each worker takes two of the three CPUs of a node, so they are on two nodes.
TRAIN = {
    "epochs": 40, "examples_per_step": 12, "checkpoint_every": 40, "learning_rate": 1e-3,
    "num_workers": 2, "cpus_per_worker": 2, "max_failures": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Monitored:
    """What was run, and the Prometheus that has scraped it."""

    prometheus: PrometheusServer
    nodes: RayNodes
    config: Config
    started_at: float
    num_nodes: int
    """Nodes that were scraped while the run was trained."""
    url: str
    """Of the endpoint."""


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, triples_file: Path) -> Iterator[Monitored]:
    """A run that is tuned, with a worker killed on the way, registered and served while Prometheus scrapes."""
    folder = tmp_path_factory.mktemp("monitored")
    # One request at a time, and one that waits.
    [port] = find_free_ports(1)
    serving = {"port": port, "max_new_tokens": 100, "max_batch_size": 1, "max_queued_requests": 1}
    config = tiny.configure(folder / "runs", base_folder, triples_file, train=TRAIN, serving=serving)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    nodes = RayNodes(folder)
    try:
        nodes.start_head(num_cpus=3)
        with run_prometheus(folder, nodes.dashboard, TOKEN) as prometheus:
            nodes.start_worker_node(num_cpus=3)
            started_at = time.time()
            nodes.run("jobs.prepare", "--config", file)
            with ThreadPoolExecutor(1) as pool:
                tuned = pool.submit(nodes.run, "jobs.tune", "--config", file)
                wait_for_checkpoint(RunFolder.from_config(config), tuned)
                nodes.kill_a_training_worker()
                tuned.result()
            num_nodes = len([one for one in prometheus.targets() if one["health"] == "up"])
            nodes.stop_worker_node()
            for job in ("evaluate", "register", "serve"):
                nodes.run(f"jobs.{job}", "--config", file)
            url = f"http://127.0.0.1:{config.serving.port}"
            ask(url)
            yield Monitored(prometheus, nodes, config, started_at, num_nodes, url)
    finally:
        nodes.stop()


def wait_for_checkpoint(folder: RunFolder, tuned: "Future[str]") -> None:
    """Wait until there are steps after the first checkpoint, which are lost if a worker is killed now."""
    while not (folder.checkpoints_file.exists() and len(folder.metrics_file.read_text().splitlines()) > 60):
        assert not tuned.done(), tuned.result()
        time.sleep(0.05)


def ask(url: str) -> None:
    """Send requests for some seconds, more at a time than are answered or may wait."""
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "How bad is it?"}]}

    def send(number: int) -> int:
        body = chat | {"stream": number % 2 == 0}
        return httpx2.post(f"{url}{CHAT}", json=body, timeout=120).status_code

    deadline, statuses = time.monotonic() + 6, set()
    with ThreadPoolExecutor(8) as pool:
        while time.monotonic() < deadline or statuses != {200, 429}:
            statuses |= set(pool.map(send, range(8)))
            assert time.monotonic() < deadline + 60, statuses
    # Of the reports and of the scrape after the last request.
    time.sleep(4)


def fill_in(expression: str) -> str:
    """What Grafana replaces in the query of a panel."""
    return expression.replace("$__rate_interval", "5s").replace("$run", ".*").replace("$application", ".*")


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_shows_something(monitored: Monitored, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        series = monitored.prometheus.query_since(fill_in(target["expr"]), monitored.started_at)
        values = [float(value) for one in series for _, value in one["values"]]
        has_values = any(math.isfinite(value) for value in values)
        assert has_values == (panel["title"] not in ONLY_ON_GPUS), target["expr"]


def test_variables_have_values(monitored: Monitored) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        [(metric, label)] = re.findall(r"label_values\((\w+), (\w+)\)", variable["definition"])
        series = monitored.prometheus.query_since(metric, monitored.started_at)
        assert {one["metric"][label] for one in series} == {"tiny"}


def test_metrics_of_every_alert_exist(monitored: Monitored) -> None:
    metrics = set(re.findall(r"\bray_\w+", (MONITORING / "alerts.yaml").read_text()))
    assert len(metrics) > 10
    assert not {one for one in metrics if not monitored.prometheus.query_since(one, monitored.started_at)}


def test_run_is_counted_as_in_its_files(monitored: Monitored) -> None:
    folder = RunFolder.from_config(monitored.config)
    steps = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    checkpoints = [json.loads(line) for line in folder.checkpoints_file.read_text().splitlines()]
    assert [one["step"] for one in checkpoints] == list(range(40, len(steps) + 1, 40))

    def read_max(name: str) -> float:
        [series] = monitored.prometheus.query_since(f"ray_instruct_ray_train_{name}", monitored.started_at)
        assert series["metric"]["run"] == "tiny"
        return max(float(value) for _, value in series["values"])

    assert read_max("num_steps") == len(steps) == steps[-1]["step"]
    num_again = read_max("steps_done_again")
    assert num_again > 0
    # The last report may come after the last scrape.
    assert 0.8 * len(steps) <= read_max("steps_total") <= len(steps) + num_again
    assert read_max("tokens_total") > read_max("target_tokens_total") > 0
    assert read_max("skipped_steps") == read_max("waiting_for_nodes") == 0
    assert read_max("checkpoint_step") in {one["step"] for one in checkpoints}


def test_endpoint_is_counted_as_by_itself(monitored: Monitored) -> None:
    text = httpx2.get(f"{monitored.url}/metrics").text
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def read_both(name: str, **labels: str) -> tuple[float, float]:
        own = sum(one.value for one in samples if one.name == name and one.labels.items() >= labels.items())
        selector = ", ".join(f'{label}="{value}"' for label, value in labels.items())
        [series] = monitored.prometheus.query(f"sum(ray_{name}{{{selector}}})")
        return own, float(series["value"][1])

    refused, by_ray = read_both("instruct_ray_requests_total", route=CHAT, status="429")
    assert refused == by_ray > 0
    assert read_both("instruct_ray_refused_requests_total") == (refused, refused)
    for name in ("tokens_total", "answers_total", "request_seconds_count", "first_token_seconds_count"):
        labels = {"route": CHAT} if name == "request_seconds_count" else {}
        own, by_ray = read_both(f"instruct_ray_{name}", **labels)
        assert own == by_ray > 0, name
    [version] = monitored.prometheus.query("ray_instruct_ray_served_version")
    assert version["metric"].items() >= {"model": "tiny", "version": "1", "application": "tiny"}.items()


def test_list_of_runs_shows_the_endpoint_of_the_cluster(monitored: Monitored) -> None:
    listed = monitored.nodes.run(
        "instruct_ray", "runs", "--address", f"http://{monitored.nodes.dashboard}", "--storage",
        monitored.config.run.storage,
    )  # fmt: skip
    [line] = [line for line in listed.splitlines() if line.startswith("tiny ")]
    assert "tiny/1 @champion" in line
    assert line.endswith(f"  {monitored.url}/v1")


def test_every_node_is_scraped_and_only_their_list_needs_the_token(monitored: Monitored) -> None:
    assert monitored.nodes.request_status("/api/prometheus/sd", None) == 401
    # Two nodes; autoscaler and dashboard of the head have a target each.
    assert monitored.num_nodes == 4


def test_system_metrics_of_every_node_are_in_mlflow(monitored: Monitored) -> None:
    run_id = load_tracking_record(monitored.config).run_id
    assert run_id is not None
    metrics = connect_mlflow(tracking_uri(monitored.config)).get_run(run_id).data.metrics
    for node in range(2):
        assert 0 < metrics[f"system/node_{node}/system_memory_usage_percentage"] < 100
    assert metrics["checkpoint/save_seconds"] > 0
