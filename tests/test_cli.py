"""The operator's desk (promote and rollback are tested on a real registry in jobs/test_way.py)."""

import json

import pytest

from instruct_ray import cli


def test_the_schema_describes_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["schema"])
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["run", "model", "data", "registry"]
    assert schema["$defs"]["TrainConfig"]["properties"]["zero_stage"]["description"].startswith("DeepSpeed ZeRO")
