"""The registry on `mlflow server` with PostgreSQL, passwords and an S3 store, as in `full_server`."""

from pathlib import Path

import pytest

from instruct_ray.cli.main import main
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError, UnavailableError
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from instruct_ray.run.folder import RunFolder
from instruct_ray.tracking import calls
from tests import postgres_server
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, Killed, kill_after, make_run
from tests.registry.full_server import ADMIN, BUCKET, PART_BYTES, READER, FullServer, log_in

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(postgres_server.why_not() is not None, reason=str(postgres_server.why_not())),
]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_WAIT_SECONDS", 0.1)


@pytest.fixture
def registry(server: FullServer, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    log_in(monkeypatch, *ADMIN)
    return ModelRegistry(server.uri)


def make_run_on(server: FullServer, storage: Path, run: str, name: str = NAME, num_bytes: int = 100) -> Config:
    """A run for this server whose weights have a number of bytes."""
    config = make_run(storage, run, registry={"uri": server.uri, "name": name, "gate": None})
    (RunFolder.from_config(config).model_dir / "model.safetensors").write_bytes(run.encode().ljust(num_bytes, b"."))
    return config


def run_command(server: FullServer, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--registry", server.uri])
    captured = capsys.readouterr()
    assert exit_info.value.code == code, captured
    return " ".join((captured.out + captured.err).split())


def test_life_of_two_versions(
    server: FullServer, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # As if the weights were larger than these limits of MLflow, 500 MB and 10 MB, at their defaults.
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(2 * PART_BYTES))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(PART_BYTES))
    first = make_run_on(server, tmp_path / "runs", "first", num_bytes=2 * PART_BYTES + 17)
    second = make_run_on(server, tmp_path / "runs", "second")
    version = register(first, ignore_status).version
    # S3 marks an object that was uploaded in parts by the number of parts.
    [weights] = [one for one in server.objects() if one["Size"] == 2 * PART_BYTES + 17]
    assert weights["ETag"].strip('"').endswith("-3")
    register(second, ignore_status)
    assert registry.aliases(NAME) == {"champion": "2", "previous": "1"}

    run_command(server, capsys, "rollback", NAME, "--reason", "slow answers")
    assert registry.aliases(NAME) == {"champion": "1"}
    output = run_command(server, capsys, "promote", NAME, "2", "--force", "--reason", "fast again")
    assert output == f"models:/{NAME}@champion is version 2"
    output = run_command(server, capsys, "versions", NAME)
    assert "2 version(s)" in output and "force: champion 1 -> 2: fast again" in output
    output = run_command(server, capsys, "trace", f"{NAME}@previous")
    assert f"models:/{NAME}/1 (previous)" in output and "source 1: more.jsonl" in output
    output = run_command(server, capsys, "trace", "--row", "0:17")
    assert f"models:/{NAME}/1 models:/{NAME}/2" in output

    folder = registry.fetch(version, tmp_path / "cache")
    assert (folder / "model.safetensors").stat().st_size == 2 * PART_BYTES + 17


def test_database_can_be_read_without_the_server(server: FullServer, registry: ModelRegistry) -> None:
    assert ModelRegistry(server.database.uri("mlflow")).model_names() == registry.model_names()


@pytest.mark.parametrize("credentials", [(ADMIN[0], "wrong"), ("nobody", "wrong")])
def test_wrong_password_says_which_variables_to_set(
    server: FullServer, monkeypatch: pytest.MonkeyPatch, credentials: tuple[str, str]
) -> None:
    log_in(monkeypatch, *credentials)
    with pytest.raises(InputError, match=r"denies access .* set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        ModelRegistry(server.uri).model_names()


def test_reader_reads_but_neither_promotes_nor_uploads(
    server: FullServer, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for run in ("first", "second"):
        register(make_run_on(server, tmp_path / "runs", run, "guarded"), ignore_status)
    third = make_run_on(server, tmp_path / "runs", "third", "guarded")
    num_objects = len(server.objects())
    log_in(monkeypatch, *READER)
    assert "2 version(s)" in run_command(server, capsys, "versions", "guarded")
    for arguments in (
        ("promote", "guarded", "1", "--force", "--reason", "x"),
        ("rollback", "guarded", "--reason", "x"),
    ):
        assert "denies access" in run_command(server, capsys, *arguments, code=2)
    with pytest.raises(InputError, match="denies access"):
        register(third, ignore_status)
    assert len(server.objects()) == num_objects
    log_in(monkeypatch, *ADMIN)
    assert [version.number for version in registry.versions("guarded")] == ["1", "2"]
    assert registry.aliases("guarded") == {"champion": "2", "previous": "1"}


def test_object_that_was_changed_in_the_store_is_refused(
    server: FullServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    before = {one["Key"] for one in server.objects()}
    version = register(make_run_on(server, tmp_path / "runs", "first", "swapped"), ignore_status).version
    [key] = [
        one["Key"] for one in server.objects() if one["Key"] not in before and one["Key"].endswith("model.safetensors")
    ]
    server.store.client.put_object(Bucket=BUCKET, Key=key, Body=b"other weights")
    with pytest.raises(InputError, match=r"swapped/1: model\.safetensors was changed"):
        registry.fetch(version, tmp_path / "cache")
    assert not (tmp_path / "cache" / "swapped-1").exists()


def test_registration_outlives_the_store_and_the_database(
    server: FullServer, registry: ModelRegistry, tmp_path: Path
) -> None:
    config = make_run_on(server, tmp_path / "runs", "first", "outage")
    server.store.stop()
    with pytest.raises(UnavailableError, match=r"can't be used now: .*run the same command again later"):
        register(config, ignore_status)
    server.store.start()
    server.database.stop()
    with pytest.raises(UnavailableError, match=r"can't be used now: .*run the same command again later"):
        register(config, ignore_status)
    server.database.start()
    registration = register(config, ignore_status)
    assert (registration.version.number, registration.already_done) == ("1", False)
    assert registry.aliases("outage") == {"champion": "1"}
    registry.fetch(registration.version, tmp_path / "cache")


@pytest.mark.parametrize("num_writes", [2, 9])
def test_registration_killed_while_it_uploads_or_decides_is_completed(
    server: FullServer, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    name = f"killed-{num_writes}"
    config = make_run_on(server, tmp_path / "runs", "first", name)

    with monkeypatch.context() as patch:
        kill_after(patch, num_writes)
        with pytest.raises(Killed):
            register(config, ignore_status)
    register(config, ignore_status)
    assert registry.aliases(name) == {"champion": "1"}
    assert [(one.from_version, one.to_version) for one in registry.history(name).decisions] == [(None, "1")]


def test_server_that_hangs_is_reported_in_seconds(
    server: FullServer, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "REQUEST_SECONDS", 1)
    assert server.mlflow is not None
    server.mlflow.pause()
    try:
        with pytest.raises(UnavailableError, match=r"can't be used now: .*run the same command again later"):
            registry.model_names()
    finally:
        server.mlflow.resume()
