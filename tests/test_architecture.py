"""Who may import whom: each room those to its left in design order, never to its right."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors", "worker_env", "config_errors", "config", "config_file", "run", "lease", "tracking", "versions",
    "gguf_file", "base", "data", "inference", "training", "evidence", "registry", "serving",
]  # fmt: skip
# Seen by all, sees none.
APART = {"console"}
# Heavy or environment-sensitive: few doors.
DOORS = {
    "deepspeed": {"training/zero.py"},
    "mlflow": {"tracking/client.py", "tracking/carrier.py", "tracking/tracked_run.py", "versions.py"},
    "ray.serve": {"serving/app.py", "serving/gateway.py"},
}
FILES = sorted((ROOT / "instruct_ray").rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    return name.removeprefix("instruct_ray.").split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = path.relative_to(ROOT / "instruct_ray").with_suffix("").parts[0]
    if here in ("cli", "__init__"):
        return
    for name in imports(path):
        if name.startswith("jobs"):
            pytest.fail(f"{path} imports {name}: the library does not know its jobs")
        if name.startswith("instruct_ray.") and room(name) not in APART | {here}:
            assert here not in APART, f"{path} imports {name}"
            assert ORDER.index(room(name)) < ORDER.index(here), f"{path} imports {name}, to its right"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_few_doors_to_heavy_packages(path: Path) -> None:
    relative = str(path.relative_to(ROOT / "instruct_ray"))
    for package, doors in DOORS.items():
        uses = any(name == package or name.startswith(f"{package}.") for name in imports(path))
        assert not uses or relative in doors, f"{relative} imports {package}"


def test_every_room_is_in_the_order() -> None:
    rooms = {path.relative_to(ROOT / "instruct_ray").with_suffix("").parts[0] for path in FILES}
    assert rooms == {*ORDER, *APART, "cli", "__init__"}


def test_files_stay_small() -> None:
    # All options on one page.
    few = {"instruct_ray/config.py"}
    sizes = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    long = {name: size for name, size in sizes.items() if size > 260 and name not in few}
    assert not long
