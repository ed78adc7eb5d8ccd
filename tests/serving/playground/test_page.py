"""The page in a real browser, with scripted answers: by keyboard, on every screen, with errors and hostile texts."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.config.serving import ServingConfig
from instruct_ray.serving.api_keys import hash_key
from tests.browser import CONTRAST, CTRL, OVERFLOW, Page, find_chromium, open_browser
from tests.serving.playground.scripted_endpoint import LAYOUT, Script, ScriptedEndpoint

# Name, width, height and whether it is a phone.
SCREENS = (("desktop", 1280, 900, False), ("tablet", 800, 1100, False), ("phone", 360, 800, True))
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script></p>"
MODELS: dict[tuple[str, str], Script | None] = {
    ("m", "2"): None,
    ("m@champion", "2"): Script(("Hi", "gh")),
    ("m/2", "2"): None,
    ("m@base", "base"): Script((HOSTILE,)),
    ("m@previous", "1"): None,
    ("m@candidate", "3"): Script(("cut", " off"), ending=""),
}
CARDS = """[...document.querySelectorAll('article')].map(e => ({
  name: e.querySelector('.name').textContent, version: e.querySelector('.version').textContent,
  text: e.querySelector('.text').textContent, facts: e.querySelector('.facts').innerText,
  error: e.querySelector('.error').textContent, can_be_chosen: !e.querySelector('.better').disabled}))"""
ALL_ENDED = "document.querySelector('article') && !document.querySelector('[aria-busy=true]')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("needs Chromium: `apt-get install chromium`")
    with open_browser(chromium) as page:
        yield page


def open_page(browser: Page, url: str, *, width: int = 1280, is_phone: bool = False, dark: bool = False) -> None:
    browser.requests.clear()
    browser.messages.clear()
    browser.open(url, width, 800 if is_phone else 900, dark=dark, is_phone=is_phone)
    browser.wait_until(
        "document.querySelector('#model-list input') || !document.querySelector('#endpoint-error').hidden"
    )


def send(browser: Page, instruction: str, text: str = "") -> None:
    browser.write("instruction", instruction)
    browser.write("input", text)
    browser.press("Enter", CTRL)
    browser.wait_until(ALL_ENDED)


def labels(browser: Page) -> Any:
    return browser.evaluate("[...document.querySelectorAll('#model-list label')].map(e => e.textContent)")


def test_answers_stand_side_by_side_and_the_better_one_is_saved(browser: Page, tmp_path: Path) -> None:
    keys_file, triples_file = tmp_path / "keys.yaml", tmp_path / "triples.jsonl"
    keys_file.write_text(json.dumps([{"name": "alice", "sha256": hash_key("secret")}]))
    endpoint = ScriptedEndpoint(ServingConfig(api_keys_file=keys_file, feedback_file=triples_file), MODELS)
    with endpoint.run() as url:
        open_page(browser, url)
        assert "no valid API key" in browser.evaluate("document.getElementById('endpoint-error').innerText")
        assert browser.evaluate("document.activeElement.id") == "key"
        browser.call("Input.insertText", text="secret")
        browser.press("Enter")
        browser.wait_until("document.querySelector('#model-list input')")
        assert labels(browser) == [
            "m@champion · version 2", "m@base · base model", "m@previous · version 1", "m@candidate · version 3",
        ]  # fmt: skip
        send(browser, "Rate {input}:", "the shop\nis down")
        champion, base, previous, candidate = browser.evaluate(CARDS)
        assert (champion["name"], champion["version"], champion["text"]) == ("m@champion", "version 2", "High")
        assert "12 prompt tokens" in champion["facts"] and "2 completion tokens" in champion["facts"]
        assert "first token 0." in champion["facts"] and "total 0." in champion["facts"]
        # What a model writes is text.
        assert base["text"] == HOSTILE
        assert browser.evaluate("document.title") == "Playground"
        assert browser.evaluate("document.querySelectorAll('article img, article script').length") == 0
        # Failures are said, and can't be chosen.
        assert "HTTP 429: too many requests are waiting" in previous["error"] and "(in 1 s)" in previous["error"]
        assert candidate["text"] == "cut off" and "before the answer was complete" in candidate["error"]
        chosen = [card["can_be_chosen"] for card in (champion, base, previous, candidate)]
        assert chosen == [True, True, False, False]
        # The focus is on the answers, so the number is no text.
        browser.press("1")
        assert browser.evaluate("document.activeElement.id") == "output"
        assert browser.evaluate("document.activeElement.value") == "High"
        browser.write("output", " ")
        browser.press("Enter", CTRL)
        assert browser.evaluate("document.getElementById('save-error').textContent") == "The output is empty."
        browser.write("output", "Higher")
        browser.press("Enter", CTRL)
        browser.wait_until("document.getElementById('notice').textContent === 'The triple is saved.'")
        assert not browser.evaluate("document.getElementById('save-dialog').open")
        assert browser.evaluate("sessionStorage.length") == 1
        assert browser.evaluate("localStorage.length + document.cookie.length") == 0
        # Nothing but this endpoint is asked, and all that it loads is allowed.
        assert all(one.startswith((url, "data:")) for one in browser.requests), browser.requests
        assert not [one for one in browser.messages if "401" not in one and "429" not in one]
    row = json.loads(triples_file.read_text())
    assert [row[name] for name in ("instruction", "input", "output")] == [
        "Rate {input}:",
        "the shop\nis down",
        "Higher",
    ]
    provenance = row["provenance"]
    assert (provenance["key"], provenance["chosen"], provenance["is_edited"]) == ("alice", 0, True)
    assert [answer["output"] for answer in provenance["answers"]] == ["High", HOSTILE]
    assert [answer["version"] for answer in provenance["answers"]] == ["m/2", "m/base"]
    assert provenance["answers"][0]["contract_digest"] == "c" * 64
    # The prompt is what the model's contract makes of the triple.
    content = LAYOUT.format(instruction="Rate {input}:", input="the shop\nis down")
    assert [question["messages"] for question in endpoint.questions] == [[{"role": "user", "content": content}]] * 4
    assert {question["temperature"] for question in endpoint.questions} == {0}


def test_escape_stops_the_answers(browser: Page) -> None:
    endpoint = ScriptedEndpoint(ServingConfig(), {("m", "1"): Script(("begun", 60.0, "not reached"))})
    with endpoint.run() as url:
        open_page(browser, url)
        browser.write("instruction", "Rate")
        browser.press("Enter", CTRL)
        browser.wait_until("document.querySelector('.text')?.textContent === 'begun'")
        assert browser.evaluate("document.getElementById('send').disabled")
        browser.press("Escape")
        browser.wait_until(ALL_ENDED)
        [card] = browser.evaluate(CARDS)
        assert (card["text"], card["error"], card["can_be_chosen"]) == ("begun", "", True)
        assert "stopped" in card["facts"]
        # Without an input the instruction stands alone.
        assert endpoint.questions[0]["messages"][0]["content"] == "Rate"
        end = time.monotonic() + 10
        while not endpoint.num_cancelled:
            assert time.monotonic() < end, "the endpoint goes on"
            time.sleep(0.02)
        browser.press("/")
        assert browser.evaluate("document.activeElement.id") == "instruction"


def test_triple_is_downloaded_where_none_can_be_saved(browser: Page, tmp_path: Path) -> None:
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    with ScriptedEndpoint(ServingConfig(), {("m", "1"): Script(("High",))}).run() as url:
        open_page(browser, url)
        send(browser, "Rate")
        browser.press("1")
        browser.press("Enter", CTRL)
        browser.wait_until("document.getElementById('notice').textContent === 'The triple is downloaded.'")
        end = time.monotonic() + 10
        while not (files := list(tmp_path.glob("*.jsonl"))):
            assert time.monotonic() < end, "nothing is downloaded"
            time.sleep(0.02)
    row = json.loads(files[0].read_text())
    assert (row["instruction"], row["input"], row["output"]) == ("Rate", "", "High")
    assert row["provenance"]["answers"][0]["version"] == "m/1" and not row["provenance"]["is_edited"]


def test_at_most_four_are_asked_and_a_dead_endpoint_is_said(browser: Page) -> None:
    models: dict[tuple[str, str], Script | None] = {("m", str(number)): Script(("x",)) for number in range(6)}
    boxes = "[...document.querySelectorAll('#model-list input')]"
    with ScriptedEndpoint(ServingConfig(), models).run() as url:
        open_page(browser, url)
        assert browser.evaluate(f"{boxes}.map(e => e.checked)") == [True] * 4 + [False] * 2
        assert browser.evaluate(f"{boxes}.map(e => e.disabled)") == [False] * 4 + [True] * 2
        browser.evaluate(f"{boxes}[0].click(), {boxes}[5].click(), {boxes}.slice(1, 4).forEach(e => e.click())")
        assert browser.evaluate(f"{boxes}.map(e => e.checked)") == [False] * 5 + [True]
    browser.write("instruction", "Rate")
    browser.press("Enter", CTRL)
    browser.wait_until(ALL_ENDED)
    [card] = browser.evaluate(CARDS)
    assert "The endpoint does not respond" in card["error"]


def test_it_fits_every_screen_in_light_and_dark(browser: Page, tmp_path: Path) -> None:
    models: dict[tuple[str, str], Script | None] = {
        ("m@champion", "2"): Script(("High",)),
        (f"{'long' * 20}@base", "base"): Script(("w" * 300, " ", "It depends on\nhow many people are affected. " * 8)),
        ("m@candidate", "3"): None,
    }  # fmt: skip
    with ScriptedEndpoint(ServingConfig(), models).run() as url:
        for name, width, _, is_phone in SCREENS:
            for dark in (False, True):
                where = f"{name}, {'dark' if dark else 'light'}"
                open_page(browser, url, width=width, is_phone=is_phone, dark=dark)
                send(browser, "How severe is this incident: High, Medium or Low?", "Nobody can log in.")
                browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
                check_screen(browser, width, where)
                browser.save_picture(tmp_path / f"{where}.png")
                browser.evaluate("document.querySelector('.better').click()")
                check_screen(browser, width, where)
                browser.save_picture(tmp_path / f"{where}, saving.png", whole=False)
                background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert background == ("rgb(15, 19, 25)" if dark else "rgb(246, 247, 249)")


def check_screen(browser: Page, width: int, where: str) -> None:
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, where
    assert not browser.evaluate(OVERFLOW), where
    contrast, text = browser.evaluate(CONTRAST)
    assert contrast >= 4.5, (where, text)
    # Fingers need room, and every field has a name.
    assert browser.evaluate(
        "[...document.querySelectorAll('button')].every(e => !e.offsetHeight || e.offsetHeight >= 40)"
    )
    assert browser.evaluate("[...document.querySelectorAll('input, textarea')].every(e => e.labels.length)"), where
