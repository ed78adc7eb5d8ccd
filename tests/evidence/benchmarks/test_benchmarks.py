"""The real lm-eval on questions of its package, with a tiny tuned run: figures, reruns, bad input.

Each run of a benchmark loads lm-eval and a model in two Ray tasks, which takes most of the time.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binom
from transformers import AutoModelForCausalLM, AutoTokenizer

from instruct_ray.cli.benchmark import run_benchmark
from instruct_ray.config.evidence import BenchmarksConfig
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.evidence.benchmarks import harness
from instruct_ray.evidence.benchmarks import run as run_module
from instruct_ray.evidence.benchmarks.comparison import BenchmarkAnswers, compare_answers
from instruct_ray.evidence.benchmarks.file import load_benchmarks
from instruct_ray.evidence.benchmarks.harness import ask_model, check_tasks
from instruct_ray.evidence.benchmarks.offline_tasks import OFFLINE_TASKS, read_questions
from instruct_ray.evidence.benchmarks.run import run_benchmarks
from instruct_ray.inference.loading import load_for_inference, model_digest
from instruct_ray.run.folder import RunFolder
from tests.fakes import fail_if_ray_starts, ignore_status, ray_is_running

PACKAGE = Path(lm_eval.__file__).parent
LIMIT = 12


class Killed(BaseException):
    """The process is killed here."""


def copy_run(tuned: Config, storage: Path, **benchmarks: Any) -> Config:
    """A copy of the tuned run, with other benchmarks."""
    folder = RunFolder.from_config(tuned).path
    shutil.copytree(folder, storage / folder.name, ignore=shutil.ignore_patterns("evidence", "version.json"))
    evidence = tuned.evidence.model_copy(update={"benchmarks": BenchmarksConfig(**benchmarks)})
    run = tuned.run.model_copy(update={"storage": storage})
    return tuned.model_copy(update={"run": run, "evidence": evidence})


def evidence_dir(config: Config) -> Path:
    return RunFolder.from_config(config).evidence_file.parent


@pytest.fixture(scope="module")
def benchmarked(tuned: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose benchmark was killed after the answers, and continued without asking again."""
    config = copy_run(tuned, tmp_path_factory.mktemp("runs"), tasks=OFFLINE_TASKS, limit=LIMIT)
    with pytest.MonkeyPatch.context() as patch:

        def kill(*_: Any) -> None:
            raise Killed

        patch.setattr(run_module, "compare_answers", kill)
        with pytest.raises(Killed):
            run_benchmarks(config, ignore_status, ray_is_running)
    assert not (evidence_dir(config) / "benchmarks.json").exists()
    assert not run_benchmarks(config, ignore_status, fail_if_ray_starts).already_done
    return config


def read_figures(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((evidence_dir(config) / "benchmarks.json").read_text())
    return values


def read_answers(config: Config, benchmark: str) -> list[dict[str, Any]]:
    lines = (evidence_dir(config) / "benchmark_answers.jsonl").read_text().splitlines()
    return [values for line in lines if (values := json.loads(line))["benchmark"] == benchmark]


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    prompt = tokenizer(context, add_special_tokens=False).input_ids
    # Cut from the left where it is longer than the context of the tiny model.
    ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
    num = len(ids) - len(prompt)
    ids = ids[-(model.config.max_position_embeddings + 1) :]
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]])).logits[0].float().log_softmax(-1)
    return sum(logs[len(ids) - 1 - num + n, ids[len(ids) - num + n]].item() for n in range(num))


def is_right(model: Any, tokenizer: Any, question: dict[str, Any], benchmark: str) -> bool | None:
    """Whether a model chooses the answer, computed without lm-eval; None if two choices are equal but for rounding."""
    start = f"The following are multiple choice questions (with answers) about {question['subject']}.\n\n"
    if benchmark == "mmlu_dev":
        context = f"{start}Question: {question['question']}\nAnswer:"
        scores = [
            log_likelihood(model, tokenizer, context, f" {choice}") / len(choice) for choice in question["choices"]
        ]
    else:
        choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", question["choices"], strict=True))
        context = f"{start}{question['question']}{choices}\nAnswer:"
        scores = [log_likelihood(model, tokenizer, context, f" {letter}") for letter in "ABCD"]
    second, best = sorted(scores)[-2:]
    return None if best - second < 1e-3 else scores.index(best) == question["answer"]


