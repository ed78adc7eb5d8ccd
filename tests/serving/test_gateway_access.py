"""Who may ask the gateway, and how much: keys, their limits, and machines without a key. Its replica is a fake."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from instruct_ray.serving import api_keys
from instruct_ray.serving.api_keys import hash_key
from tests.serving.fake_replica import CHAT, END, HI, INFO, START, FakeReplica, ask, chat, with_key, write_keys


@pytest.mark.parametrize(
    ("client", "serving", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("192.0.2.7", {}, 401),
        ("192.0.2.7", {"allow_without_key": True}, 200),
        ("not an address", {}, 401),
    ],
)
def test_without_keys_only_this_machine_is_answered(client: str, serving: dict[str, Any], status: int) -> None:
    assert chat([[START, HI, END]], client=client, serving=serving).status_code == status


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
def test_request_through_a_proxy_is_not_of_this_machine(header: str) -> None:
    [response] = ask(FakeReplica([]), {"json": CHAT, "headers": {header: "127.0.0.1"}})
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://other.example"}, 401),
        ({"Origin": "null"}, 401),
        # A name that an attacker lets resolve to this machine.
        ({"Host": "other.example"}, 401),
        ({"Host": "[::1"}, 401),
        ({"Host": "a]b"}, 401),
        ({"Origin": "http://["}, 401),
        ({"Origin": "http://other.example", "Host": "other.example"}, 401),
    ],
)
def test_page_of_another_site_is_not_this_machine(headers: dict[str, str], status: int) -> None:
    [response] = ask(FakeReplica([[START, HI, END]]), {"json": CHAT, "headers": headers})
    assert response.status_code == status


def test_reasons_in_health_are_for_those_with_a_key(tmp_path: Path) -> None:
    keys_file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a")})
    replica = FakeReplica([], info=INFO.model_copy(update={"not_followed": "no space on /mnt/x"}))
    health = {"method": "GET", "url": "/health"}
    without, with_one = ask(replica, health, with_key("a") | health, serving={"api_keys_file": str(keys_file)})
    assert without.json() == {"status": "ok", "model": "m", "version": "1"}
    assert with_one.json()["not_followed"] == "no space on /mnt/x"


def test_last_key_can_be_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a")})

    def revoke() -> None:
        file.write_text("[]")

    options = {"serving": {"api_keys_file": str(file), "allow_without_key": True}, "between": revoke}
    first, second = ask(FakeReplica([[START, HI, END]]), with_key("a"), with_key("a"), **options)
    assert (first.status_code, second.status_code) == (200, 401)


def test_keys_are_changed_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    file = write_keys(tmp_path / "keys.yaml", {"name": "old", "sha256": hash_key("one")})
    contents = iter(
        [
            json.dumps([{"name": "new", "sha256": hash_key("two")}]),
            # A mistake changes nothing.
            "- {name: new",
            json.dumps([{"name": "new", "sha256": hash_key("two")}, {"name": "old", "sha256": hash_key("one")}]),
        ]
    )

    def write_next() -> None:
        if (text := next(contents, None)) is not None:
            file.with_suffix(".new").write_text(text)
            os.replace(file.with_suffix(".new"), file)

    answers = [[START, HI, END]] * 6
    pairs = [with_key("one"), with_key("two"), with_key("two"), with_key("one")]
    responses = ask(FakeReplica(answers), *pairs, serving={"api_keys_file": str(file)}, between=write_next)
    assert [response.status_code for response in responses] == [200, 200, 200, 200]
    file = write_keys(tmp_path / "keys.yaml", {"name": "old", "sha256": hash_key("one")})
    responses = ask(FakeReplica(answers), *pairs, serving={"api_keys_file": str(file)})
    assert [response.status_code for response in responses] == [200, 401, 401, 200]


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCT_RAY_API_KEYS", json.dumps([{"name": "a", "sha256": hash_key("one")}]))
    good, bad = ask(FakeReplica([[START, HI, END]]), with_key("one"), with_key("two"))
    assert (good.status_code, bad.status_code) == (200, 401)
    assert "one" not in bad.text and "two" not in bad.text


def test_limits_of_a_key_hold_for_it_alone(tmp_path: Path) -> None:
    file = write_keys(
        tmp_path / "keys.yaml",
        {"name": "few", "sha256": hash_key("few"), "requests_per_minute": 2},
        {"name": "short", "sha256": hash_key("short"), "tokens_per_minute": 5},
        {"name": "free", "sha256": hash_key("free")},
    )
    requests = [with_key(key) for key in ("few", "few", "few", "short", "short", "free", "free", "free")]
    responses = ask(FakeReplica([[START, HI, END]] * 6), *requests, serving={"api_keys_file": str(file)})
    assert [response.status_code for response in responses] == [200, 200, 429, 200, 429, 200, 200, 200]
    error = responses[2]
    assert error.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(error.headers["retry-after"]) <= 60


def test_aborted_stream_counts_its_tokens(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.yaml", {"name": "a", "sha256": hash_key("a"), "tokens_per_minute": 4})
    request = with_key("a")
    broken = {**request, "json": CHAT | {"stream": True}}
    replica = FakeReplica([[START, HI, ValueError("x")]])
    assert [one.status_code for one in ask(replica, broken, request, serving={"api_keys_file": str(file)})] == [
        200,
        429,
    ]
