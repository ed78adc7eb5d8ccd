"""The rules of the tree: which package may import which, in which process a module runs, how long a file may be."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "instruct_ray"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
# Each may import those before it, never those after it.
ORDER = (
    "errors", "background", "files", "console", "runtime_env", "config", "run", "tracking", "base_model", "data",
    "inference", "training", "doctor", "evidence", "registry", "serving", "submission", "cli", "__main__",
)  # fmt: skip
# The same inside two packages.
INNER_ORDERS = {
    "data": (
        "row_id", "example", "ledger", "ray_tasks", "sources", "rendering", "packs", "open_run", "report", "prepare",
        "preview",
    ),
    "training": (
        "distributed", "model", "checkpoint", "export", "validation", "capacity", "worker", "driver",
    ),
}  # fmt: skip
# In which process a module of `training/` runs: its docstring begins with one of these.
PROCESSES = (
    "driver", "worker, all ranks", "worker, rank 0", "validation task", "controller callback", "pure",
)  # fmt: skip
# Libraries that are heavy or depend on the environment are imported by few modules.
IMPORTERS = {
    "deepspeed": {"training/distributed/deepspeed_internals.py", "training/distributed/checkpoint_weights.py"},
    "mlflow": {
        "tracking/mlflow_client.py", "tracking/uploader.py", "tracking/calls.py", "tracking/registry_reader.py",
        "tracking/run_page.py",
    },
    "lm_eval": {"evidence/benchmarks/harness.py"},
    "ray.serve": {
        "serving/app.py", "serving/gateway.py", "serving/answer_sender.py", "serving/answer_reader.py",
        "serving/endpoint_metrics.py", "serving/errors.py", "serving/peer_version.py", "serving/probe.py",
        "serving/replica_metrics.py", "serving/served_version.py", "cli/stages/serve.py",
    },
    "ray.job_submission": {"submission/job_server.py"},
    "ray.util.metrics": {"training/driver/run_metrics.py"},
    "typer": {"cli/main.py", "cli/arguments.py", "cli/cluster_commands.py"},
    "vllm": {
        "inference/vllm_engine.py", "inference/vllm_grammars.py", "inference/vllm_requests.py",
        "inference/vllm_settings.py",
    },
}  # fmt: skip
MAX_LINES = 300


@cache
def find_imports(path: Path) -> frozenset[str]:
    """Full names of all that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def find_violations(path: Path, package: str, order: tuple[str, ...]) -> list[str]:
    """Imports of a module of `package` that do not point to an earlier part of it."""
    folder = ROOT / package.replace(".", "/")
    here = path.relative_to(folder).with_suffix("").parts[0]
    parts = [
        name.removeprefix(f"{package}.").split(".")[0] for name in find_imports(path) if name.startswith(f"{package}.")
    ]
    return [part for part in parts if part != here and order.index(part) > order.index(here)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    assert not any(name.split(".")[0] in ("jobs", "tests") for name in find_imports(path))
    assert not find_violations(path, "instruct_ray", ORDER)


@pytest.mark.parametrize("package", INNER_ORDERS)
def test_imports_point_one_way_inside(package: str) -> None:
    paths = [path for path in FILES if path.is_relative_to(PACKAGE / package)]
    order = INNER_ORDERS[package]
    violations = {str(path): find_violations(path, f"instruct_ray.{package}", order) for path in paths}
    assert not {path: parts for path, parts in violations.items() if parts}


def test_no_import_cycles() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    imports = {
        module: {name for full in find_imports(path) for name in (full, full.rpartition(".")[0]) if name in modules}
        for module, path in modules.items()
    }
    while leaves := {module for module, names in imports.items() if not names & imports.keys()}:
        imports = {module: names for module, names in imports.items() if module not in leaves}
    assert not imports, f"modules in or above a cycle: {sorted(imports)}"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.is_relative_to(PACKAGE / "training")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_training_module_names_its_process(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.match(rf"({'|'.join(PROCESSES)}): \S", docstring), docstring.partition("\n")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_have_few_importers(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    for package, importers in IMPORTERS.items():
        uses = any(name == package or name.startswith(f"{package}.") for name in find_imports(path))
        assert not uses or relative in importers, f"{relative} imports {package}"


def test_every_part_is_in_its_order() -> None:
    def parts(folder: Path) -> set[str]:
        return {path.relative_to(folder).with_suffix("").parts[0] for path in FILES if path.is_relative_to(folder)}

    assert parts(PACKAGE) == set(ORDER)
    for package, order in INNER_ORDERS.items():
        assert parts(PACKAGE / package) == set(order)


def test_files_stay_small() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {path: num_lines for path, num_lines in lines.items() if num_lines > MAX_LINES}