@pytest.mark.parametrize("benchmark", OFFLINE_TASKS)
def test_answers_are_those_of_both_models(benchmarked: Config, base_folder: Path, benchmark: str) -> None:
    answers, questions = read_answers(benchmarked, benchmark), read_questions(PACKAGE)[:LIMIT]
    assert [one["question"] for one in answers] == [f"{benchmark}:{number}" for number in range(LIMIT)]
    for name, folder in (("base", base_folder), ("tuned", RunFolder.from_config(benchmarked).model_dir)):
        model, tokenizer = load_for_inference(folder), AutoTokenizer.from_pretrained(folder)
        expected = [is_right(model, tokenizer, one, benchmark) for one in questions]
        pairs = [(one[name], right) for one, right in zip(answers, expected, strict=True) if right is not None]
        assert len(pairs) > LIMIT // 2 and all(found == right for found, right in pairs)


@pytest.mark.parametrize("benchmark", OFFLINE_TASKS)
def test_figures_follow_from_the_answers(benchmarked: Config, benchmark: str) -> None:
    answers, figures = read_answers(benchmarked, benchmark), read_figures(benchmarked)["benchmarks"][benchmark]
    gained = sum(one["tuned"] and not one["base"] for one in answers)
    lost = sum(one["base"] and not one["tuned"] for one in answers)
    assert figures["num_questions"] == len(answers) == LIMIT
    assert figures["base"] == pytest.approx(sum(one["base"] for one in answers) / LIMIT)
    assert figures["tuned"] == pytest.approx(sum(one["tuned"] for one in answers) / LIMIT)
    difference = figures["comparison"]
    assert difference["estimate"] == pytest.approx((gained - lost) / LIMIT)
    assert (difference["num_rows"], difference["num_discordant"]) == (LIMIT, gained + lost)
    n, k = gained + lost, min(gained, lost)
    # Fagerland, Lydersen, Laake 2013.
    mid_p = min(1.0, 2 * binom.cdf(k, n, 0.5)) - binom.pmf(k, n, 0.5) * (0.5 if gained == lost else 1)
    assert difference["p_value"] == pytest.approx(mid_p)
    assert difference["lower"] < difference["estimate"] < difference["upper"]
    # A random model guesses.
    assert figures["chance"] == 0.25 and "guessing (0.25)" in figures["problem"]


def test_file_says_which_models_and_settings(benchmarked: Config) -> None:
    values = read_figures(benchmarked)
    assert values["model_digest"] == model_digest(RunFolder.from_config(benchmarked).model_dir)
    assert values["settings"] == {
        "tasks": list(OFFLINE_TASKS), "limit": LIMIT, "apply_chat_template": False, "lm_eval": "0.4.13",
    }  # fmt: skip
    assert {name: one["metric"] for name, one in values["benchmarks"].items()} == {
        "mmlu_dev": "acc_norm", "mmlu_dev_letters": "acc",
    }  # fmt: skip
    assert sorted(path.name for path in evidence_dir(benchmarked).iterdir()) == [
        "benchmark_answers.jsonl", "benchmarks.json",
    ]  # fmt: skip
    assert load_benchmarks(evidence_dir(benchmarked) / "benchmarks.json") is not None


def test_finished_benchmark_is_not_repeated(benchmarked: Config, capsys: pytest.CaptureFixture[str]) -> None:
    before = (evidence_dir(benchmarked) / "benchmarks.json").stat().st_mtime_ns
    run_benchmark(benchmarked)
    assert (evidence_dir(benchmarked) / "benchmarks.json").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "already benchmarked" in printed and f"{LIMIT} questions" in printed
    assert "note: the base model is not shown to be better than guessing" in printed
    assert "after `instruct-ray evaluate`" in printed


def test_other_settings_or_another_model_are_asked_again(benchmarked: Config, tmp_path: Path) -> None:
    def must_ask() -> None:
        raise Killed

    fewer = copy_benchmarked(benchmarked, tmp_path / "fewer", limit=2)
    with pytest.raises(Killed):
        run_benchmarks(fewer, ignore_status, must_ask)
    retuned = copy_benchmarked(benchmarked, tmp_path / "retuned", tasks=OFFLINE_TASKS, limit=LIMIT)
    path = RunFolder.from_config(retuned).model_dir / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 99}))
    with pytest.raises(Killed):
        run_benchmarks(retuned, ignore_status, must_ask)


def copy_benchmarked(benchmarked: Config, storage: Path, **benchmarks: Any) -> Config:
    config = copy_run(benchmarked, storage, **benchmarks)
    shutil.copytree(evidence_dir(benchmarked), evidence_dir(config))
    return config


