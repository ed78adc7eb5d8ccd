"""What the checks say about clusters that can't be started here. A cluster that can is in tests/jobs."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.submission.cluster_probe import find_missing_files, find_missing_modules, look_up_packages
from instruct_ray.submission.job_config import JobConfig
from instruct_ray.submission.preflight import Cluster, check_packages, check_resources, find_extras

NAMES = ["instruct-ray", *(Requirement(text).name for text in metadata.requires("instruct-ray") or ())]


def make_cluster(*gpus: float, most: dict[str, float] | None = None, **packages: str | None) -> Cluster:
    """A cluster with this environment's packages but for some, and nodes of 8 CPUs."""
    answer: dict[str, Any] = {
        "packages": look_up_packages(NAMES) | packages,
        "missing_modules": [],
        "missing_files": [],
        "nodes": [
            {"id": f"id-{number}", "name": f"node-{number}", "resources": {"CPU": 8, "GPU": count}, "labels": {}}
            for number, count in enumerate(gpus)
        ],
        "most": most,
    }
    return Cluster(answer)


@pytest.fixture
def make_job(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., JobConfig]:
    def make(*overrides: str) -> JobConfig:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
        return JobConfig.load(path, overrides)

    return make


def test_driver_runs_on_a_node_for_drivers_if_there_are_any() -> None:
    assert make_cluster(0).driver_resources == {}
    assert make_cluster(0, most={"driver": 8.0}).driver_resources == {"driver": 1.0}
    cluster = make_cluster(0, 0)
    cluster.answer["nodes"][1]["resources"]["driver"] = 8.0
    assert cluster.driver_resources == {"driver": 1.0}


def test_image_with_this_environment_is_fine() -> None:
    check_packages(make_cluster(0), is_source_sent=False)


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ({"ray": "2.55.0"}, "the cluster has ray 2.55.0; instruct_ray .* needs ray.*==2.60.0 in the cluster's image"),
        ({"deepspeed": None, "peft": "0.9"}, "the cluster has deepspeed|no deepspeed, peft 0.9"),
        ({"instruct-ray": "0.0.1"}, "the cluster has instruct_ray 0.0.1, this machine "),
    ],
)
def test_image_that_lacks_something_is_named(packages: dict[str, str | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_packages(make_cluster(0, **packages), is_source_sent=False)


def test_source_that_is_sent_counts_instead_of_the_image() -> None:
    cluster = make_cluster(0, **{"instruct-ray": "0.0.1"})
    check_packages(cluster, is_source_sent=True)


def test_image_without_the_project_is_said() -> None:
    cluster = Cluster({**make_cluster(0).answer, "missing_modules": ["instruct_ray"]})
    with pytest.raises(InputError, match="the cluster has no instruct_ray; use an image that has it"):
        check_packages(cluster, is_source_sent=False)


def test_extras_that_a_stage_needs_are_looked_for(make_job: Callable[..., JobConfig]) -> None:
    vllm, tracing = make_job("serving.engine=vllm"), make_job("serving.tracing={uri: http://mlflow:5000}")
    assert find_extras("tune", vllm) == [] and find_extras("pipeline", vllm) == ["vllm"]
    assert find_extras("benchmark", make_job()) == ["lm_eval"]
    assert find_extras("pipeline", tracing) == []
    assert find_missing_modules(find_extras("serve", tracing)) == []
    quantized = make_job("model.lora={quantize: 4bit}")
    assert find_extras("tune", quantized) == ["bitsandbytes"] and find_extras("evaluate", quantized) == []
    # In an image with no part of it.
    assert find_missing_modules(["nothing.of.this"]) == ["nothing.of.this"]


def test_gpus_that_may_be_added_need_a_wait(make_job: Callable[..., JobConfig]) -> None:
    wanted = ("train.use_gpu=true", "train.num_workers=2")
    check_resources(make_cluster(2), "tune", make_job(*wanted))
    check_resources(make_cluster(0), "prepare", make_job(*wanted))
    with pytest.raises(InputError, match=r"0 GPUs; set train\.use_gpu=false, or add nodes"):
        check_resources(make_cluster(0), "pipeline", make_job(*wanted))
    growing = make_cluster(0, most={"CPU": 40.0, "GPU": 4.0})
    with pytest.raises(InputError, match=r"the autoscaler may add them: set train\.wait_for_nodes, such as"):
        check_resources(growing, "tune", make_job(*wanted))
    check_resources(growing, "tune", make_job(*wanted, "train.wait_for_nodes=600"))
    with pytest.raises(InputError, match="can't be placed"):
        check_resources(growing, "tune", make_job("train.use_gpu=true", "train.num_workers=8"))


def test_gpus_of_engines_are_looked_for(make_job: Callable[..., JobConfig]) -> None:
    check_resources(make_cluster(0, 1), "evaluate", make_job("serving.num_gpus=1"))
    check_resources(make_cluster(0, most={"CPU": 8.0, "GPU": 8.0}), "serve", make_job("serving.num_gpus=1"))
    with pytest.raises(InputError, match=r"serving\.num_gpus=2: no node has so many GPUs"):
        check_resources(make_cluster(1, 1), "evaluate", make_job("serving.num_gpus=2"))


def test_probe_finds_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert find_missing_files([f"{tmp_path}/*.jsonl", f"{tmp_path}/b.jsonl"]) == [f"{tmp_path}/b.jsonl"]
    assert find_missing_modules(["json", "no_such_module", "no_such_package.module"]) == [
        "no_such_module",
        "no_such_package.module",
    ]


def test_command_holds_the_config_and_quotes_the_overrides(make_job: Callable[..., JobConfig]) -> None:
    job = make_job("data.sources=[a b.jsonl]")
    first, *lines = job.command("tune").splitlines()
    assert first == "python -m instruct_ray tune --config - 'data.sources=[a b.jsonl]' <<'END-OF-CONFIG'"
    assert lines[-1] == "END-OF-CONFIG"
    assert "\n".join(lines[:-1]) == job.text.rstrip()
    assert "a b.jsonl" in job.files()
