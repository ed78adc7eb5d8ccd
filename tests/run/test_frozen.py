"""The folder of a run: pinned sections, and nothing half written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from instruct_ray.files import atomic_directory, atomic_write_json, atomic_write_text
from instruct_ray.run.frozen import freeze_config


def test_later_arrows_must_agree_with_earlier_ones(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "run", "data")
    freeze_config(make_config(), "run", "data", "train")
    freeze_config(make_config(train={"epochs": 9}), "run", "data")
    with pytest.raises(InputError, match=r"train\.epochs was 1, now 9"):
        freeze_config(make_config(train={"epochs": 9}), "run", "train")
    with pytest.raises(InputError, match=r"data\.pack_tokens was 128, now 64; run\.seed was 0, now 1"):
        freeze_config(make_config(data={"pack_tokens": 64}, run={"seed": 1}), "run", "data")


def test_how_a_run_is_carried_out_may_change(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "run", "train")
    freeze_config(make_config(train={"num_workers": 8, "max_failures": 0}), "run", "train")


def test_an_added_adapter_is_a_change(make_config: Callable[..., Config]) -> None:
    freeze_config(make_config(), "model")
    with pytest.raises(InputError, match=r"model\.lora was None, now {'rank': 16"):
        freeze_config(make_config(model={"lora": {}}), "model")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError, match="killed"), atomic_directory(target) as unfinished:
        (unfinished / "file").touch()
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as unfinished:
        (unfinished / "file").touch()
        assert not target.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "file"]


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    atomic_write_text(path, "old")
    with pytest.raises(TypeError):
        atomic_write_json(path, {"not": object()})
    assert path.read_text() == "old"
    atomic_write_json(path, {"é": 1})
    assert path.read_text() == '{\n  "é": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]
