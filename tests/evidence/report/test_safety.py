"""The page of the evidence runs nothing, loads nothing, and stays small, whatever the texts of users are."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from instruct_ray.evidence.report.report import write_report
from instruct_ray.files import atomic_write_json
from tests.evidence.report import folders
from tests.evidence.report.parsed_page import ParsedPage

# Would run scripts or load something if it were not escaped.
HOSTILE = (
    "</style></title></pre><script>alert(1)</script>\"'><img src=https://e.com/x onerror=alert(2)>{{ 7 * 7 }}$x_1$"
)
# Control characters, half of a surrogate pair, a change of the writing direction, and a character fonts lack.
ODD = "\x00\x1b[31m\ud800\u202eabc\U000e0001 🦜 ไทย"
HARMLESS_TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "nav", "article", "footer", "p",
    "h1", "h2", "h3", "b", "i", "a", "div", "span", "table", "tr", "th", "td", "ul", "li", "pre", "details", "summary",
    "figure", "figcaption", "svg", "g", "path", "defs", "use", "text", "clippath", "rect",
}  # fmt: skip


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with these texts in every place that users write."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_hostile_report(tmp_path_factory.mktemp("hostile"), monkeypatch).read_text()


def write_hostile_report(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    labels = [f"High {HOSTILE}", "Medium", f"Low {ODD}"]
    rows = [
        replace(row, id=row.id + HOSTILE, instruction=f"{row.instruction} {HOSTILE}{index % 2}", input=ODD + HOSTILE)
        for index, row in enumerate(folders.label_rows(120, labels))
    ]  # fmt: skip
    rival = f"rival{HOSTILE}"
    monkeypatch.setitem(folders.ARMS, rival, ("rival", f"a rival {HOSTILE}", 100.0, 0.6))
    answers = folders.answer_rows(rows, ["zero_shot", "few_shot_3", "tuned", rival])
    evidence = folders.make_evidence(rows, answers, notes=[HOSTILE], measures=["exact_match", "macro_f1", HOSTILE])
    evidence["score_comparisons"][HOSTILE] = evidence["comparisons"]
    evidence["cost"]["rule"] = HOSTILE
    errors = {(rival, index): f"HTTP 500 {HOSTILE}" for index in range(3)}
    # Texts of JSON files can hold half of a surrogate pair.
    monkeypatch.setattr(folders.json, "dumps", _dump_ascii(folders.json.dumps))
    folder = folders.make_folder(path, rows, answers, {}, errors=errors)
    folder.evidence_file.write_text(folders.json.dumps(evidence))
    folders.add_training(folder)
    folders.add_packs(folder, label=HOSTILE)
    folders.add_benchmarks(folder, HOSTILE, HOSTILE)
    curve = {
        "points": [],
        "fit": HOSTILE,
        "doubling": {"gain": None, "lower": None, "upper": None, "sentence": HOSTILE},
    }
    atomic_write_json(folder.evidence_file.with_name("learning_curve.json"), curve)
    return write_report(folder, Path(HOSTILE))


def _dump_ascii(dumps):  # type: ignore[no-untyped-def]
    return lambda value, **options: dumps(value, **options | {"ensure_ascii": True})


def test_texts_of_users_are_escaped(hostile_page: str) -> None:
    page = ParsedPage(hostile_page)
    assert page.tags <= HARMLESS_TAGS
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script" not in hostile_page and "<img" not in hostile_page
    # They are there as text: in rows, labels, arms, errors, notes, measures, the rule, data and the config file.
    for section in ("accuracy", "tokens", "cost", "learning", "rows", "slices", "failed", "data", "reproduce"):
        assert "<script>alert(1)</script>" in page.sections[section], section
    # Jinja and the plotting library take nothing of them for their own syntax.
    assert "{{ 7 * 7 }}$x_1$" in page.text and "49$x_1$" not in page.text


def test_invisible_characters_are_shown(hostile_page: str) -> None:
    page = ParsedPage(hostile_page)
    assert not set("\x00\x1b\u202e\U000e0001") & set(page.text)
    assert r"\x00\x1b[31m\ud800\u202eabc\ue0001 🦜 ไทย" in page.text


def test_nothing_is_loaded(hostile_page: str) -> None:
    page = ParsedPage(hostile_page)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert page.references()
    for reference in page.references():
        assert reference.startswith("#") and reference[1:] in ids
    styles = " ".join(value for _, name, value in page.attributes if name in ("style", "clip-path"))
    assert all(match in ids for match in re.findall(r"url\(#([^)]*)\)", styles))
    assert "url(" not in styles.replace("url(#", "") and "@import" not in hostile_page
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.attributes


def test_charts_take_their_colours_from_the_page(hostile_page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", hostile_page, re.DOTALL)
    assert len(pictures) >= 10
    for picture in pictures:
        assert "currentColor" in picture and "font-family" not in picture and "#000000" not in picture
        assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+|[a-z]+)(?=[;\"])", picture)) <= {"none", "currentColor"}


def test_the_page_of_many_rows_is_small(tmp_path: Path) -> None:
    rows = [replace(row, input=row.input * 100) for row in folders.label_rows(600)]
    answers = folders.answer_rows(rows, ["zero_shot", "tuned"])
    answers["tuned"] = [f"{answer} {'very ' * 500}long" for answer in answers["tuned"]]
    folder = folders.make_folder(tmp_path, rows, answers)
    page = write_report(folder).read_text()
    assert len(page) < 400_000
    assert "more characters)" in page
