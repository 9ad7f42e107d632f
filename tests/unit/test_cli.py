"""The command line as a newcomer meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pedbench import registry, scaffold
from pedbench.cli import main
from pedbench.contracts import PedbenchError


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--params", "promptpar"]])
def test_help_and_list_import_no_torch(words):
    code = (
        "import sys\nfrom pedbench.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'open_clip', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_list_names_everything_and_its_variants(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*registry.methods(), *registry.datasets()))
    assert "region_deep" in shown


def test_a_mistake_is_one_line_without_traceback(capsys, tmp_path):
    status = main(["weights", "tiny_klip", "--out", str(tmp_path / "w.json")])
    shown = capsys.readouterr().err
    assert status == 1 and shown.startswith("pedbench: ") and shown.count("\n") == 1
    assert "tiny_clip" in shown and "Traceback" not in shown


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_scaffolds_are_written_once(kind, tmp_path):
    told = scaffold.create(kind, "demo", tmp_path)
    path = tmp_path / f"{kind}s" / "demo.py"
    assert path.is_file() and f"{kind}s/demo.py" in told and "config/config.yaml" in told
    compile(path.read_text(), str(path), "exec")
    with pytest.raises(PedbenchError, match="exists already"):
        scaffold.create(kind, "demo", tmp_path)
    with pytest.raises(PedbenchError, match="lower-case letters"):
        scaffold.create(kind, "My-Method", tmp_path)


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_scaffolds_pass_the_contract_suite(kind, tmp_path):
    """In a copy of the plug-in folders, so that the checkout is left alone."""
    import shutil

    from pedbench.config import ROOT

    for folder in ("methods", "datasets", "src", "tests", "config", "resources", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    scaffold.create(kind, "demo", tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-k", "demo"],
        ],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(tmp_path / "src"),
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
