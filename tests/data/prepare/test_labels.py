"""`data.labels`: a row with another output is rejected by name, and the contract lists the labels."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from instruct_ray.config.schema import Config
from instruct_ray.data.prepare.pipeline import prepare
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.run.folder import RunFolder
from tests.fakes import ray_is_running

LABELS = ["High", "Low"]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """40 rows with a label, and one with a misspelled one."""
    rows = [{"instruction": "Rate", "input": f"report {number}", "output": LABELS[number % 2]} for number in range(40)]
    rows.insert(7, {"instruction": "Rate", "input": "a typo", "output": "Hihg"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("ray_4_cpus")
def test_row_with_another_output_is_quarantined(make_config: Callable[..., Config], rows_file: Path) -> None:
    config = make_config(data={"sources": [rows_file], "labels": LABELS, "max_bad_fraction": 0.1})
    manifest = prepare(config, ray_is_running).dataset.manifest
    assert manifest["fates"]["quarantined"] == 1
    assert manifest["quarantine_reasons"] == {"not_a_label": 1}
    contract = PromptContract.load(RunFolder.from_config(config).contract_file)
    assert contract.labels == LABELS


@pytest.mark.usefixtures("ray_4_cpus")
def test_too_many_other_outputs_are_refused_with_row_and_output(
    make_config: Callable[..., Config], rows_file: Path
) -> None:
    config = make_config(data={"sources": [rows_file], "labels": LABELS})
    with pytest.raises(InputError, match=r"row 8 has the output 'Hihg', which is not in data\.labels"):
        prepare(config, ray_is_running)


def test_labels_change_the_digest_of_a_contract_and_their_absence_does_not() -> None:
    contract = PromptContract("0" * 64, "", None, "{instruction}", None, 0, 1)
    assert "labels" not in contract.digest
    assert PromptContract(**{**vars(contract), "labels": LABELS}).digest != contract.digest


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"labels": ["High"]}}, "at least 2 items"),
        ({"data": {"labels": ["High", "High"]}}, "'High' is there twice"),
        ({"data": {"labels": ["High", ""]}}, "at least 1 character"),
        ({"serving": {"only_labels": True}}, "need data.labels"),
        ({"evidence": {"only_labels": True}}, "need data.labels"),
    ],
)
def test_wrong_options_are_refused(
    make_config: Callable[..., Config], sections: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**sections)
