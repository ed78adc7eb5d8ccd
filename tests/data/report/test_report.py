"""The data report: it counts every row, runs and fetches nothing, and stays small whatever the data."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_ray.config.schema import Config
from instruct_ray.data.ledger import trained_row_ids
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.report import report
from instruct_ray.data.report.report import (
    NUM_BARS,
    OUTCOME_TEXTS,
    RowLocator,
    build_histogram,
    render_report,
    shorten_names,
)
from instruct_ray.data.sources.source_file import SourceFile
from tests.fakes import ray_is_running

# Would run scripts if it were not escaped.
HOSTILE = "</pre><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID_TAGS = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; asserts that every tag is closed."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: list[str] = []
        self.text = ""
        self.open_tags: list[str] = []
        self.feed(content)
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"instruction": f"Rate {HOSTILE}", "input": f"report {number} {HOSTILE}", "output": "High"}
        for number in range(40)
    ]
    return [*rows, rows[0], {"instruction": "a", "output": {HOSTILE: 1}}, {"instruction": "b"}]


@pytest.fixture
def hostile_config(make_config: Callable[..., Config], tmp_path: Path, hostile_rows: list[dict[str, Any]]) -> Config:
    path = tmp_path / f"rows {HOSTILE.replace('/', '')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in hostile_rows))
    limits = {"pack_tokens": 512, "max_tokens": 512, "max_bad_fraction": 0.2, "near_duplicates": None}
    return make_config(data={"sources": [path], **limits})


@pytest.mark.usefixtures("ray_4_cpus")
def test_the_report_agrees_with_the_manifest_and_the_ledger(hostile_config: Config) -> None:
    dataset = prepare(hostile_config, ray_is_running).dataset
    values = json.loads((dataset.path / "report.json").read_text())
    assert values["outcomes"] == dataset.manifest["fates"]
    assert sum(values["outcomes"].values()) == values["num_read"] == 43
    assert (values["outcomes"]["quarantined"], values["outcomes"]["duplicate"]) == (2, 1)
    assert sorted(values["quarantine_reasons"].values()) == [1, 1]
    assert {example["place"].rsplit(", ")[-1] for example in values["quarantine_examples"]} == {"row 42", "row 43"}
    assert values["labels"]["most_frequent"] == [{"text": "High", "num_rows": values["outcomes"]["trained"]}]
    assert values["instructions"]["num_texts"] == 1
    assert values["packs"]["fill"] == pytest.approx(values["tokens"]["computed"] / (values["packs"]["num_packs"] * 512))
    row_ids = trained_row_ids(dataset.path)
    assert len(values["samples"]) == 6
    for sample in values["samples"]:
        assert sample["row_id"] in row_ids
        answer = "".join(span["text"] for span in sample["spans"] if span["is_target"])
        assert answer == "High<|im_end|>"


@pytest.mark.usefixtures("ray_4_cpus")
def test_text_from_the_data_is_escaped(hostile_config: Config) -> None:
    dataset = prepare(hostile_config, ray_is_running).dataset
    content = (dataset.path / "report.html").read_text()
    page = Page(content)
    assert not page.tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for name in page.attributes if name.startswith("on")} | page.attributes & {"src", "href"}
    assert "<script" not in content and "url(" not in content and "http" not in content.replace("http-equiv", "")
    # It is there as text: in the title, an instruction, a sample and the problem of a row.
    assert page.text.count("<script>alert(1)</script>") > 3
    bar_sizes = [int(match[1]) for style in page.styles if (match := re.search(r"flex-grow:(\d+)", style))]
    assert sum(bar_sizes) == 43


@pytest.mark.usefixtures("ray_4_cpus")
def test_another_run_in_another_folder_makes_the_same_page(make_config: Callable[..., Config], tmp_path: Path) -> None:
    runs = ({"name": "a"}, {"name": "b", "storage": tmp_path / "elsewhere"})
    first, second = (prepare(make_config(run=run), ray_is_running).dataset.path for run in runs)
    for name in ("report.json", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert len(Page((first / "report.html").read_text()).text) > 500


@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 100), min_size=1))
def test_a_histogram_counts_every_row_once(lengths: dict[int, int]) -> None:
    bars = build_histogram(lengths)
    assert len(bars) <= NUM_BARS
    assert sum(bar.num_rows for bar in bars) == sum(lengths.values())
    for bar in bars:
        assert bar.num_rows == sum(count for length, count in lengths.items() if bar.start <= length < bar.end)
    assert bars[0].num_rows and bars[-1].num_rows


def test_a_row_far_inside_a_file_is_located_by_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 100)
    locator = RowLocator([SourceFile(0, 0, str(path), "jsonl", None, 300)], ["rows.jsonl"])
    assert locator.describe("0:150") == "rows.jsonl, row 51"
    monkeypatch.setattr(report, "MAX_COUNTED_BYTES", 100)
    assert locator.describe("0:150") == "rows.jsonl, byte 150"


def test_file_names_are_as_short_as_possible_but_distinct() -> None:
    assert shorten_names(["/data/a/train.jsonl"]) == ["train.jsonl"]
    assert shorten_names(["/data/a/train.jsonl", "/data/b/train.jsonl"]) == ["a/train.jsonl", "b/train.jsonl"]
    assert shorten_names(["/data/a/train.jsonl", "s3://b/more.jsonl"]) == ["train.jsonl", "more.jsonl"]
    assert shorten_names(["s3://one/x.jsonl", "/data/x.jsonl"]) == ["s3://one/x.jsonl", "/data/x.jsonl"]


def test_a_page_without_labels_and_inputs_is_complete() -> None:
    lengths = {"median": 3, "p95": 3, "max": 3, "bars": [{"start": 3, "end": 4, "num_rows": 7}]}
    values = {
        "files": ["a.jsonl"], "num_files": 9, "num_read": 7, "num_truncated": 0,
        "outcomes": dict.fromkeys(OUTCOME_TEXTS, 1),
        "quarantine_reasons": {}, "quarantine_examples": [], "samples": [], "labels": None, "instructions": None,
        "tokens": {"rows": 9, "computed": 9, "target": 3, "target_fraction": 1 / 3, "saved_fraction": 0.0},
        "packs": {"num_packs": 1, "num_examples": 7, "pack_tokens": 9, "fill": 1.0},
        "lengths": {"prompt": lengths, "completion": lengths}, "num_without_input": 7, "num_multi_turn": 0,
    }  # fmt: skip
    text = Page(render_report(values)).text
    assert "a.jsonl and 8 more files" in text
    assert "None of the 7 rows has an input" in text
    for label, _ in OUTCOME_TEXTS.values():
        assert f"1 {label}" in text
