"""The routes of the playground in this process, asked over HTTP: what is open, and how triples are saved."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from instruct_ray.config.data import SourceConfig
from instruct_ray.config.schema import Config
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.sources.row_formats import parse_row
from instruct_ray.errors import InputError
from instruct_ray.serving.api_keys import hash_key
from instruct_ray.serving.playground.page import PAGE_FILES
from instruct_ray.serving.playground.triples_file import TriplesFile
from tests.data.sources.read_all import read_all_values
from tests.fakes import ray_is_running
from tests.serving.playground.scripted_endpoint import ScriptedEndpoint
from tests.small_disk import NoSmallDiskError, fill_disk, small_disk

URL = "/playground/triples"
ANSWER = {"model": "m@champion", "output": "High", "version": "m/2", "contract_digest": "c" * 64, "seconds": 0.5}
OTHER = {"model": "m@base", "output": "It is <b>bad</b>.", "version": "m/base", "finish_reason": "length"}
TRIPLE = {
    "instruction": "Rate:", "input": "x", "output": "Low", "answers": [OTHER, ANSWER], "chosen": 1,
    "sampling": {"temperature": 0, "seed": None},
}  # fmt: skip


def ask(
    serving: dict[str, Any],
    *requests: dict[str, Any],
    key: str | None = None,
    client: str = "127.0.0.1",
    before: Callable[[], None] = lambda: None,
) -> list[httpx2.Response]:
    """Start an endpoint, call `before`, and send it requests, POST by default, all at once."""

    async def run() -> list[httpx2.Response]:
        app = ScriptedEndpoint(ServingConfig.model_validate(serving), {}).app()
        before()
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(client, 1))
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            sent = [http.request(**{"method": "POST", "url": URL} | request) for request in requests]
            return list(await asyncio.gather(*sent))

    return asyncio.run(run())


@pytest.fixture
def with_keys(tmp_path: Path) -> dict[str, Any]:
    """Options of an endpoint that needs the key `secret` of alice, and saves triples."""
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text(json.dumps([{"name": "alice", "sha256": hash_key("secret")}]))
    return {"api_keys_file": keys_file, "feedback_file": tmp_path / "triples.jsonl", "max_body_bytes": 10_000}


def test_page_is_open_and_nothing_else_of_the_playground_is(with_keys: dict[str, Any]) -> None:
    pages = ask(with_keys, *({"method": "GET", "url": path} for path in PAGE_FILES), client="192.0.2.7")
    assert {response.status_code for response in pages} == {200}
    for response in pages:
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-content-type-options"] == "nosniff"
    # It is the same for everyone, and names nothing of this endpoint.
    assert "alice" not in "".join(response.text for response in pages)
    requests = [{"json": TRIPLE}, {"method": "GET", "url": "/playground/settings"}, {"method": "GET", "url": "/x"}]
    for key in (None, "wrong"):
        assert {response.status_code for response in ask(with_keys, *requests, key=key)} == {401}
    assert not with_keys["feedback_file"].exists()
    assert [response.status_code for response in ask(with_keys, *requests, key="secret")] == [201, 200, 404]


def test_playground_can_be_off() -> None:
    requests = [{"method": "GET", "url": "/"}, {"method": "GET", "url": "/playground/settings"}, {"json": TRIPLE}]
    assert {response.status_code for response in ask({"playground": False}, *requests)} == {404}
    assert {response.status_code for response in ask({"playground": False}, *requests, client="192.0.2.7")} == {401}
    with pytest.raises(ValidationError, match="set playground: true"):
        ServingConfig(playground=False, feedback_file=Path("x"))


def test_saved_row_says_what_it_came_from(with_keys: dict[str, Any]) -> None:
    [response] = ask(with_keys, {"json": TRIPLE}, key="secret")
    row = json.loads(with_keys["feedback_file"].read_text())
    assert (response.status_code, row.pop("id")) == (201, response.json()["id"])
    [record] = read_all_values(with_keys["feedback_file"])
    triple = parse_row(record, "", SourceConfig(path="x"))
    assert (triple.instruction, triple.input, triple.output) == ("Rate:", "x", "Low")
    provenance = row.pop("provenance")
    assert row == {"instruction": "Rate:", "input": "x", "output": "Low"}
    assert provenance.pop("saved_at").endswith("+00:00")
    missing = {
        "data_digest", "finish_reason", "prompt_tokens", "completion_tokens", "first_token_seconds", "seconds",
        "contract_digest",
    }  # fmt: skip
    answers = [dict.fromkeys(missing) | answer for answer in (OTHER, ANSWER)]
    sampling = {"temperature": 0, "max_tokens": None, "seed": None}
    assert provenance == {
        "key": "alice", "is_edited": True, "chosen": 1, "answers": answers, "sampling": sampling,
    }  # fmt: skip


def test_without_a_file_nothing_is_saved() -> None:
    settings, saved = ask({}, {"method": "GET", "url": "/playground/settings"}, {"json": TRIPLE})
    assert settings.json() == {"saves_triples": False, "max_new_tokens": 512}
    assert saved.status_code == 404


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": " "}, "has an empty instruction"),
        ({"output": ""}, "has an empty output"),
        ({"output": "a\0b"}, "NUL character in output"),
        ({"chosen": 2}, "chosen is 2, but there are 2 answers"),
        ({"chosen": -1}, "chosen"),
        ({"answers": []}, "answers"),
        ({"answers": [ANSWER] * 5}, "answers"),
        ({"answers": [ANSWER | {"seconds": 1e999}], "chosen": 0}, "answers.0.seconds"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature"),
        ({"weight": 2}, "weight: not supported by this endpoint"),
        ({"input": 1}, "input"),
    ],
)
def test_triple_that_could_not_be_trained_is_refused(
    with_keys: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    body = json.dumps(TRIPLE | change)
    request = {"content": body, "headers": {"Content-Type": "application/json"}}
    [response] = ask(with_keys, request, key="secret")
    assert (response.status_code, message in response.json()["error"]["message"]) == (400, True), response.text
    assert not with_keys["feedback_file"].exists()


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"instruction": "\\ud800"}', "application/json", 400),
        # What a page of another site can send without asking first.
        (json.dumps(TRIPLE).encode(), "text/plain", 400),
        (json.dumps(TRIPLE).encode(), "application/x-www-form-urlencoded", 400),
        (json.dumps(TRIPLE | {"output": "x" * 10_000}).encode(), "application/json", 413),
    ],
)
def test_body_that_is_no_triple_is_refused(
    with_keys: dict[str, Any], content: bytes, content_type: str, status: int
) -> None:
    request = {"content": content, "headers": {"Content-Type": content_type}}
    [response] = ask(with_keys, request, key="secret")
    assert response.status_code == status
    assert not with_keys["feedback_file"].exists()


def test_concurrent_rows_never_mix(tmp_path: Path) -> None:
    path, barrier = tmp_path / "triples.jsonl", threading.Barrier(8)
    path.write_bytes(b'{"half": "a row that a killed process')

    def append(writer: int) -> None:
        file = TriplesFile(path, 2**30)
        barrier.wait()
        for number in range(20):
            # More than a file system writes at once.
            file.append({"row": f"{writer}-{number}", "text": "é" * 150_000})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    half, *lines = path.read_bytes().splitlines()
    assert half == b'{"half": "a row that a killed process'
    rows = [json.loads(line)["row"] for line in lines]
    assert sorted(rows) == sorted(f"{writer}-{number}" for writer in range(8) for number in range(20))


def test_file_has_a_limit(tmp_path: Path) -> None:
    serving, request = {"feedback_file": tmp_path / "triples.jsonl", "max_feedback_bytes": 1500}, {"json": TRIPLE}
    responses = ask(serving, *[request] * 4)
    content = serving["feedback_file"].read_bytes()
    saved, refused = ([one for one in responses if one.status_code == code] for code in (201, 507))
    assert saved and refused and len(saved) + len(refused) == 4
    assert "max_feedback_bytes" in refused[0].json()["error"]["message"]
    assert len(content) <= 1500 and content.endswith(b"\n") and len(content.splitlines()) == len(saved)


def test_full_disk_is_said_and_leaves_no_part_of_a_row(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", 2**20) as disk:
            serving, request = {"feedback_file": disk / "triples.jsonl"}, {"json": TRIPLE}
            large = {"json": TRIPLE | {"output": "x" * 200_000}}
            assert ask(serving, request)[0].status_code == 201
            before, filler = serving["feedback_file"].read_bytes(), fill_disk(disk)
            [response] = ask(serving, large)
            assert (response.status_code, response.json()["error"]["code"]) == (507, "storage_full")
            assert serving["feedback_file"].read_bytes() == before
            filler.unlink()
            assert ask(serving, large)[0].status_code == 201
            assert len(serving["feedback_file"].read_bytes().splitlines()) == 2
    except NoSmallDiskError as error:
        pytest.skip(str(error))


def test_storage_that_fails_is_said_without_the_triple(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    folder = tmp_path / "disk"
    folder.mkdir()
    [response] = ask({"feedback_file": folder / "triples.jsonl"}, {"json": TRIPLE}, before=folder.rmdir)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "storage_failed")
    assert str(tmp_path) not in response.text
    assert "a triple could not be saved" in caplog.text
    assert "Rate" not in caplog.text and "Low" not in caplog.text


@pytest.mark.parametrize("name", ["missing/triples.jsonl", "."])
def test_file_that_can_not_be_written_is_said_at_the_start(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="feedback_file: "):
        ask({"feedback_file": tmp_path / name})


def test_prepare_reads_saved_triples(
    with_keys: dict[str, Any], make_config: Callable[..., Config], triples_file: Path, ray_4_cpus: None
) -> None:
    requests = [{"json": TRIPLE | {"input": f"report {number} of the playground"}} for number in range(8)]
    assert {response.status_code for response in ask(with_keys, *requests, key="secret")} == {201}
    config = make_config(data={"sources": [triples_file, with_keys["feedback_file"]]})
    fates = prepare(config, ray_is_running).dataset.manifest["fates"]
    assert fates["trained"] + fates["test"] == 64 + 8
