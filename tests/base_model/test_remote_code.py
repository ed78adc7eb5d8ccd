"""No code from a model or data set is run: every call that could run it says so, whatever the library's default."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("instruct_ray", "jobs") for path in (ROOT / folder).rglob("*.py"))
AUTO_METHODS = ("from_pretrained", "from_config")


def find_calls(source: str) -> list[ast.Call]:
    """Calls of transformers' Auto classes, of `pipeline`, and of datasets' loaders."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and may_run_code(node.func)]


def may_run_code(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in ("pipeline", "load_dataset", "load_dataset_builder")
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr in ("load_dataset", "load_dataset_builder"):
        return True
    owner = function.value
    return function.attr in AUTO_METHODS and isinstance(owner, ast.Name) and owner.id.startswith("Auto")


def refuses_code(call: ast.Call) -> bool:
    return any(
        keyword.arg == "trust_remote_code" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        for keyword in call.keywords
    )


def test_every_call_refuses_remote_code() -> None:
    calls = {f"{path.relative_to(ROOT)}:{call.lineno}": call for path in FILES for call in find_calls(path.read_text())}
    assert len(calls) > 4
    assert not [place for place, call in calls.items() if not refuses_code(call)]


@pytest.mark.parametrize(
    ("source", "is_refused"),
    [
        ("AutoConfig.from_pretrained(folder)", False),
        ("AutoModelForCausalLM.from_config(config, trust_remote_code=True)", False),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)", False),
        ("datasets.load_dataset(name)", False),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=False)", True),
    ],
)
def test_calls_are_recognized(source: str, is_refused: bool) -> None:
    [call] = find_calls(source)
    assert refuses_code(call) == is_refused
