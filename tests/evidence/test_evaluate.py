"""`evaluate` with all arms: killed in the middle and run again, with a rival, documents and the standing champion.

Two evaluations with up to three engines each, which take most of the time to load.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from instruct_ray.cli.stages.evaluate import run_evaluate
from instruct_ray.cli.stages.register import run_register
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.evidence.asking.engines import EnginePool, Prompt
from instruct_ray.evidence.asking.journal import JOURNAL_FILE, make_key
from instruct_ray.evidence.evaluate import evaluate
from instruct_ray.registry.gate_evidence import read_gate_evidence
from instruct_ray.run.folder import RunFolder
from tests.evidence.asking.fake_rival import FakeRival, Reply, completion, serve_rival
from tests.fakes import fail_if_ray_starts, ignore_status

ARMS = ["zero_shot", "few_shot_1", "few_shot_3", "rag", "tuned", "tuned_rag", "gpt"]
EVALUATE = "from instruct_ray.cli.main import main; main()"


@dataclass(frozen=True)
class Evaluated:
    """A run whose evaluation was killed, and continued."""

    config: Config
    journal: list[dict[str, Any]]
    """What the killed process had recorded."""
    asked: list[str]
    """Keys of what the second process asked the engines."""
    rival: FakeRival
    output: str

    @property
    def folder(self) -> Path:
        return RunFolder.from_config(self.config).evidence_file.parent

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


def copy_run(tuned: Config, storage: Path, **evidence: Any) -> Config:
    """A copy of the tuned run in another storage, not evaluated, with other options."""
    folder = RunFolder.from_config(tuned).path
    shutil.copytree(folder, storage / folder.name, ignore=shutil.ignore_patterns("evidence", "version.json"))
    if not (storage / "mlflow.db").exists():
        # Of the run's metrics, which are registered with its version.
        shutil.copy(folder.parent / "mlflow.db", storage)
    config_file = storage / folder.name / "config.json"
    frozen = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({name: values for name, values in frozen.items() if name != "evidence"}))
    values = tuned.model_dump(mode="json")
    values["run"]["storage"] = str(storage)
    values["evidence"] |= evidence
    return Config.model_validate(values)


def answer(body: dict[str, Any], number: int) -> Reply:
    """Right for half of the rows, refused for one, failed for another."""
    text = body["messages"][-1]["content"]
    if "room 1" in text:
        return 400, {"error": {"code": "content_filter"}}, {}
    return (400, {"error": {"message": "bad"}}, {}) if "room 6" in text else completion("High")


def kill_in_the_middle(config: Config, config_file: Path) -> list[dict[str, Any]]:
    """Evaluate in a process that is killed once the base model has answered; returns its journal."""
    config_file.write_text(config.model_dump_json())
    journal = RunFolder.from_config(config).evidence_file.with_name(JOURNAL_FILE)
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", EVALUATE, "evaluate", "--config", str(config_file)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # The rival is asked before the engines; 20 more lines are answers of the base model.
    while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    return [json.loads(line) for line in journal.read_text().split("\n") if line.endswith("}")]


@pytest.fixture(scope="module")
def evaluated(tuned: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    root = tmp_path_factory.mktemp("evaluate")
    (root / "docs").mkdir()
    (root / "docs" / "shops.md").write_text("A shop that is down is High.\n\nA typo is Low.")
    with serve_rival(answer) as rival, pytest.MonkeyPatch.context() as patch:
        config = copy_run(
            tuned,
            root / "runs",
            num_few_shot=[1, 3],
            documents=[str(root / "docs")],
            arms=[{"name": "gpt", "base_url": rival.base_url, "model": "gpt-x"}],
            num_latency_rows=8,
            num_engines=None,
        )
        journal = kill_in_the_middle(config, root / "config.yaml")
        rival.requests.clear()
        file = RunFolder.from_config(config).evidence_file.with_name(JOURNAL_FILE)
        with file.open("a") as lines:
            lines.write('{"key": "half')
        asked: list[str] = []
        generate = EnginePool.generate

        def record(pool: EnginePool, prompts: Sequence[Prompt]) -> Any:
            asked.extend(make_key(pool.model.identity, one.token_ids, one.sampling.max_new_tokens) for one in prompts)
            return generate(pool, prompts)

        patch.setattr(EnginePool, "generate", record)
        with pytest.MonkeyPatch.context() as output_patch:
            printed: list[str] = []
            output_patch.setattr("builtins.print", lambda *texts, **_: printed.append(" ".join(map(str, texts))))
            run_evaluate(config)
        yield Evaluated(config, journal, asked, rival, "\n".join(printed))


def test_no_answered_row_is_asked_again(evaluated: Evaluated) -> None:
    before = {line["key"] for line in evaluated.journal}
    assert len(before) >= 20 and not before & set(evaluated.asked)
    # Of the rival only the failed request is repeated; the others are timed.
    rows = evaluated.read_lines("answers.jsonl")
    num_timed = 1 + 8 + 8
    failed = sum("error" in row["answers"]["gpt"] for row in rows)
    assert len(evaluated.rival.requests) == num_timed + failed
    assert len(set(evaluated.asked)) == len(evaluated.asked)
    assert not (evaluated.folder / JOURNAL_FILE).exists()


def test_evidence_has_all_arms_and_what_the_gate_reads(evaluated: Evaluated) -> None:
    evidence = json.loads((evaluated.folder / "evidence.json").read_text())
    assert list(evidence["arms"]) == ARMS
    others = [arm for arm in ARMS if not arm.startswith("tuned")]
    pairs = [f"{own} - {arm}" for own in ("tuned", "tuned_rag") for arm in others]
    assert list(evidence["comparisons"]) == pairs
    arms = evidence["arms"]
    assert arms["rag"]["prompt_tokens"] > arms["zero_shot"]["prompt_tokens"] == arms["tuned"]["prompt_tokens"]
    assert arms["gpt"]["accuracy"] > 0 and arms["gpt"]["prompt_tokens"] == pytest.approx(9, rel=0.5)
    assert all(len(arm["latency"]) == 3 for arm in arms.values())
    # Of the rival one of the timed requests may fail.
    assert all(arm["requests_per_second_at_8"] > 0 for name, arm in arms.items() if name != "gpt")
    assert arms["tuned"]["latency"]["p50"]["lower"] is not None and arms["tuned"]["latency"]["p95"]["upper"] is None
    gate = read_gate_evidence(evidence)
    assert set(gate.prompting_arms) == {"zero_shot", "few_shot_1", "few_shot_3", "rag"}
    assert gate.test_digest and gate.slices is not None


def test_answers_of_all_arms_are_written_in_the_order_of_the_rows(evaluated: Evaluated) -> None:
    rows = evaluated.read_lines("answers.jsonl")
    test_rows = RunFolder.from_config(evaluated.config).test_rows_file.read_text().splitlines()
    assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in test_rows]
    for row in rows:
        assert list(row) == ["id", "group", "instruction", "input", "expected", "answers"]
        assert list(row["answers"]) == ARMS
    assert evaluated.read_lines("suspicious.jsonl") == []


def test_verdict_arms_and_paths_are_printed(evaluated: Evaluated) -> None:
    evidence = json.loads((evaluated.folder / "evidence.json").read_text())
    assert evidence["verdict"]["sentence"] in evaluated.output
    assert all(f"  {arm} " in evaluated.output for arm in ARMS)
    assert str(evaluated.folder / "evidence.json") in evaluated.output


def test_champion_is_an_arm_once_there_is_one(evaluated: Evaluated, tuned: Config, tmp_path: Path) -> None:
    run_register(evaluated.config)
    storage = evaluated.config.run.storage
    shutil.rmtree(storage / evaluated.config.run.name)
    config = copy_run(tuned, storage, num_few_shot=0)
    values = evaluate(config, ignore_status, lambda: None).values
    assert list(values["arms"]) == ["zero_shot", "tuned", "champion"] and values["champion_version"] == "1"
    # It is the same model.
    comparison = values["comparisons"]["tuned - champion"]
    assert (comparison["estimate"], comparison["num_discordant"]) == (0.0, 0)
    assert "these test rows have decided on 1 other version(s) of tiny" in values["notes"]


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"metric": "nowhere:f"}, r"evidence\.metric: can't import nowhere"),
        ({"documents": ["/nowhere"]}, r"evidence\.documents: no file or folder /nowhere"),
        (
            {"arms": [{"name": "gpt", "base_url": "http://x/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}]},
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_bad_options_are_refused_before_a_worker_starts(
    tuned: Config, tmp_path: Path, evidence: dict[str, Any], message: str
) -> None:
    config = copy_run(tuned, tmp_path, **evidence)
    with pytest.raises(InputError, match=message):
        evaluate(config, ignore_status, fail_if_ray_starts)
