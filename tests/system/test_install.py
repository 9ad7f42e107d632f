"""What a user gets from the repository as git has it, and that a build finds the plug-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from tools import need

from pedbench import registry
from pedbench.config import ROOT

pytestmark = pytest.mark.system


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone") / "pedbench"
    run(need("git"), "clone", "--quiet", "--no-hardlinks", ROOT, folder, cwd=ROOT)
    return folder


def test_clone_keeps_links_and_plans(clone):
    assert (clone / "src/pedbench/methods").is_symlink()
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = {"PYTHONPATH": str(clone / "src"), "PATH": tools}
    said = run("snakemake", "-n", "--cores", "2", "results/tables", cwd=clone, **source)
    assert "This was a dry-run" in said


def test_wheel_holds_the_plugins(clone, tmp_path):
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, clone, cwd=tmp_path)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for kind, known in (("methods", registry.methods()), ("datasets", registry.datasets())):
        for name in known:
            assert f"pedbench/{kind}/{name}.py" in names
    assert not [name for name in names if name.startswith(("methods/", "datasets/", "tests/"))]


def test_environment_built_from_the_lock_is_consistent(clone):
    """The lock has everything pedbench and its checks ask for, in versions that agree."""
    run(sys.executable, "-m", "pip", "check", cwd=clone)
    lines = (clone / "requirements.lock").read_text().splitlines()
    locked = {_name(line) for line in lines if not line.startswith("#")}
    missing = {_name(line) for line in requires("pedbench") or ()} - locked
    assert not missing


def _name(requirement: str) -> str:
    words = re.match(r"[\w.-]+", requirement)
    assert words, requirement
    return re.sub(r"[-_.]+", "-", words[0]).lower()
