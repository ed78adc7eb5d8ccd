"""The file of API keys, and the command that makes one."""

from pathlib import Path

import pytest

from instruct_ray.cli.main import main
from instruct_ray.cli.stages.serve import start_endpoint
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.serving.api_keys import ApiKeys, hash_key, parse_keys
from tests.fakes import ignore_status

DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a list of name and sha256"),
        ("- {name: a", "not valid YAML in line 1"),
        ("- \0", "not valid YAML"),
        ("- {name: 2024-13-45}", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("- {name: a}", "0.sha256: Field required"),
        (f"- {{name: a, sha256: {DIGEST}}}", "0.sha256: Input should be a valid string"),
        ("- {name: a, sha256: secret}", "0.sha256: String should match"),
        (f"- {{name: a, sha256: '{DIGEST}0'}}", "0.sha256: String should match"),
        (f"- {{name: '', sha256: '{DIGEST}'}}", "0.name: String should match"),
        (f"- {{name: a, sha256: '{DIGEST}', limit: 3}}", "0.limit: Extra inputs are not permitted"),
        (f"- {{name: a, sha256: '{DIGEST}', tokens_per_minute: 0}}", "0.tokens_per_minute: Input should be greater"),
        (f"- {{name: a, sha256: '{DIGEST}'}}\n- {{name: a, sha256: '1{DIGEST[1:]}'}}", "name a stands there twice"),
        (f"- {{name: a, sha256: '{DIGEST}'}}\n- {{name: b, sha256: '{DIGEST}'}}", "stands there twice"),
    ],
)
def test_wrong_file_is_refused_with_its_entry(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^keys\.yaml: ") as error:
        parse_keys(text, "keys.yaml")
    assert message in str(error.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"serving\.api_keys_file: .* can't be read"):
        ApiKeys(tmp_path / "none.yaml")


def test_error_does_not_repeat_a_key() -> None:
    with pytest.raises(InputError) as error:
        parse_keys("- {name: a, sha256: sk-secret", "keys.yaml")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["alice", "123", "null", "true", "1.5", "2024-01-01"])
def test_new_key_opens_with_its_entry(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["new-key", name])
    assert ended.value.code == 0
    first, _, *entry = capsys.readouterr().out.splitlines()
    key = first.rpartition(" ")[2]
    assert key not in "".join(entry) and len(key) > 40
    (tmp_path / "keys.yaml").write_text("\n".join(entry))
    keys = ApiKeys(tmp_path / "keys.yaml")
    found = keys.find(key)
    assert found is not None and found.name == name and found.sha256 == hash_key(key)
    assert keys.find(key + "x") is None and keys.find("") is None


@pytest.mark.parametrize("name", ["a b", "", "a, requests_per_minute: 5"])
def test_new_key_refuses_a_name_that_no_file_may_have(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["new-key", name])
    assert ended.value.code == 2
    assert "NAME: String should match" in capsys.readouterr().err


def test_endpoint_for_other_machines_needs_keys(registered: Config) -> None:
    serving = registered.serving.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(InputError, match=r"serving\.host: 0\.0\.0\.0 can be reached from other machines"):
        start_endpoint(registered.model_copy(update={"serving": serving}), ignore_status)