def test_adapter_is_asked_merged_into_its_base(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    get_peft_model(base, LoraConfig(r=4, init_lora_weights=False)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path)
    loaded = []

    def load(folder: Path) -> Any:
        loaded.append(load_for_inference(folder))
        return loaded[-1]

    monkeypatch.setattr(harness, "load_for_inference", load)
    answers = ask_model(tmp_path, "mmlu_dev_letters", BenchmarksConfig(limit=LIMIT))
    [model], tokenizer = loaded, AutoTokenizer.from_pretrained(base_folder)
    original = AutoModelForCausalLM.from_pretrained(base_folder)
    weights = [one.model.layers[0].self_attn.q_proj.weight for one in (model, original)]
    assert weights[0].shape == weights[1].shape and not torch.allclose(*weights)
    expected = [is_right(model, tokenizer, one, "mmlu_dev_letters") for one in read_questions(PACKAGE)[:LIMIT]]
    assert list(answers.correct.values()) == expected


def test_questions_of_the_package() -> None:
    questions = read_questions(PACKAGE)
    assert len(questions) == 280 and len({one["subject"] for one in questions}) == 57
    assert len({one["subject"] for one in questions[:57]}) == 57
    assert all(len(one["choices"]) == 4 and all(one["choices"]) and one["question"] for one in questions)
    assert questions[0] == {
        "subject": "abstract algebra",
        "question": "Statement 1 | Every element of a group generates a cyclic subgroup of the group. "
        "Statement 2 | The symmetric group S_10 has 10 elements.",
        "choices": ["True, True", "False, False", "True, False", "False, True"],
        "answer": 2,
    }
    with pytest.raises(InputError, match="is missing; install the version of lm-eval"):
        read_questions(Path("/nowhere"))


def test_unknown_benchmark_is_refused_before_ray_starts(benchmarked: Config) -> None:
    config = benchmarked.model_copy(
        update={
            "evidence": benchmarked.evidence.model_copy(update={"benchmarks": BenchmarksConfig(tasks=("mmlu_devv",))})
        }
    )
    with pytest.raises(InputError, match=r"evidence\.benchmarks\.tasks: mmlu_devv is no task of lm-eval 0\.4\.13; "):
        run_benchmarks(config, ignore_status, fail_if_ray_starts)


def test_benchmark_whose_questions_are_out_of_reach_says_so(base_folder: Path) -> None:
    # The tests set HF_HUB_OFFLINE.
    with pytest.raises(InputError, match=r"evidence\.benchmarks\.tasks: arc_easy can't be loaded: .* needs no network"):
        ask_model(base_folder, "arc_easy", BenchmarksConfig())


def test_missing_lm_eval_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lm-eval is not installed; run `pip install 'instruct-ray\[benchmarks\]'`"):
        check_tasks(["mmlu_dev"])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"metrics": ["bleu"], "bleu": 0.3}, "it has bleu, none of acc_norm, acc, exact_match"),
        ({"metrics": ["acc"], "acc": 0.5}, r"parts of a point \(0\.5\)"),
    ],
)
def test_benchmark_without_right_and_wrong_is_refused(sample: dict[str, Any], message: str) -> None:
    samples = {"x": [{"doc_id": 0, "filter": "none", **sample}]}
    with pytest.raises(InputError, match=message):
        harness._read_correct("x", samples, harness._choose_metric("x", samples))


def test_first_filter_counts() -> None:
    samples = {
        "gsm8k": [
            {"doc_id": number, "filter": name, "metrics": ["exact_match"], "exact_match": value}
            for name, value in (("strict", 1.0), ("flexible", 0.0))
            for number in range(2)
        ]
    }
    assert harness._read_correct("gsm8k", samples, "exact_match") == {"gsm8k:0": True, "gsm8k:1": True}


@pytest.fixture
def answers() -> Iterator[BenchmarkAnswers]:
    yield BenchmarkAnswers("acc", 0, 0.25, "float32", {f"x:{number}": number % 3 == 0 for number in range(200)})


def test_benchmark_that_the_base_model_knows_has_no_problem(answers: BenchmarkAnswers) -> None:
    figures = compare_answers(answers, answers)
    assert figures["problem"] is None and figures["base_lower"] > 0.25
    assert figures["comparison"]["estimate"] == 0 and figures["comparison"]["lower"] > -0.02


def test_different_questions_are_an_error(answers: BenchmarkAnswers) -> None:
    other = BenchmarkAnswers("acc", 0, 0.25, "float32", {"x:0": True})
    with pytest.raises(ValueError, match="different questions"):
        compare_answers(answers, other)
