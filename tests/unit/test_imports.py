"""Imports point one way, the planner needs no torch, and the two folder names are safe."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pedbench import registry

SOURCE = Path(registry.__file__).parent
LAYERS = (
    {
        "addresses",
        "contracts",
        "_torchvision_guard",
        "files",
        "paths",
        "schedules",
        "registry",
        "devices",
        "launch",
        "memory",
        "stopping",
        "together",
    },
    {"nn", "world", "config", "tasks", "manifest", "checkpoint", "formats", "phrases", "weights"},
    {"data", "plan", "prepared", "runs", "results"},
    {
        "engine",
        "predict",
        "train",
        "trained",
        "tune",
        "score",
        "collect",
        "published",
        "evaluation",
    },
    {"stats"},
    {"figures", "tables"},
    {"stages"},  # whatever is not named in another layer
    {"cli"},
)
PLUGINS_MAY = {
    "method": ("contracts", "nn", "tasks"),
    # one dataset may be another's images, divided anew: PETA-ZS those of PETA
    "dataset": ("contracts", "world", "formats", "paths", "datasets"),
}


def imported(path: Path, lazy: bool = True) -> set[str]:
    """What ``path`` imports of pedbench: modules, and names in them as ``module.name``;
    type-checking imports do not count."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree) if lazy else tree.body:
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("pedbench.") for name in found if name.startswith("pedbench.")}


def modules() -> dict[str, Path]:
    """The core: every module of ``src/pedbench`` but the plug-ins. A package's ``__init__`` is
    the module of its name."""
    paths = {path.relative_to(SOURCE): path for path in SOURCE.rglob("*.py")}
    return {
        ".".join((path.parent if path.stem == "__init__" else path.with_suffix("")).parts): file
        for path, file in paths.items()
        if path.parts[0] not in ("methods", "datasets", "__init__.py")
    }


def top(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    names_of = (i for i, names in enumerate(LAYERS) if top(module) in names)
    return next(names_of, len(LAYERS) - 2)


def test_core_imports_downwards_only():
    for name, path in modules().items():
        for other in imported(path, lazy=name != "contracts"):
            assert layer(other) <= layer(name), f"{name} imports {other}, which is above it"


def test_core_imports_have_no_cycle():
    known = modules()
    graph = {
        name: {
            other if other in known else other.rpartition(".")[0]
            for other in imported(path, lazy=name != "contracts")
        }
        for name, path in known.items()
    }
    packages: dict[str, set[str]] = {top(name): set() for name in known}
    for name, others in graph.items():
        packages[top(name)] |= {top(other) for other in others} - {top(name)}
    for edges in (graph, packages):
        TopologicalSorter(edges).prepare()  # raises CycleError


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_plugins_import_what_they_may(kind):
    names = registry.methods() if kind == "method" else registry.datasets()
    for name in names:
        for other in imported(registry.source_path(kind, name)):
            assert top(other) in PLUGINS_MAY[kind], f"{kind} {name} imports {other}"


def test_core_names_no_plugin():
    for name, path in modules().items():
        for other in imported(path):
            assert top(other) not in ("methods", "datasets"), f"{name}: {other}"


@pytest.mark.parametrize("command", ["--help", "list"])
def test_command_starts_without_torch(command):
    code = f"""
import sys
from pedbench.cli import main
try:
    main(["{command}"])
except SystemExit:
    pass
import pedbench.config, pedbench.plan, pedbench.registry
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_planning_imports_no_tables():
    """The Snakefile is read again for every job."""
    snakefile = (SOURCE.parents[1] / "Snakefile").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"^from (pedbench[\w.]*) import", snakefile, re.MULTILINE)))
    code = f"""
import sys
import {", ".join(names)}
assert not {{"pandas", "pyarrow", "torch", "optuna"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_plugin_links_resolve():
    for kind in ("methods", "datasets"):
        link = SOURCE / kind
        assert link.is_symlink() and str(link.readlink()) == f"../../{kind}"
        assert not (link / "__init__.py").exists()


def test_our_datasets_folder_does_not_pose_as_a_library():
    spec = importlib.util.find_spec("datasets")
    assert spec is None or "site-packages" in str(spec.origin)
