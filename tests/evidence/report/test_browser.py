"""The page in a real browser: nothing is wider than the screen, text can be read in both schemes, nothing is loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from instruct_ray.evidence.report.report import write_report
from tests.browser import CONTRAST, OVERFLOW, Page, find_chromium, open_browser
from tests.evidence.report import folders

# Name, width, height and whether it is a phone.
SCREENS = (("desktop", 1280, 900, False), ("tablet", 800, 1100, False), ("phone", 360, 800, True))
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)
  .map(e => parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))
"""
OPEN_ALL = "document.querySelectorAll('details').forEach(e => { e.open = true })"
VISIBLE_CHARTS = "[...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('svg')]\
.filter(e => e.getClientRects().length).length)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    with open_browser(chromium) as page:
        yield page


def write_label_report(path: Path) -> Path:
    rows = folders.label_rows()
    arms = folders.answer_rows(rows, list(folders.ARMS))
    folder = folders.make_folder(path, rows, arms, errors={("big-model-70b", 3): "HTTP 500: upstream timed out"})
    folders.add_training(folder)
    folders.add_learning_curve(folder)
    folders.add_packs(folder)
    return write_report(folder, Path("jobs/configs/incidents.yaml"))


def write_wide_report(path: Path) -> Path:
    """Texts without a space, long labels and names."""
    rows = folders.label_rows(90, [f"label_{'x' * 70}{number}" for number in range(3)])
    rows = [folders.Row(r.id * 9, r.group, "i" * 300, "r" * 500, r.expected) for r in rows]
    return write_report(folders.make_folder(path, rows, folders.answer_rows(rows, ["zero_shot", "tuned", "champion"])))


@pytest.mark.parametrize("write", [write_label_report, write_wide_report])
def test_it_fits_every_screen_in_light_and_dark(browser: Page, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    url = write(tmp_path).as_uri()
    for name, width, height, is_phone in SCREENS:
        for dark in (False, True):
            browser.open(url, width, height, dark=dark, is_phone=is_phone)
            where = f"{name}, {'dark' if dark else 'light'}"
            browser.evaluate(OPEN_ALL)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, where
            assert not browser.evaluate(OVERFLOW), where
            assert set(browser.evaluate(VISIBLE_CHARTS)) == {1}, where
            assert browser.evaluate(SMALLEST_TEXT) >= 8.5, where
            contrast, text = browser.evaluate(CONTRAST)
            assert contrast >= 4.5, (where, text)
            background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(15, 19, 25)" if dark else "rgb(246, 247, 249)")
            picture = tmp_path / f"{name}-{'dark' if dark else 'light'}.png"
            browser.save_picture(picture, whole=False)
            assert picture.read_bytes().startswith(b"\x89PNG")
    # The page alone was read, and the browser has nothing to complain about.
    assert {one for one in browser.requests if one.startswith(str(tmp_path.as_uri()))} == {url}
    assert all(one.startswith("file:") for one in browser.requests)
    assert not browser.messages
