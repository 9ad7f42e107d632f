"""The command line as a newcomer meets it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import yaml

from pedbench import doctor, registry, scaffold
from pedbench.cli import main
from pedbench.config import ROOT
from pedbench.contracts import TINY, PedbenchError


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["list", "--params", "promptpar"], ["cite"]]
)
def test_help_list_and_cite_import_no_torch(words):
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
    assert all(word in shown for word in ("region_deep", "embedded, embedded_reid", "equal_budget"))
    about = {name: registry.summary("method", name) for name in registry.methods()}
    about |= {name: registry.summary("dataset", name) for name in registry.datasets()}
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    at = {lines[name].index(text) for name, text in about.items()}
    assert len(at) == 1  # whatever the longest name


def test_list_says_what_is_for_which_task(capsys):
    assert main(["list"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]

    def below(name: str) -> list[str]:
        start = next(i for i, line in enumerate(lines) if line.split()[0] == name)
        return lines[start + 1 : start + 3]

    assert below("clip_reid")[0] == "tasks: reid" and below("lora")[0] == "tasks: par, reid"
    assert below("market1501_attributes") == ["par: trainval", "reid: reid, reid_val"]


def test_help_keeps_the_steps_of_the_workflow_apart(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands, steps = capsys.readouterr().out.split("steps of the workflow, called by its rules:")
    assert "pedbench doctor --dataset peta --root " in steps
    assert "  doctor " in commands and "  train " not in commands
    assert "  train " in steps and "  tune " in steps and "  doctor " not in steps.split("exam")[0]


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


def test_a_scaffolded_dataset_names_the_row_of_a_bad_label(tmp_path):
    scaffold.create("dataset", "demo", tmp_path)
    module: dict[str, Any] = {"__name__": "demo"}
    exec((tmp_path / "datasets" / "demo.py").read_text(), module)
    header = "image,subset,hat,backpack,shorts\n"
    (tmp_path / "labels.csv").write_text(f"{header}0.png,train,1,0,1\n1.png,train,0,yes,1\n")
    with pytest.raises(PedbenchError, match=r"labels.csv: row of image '1.png': backpack is 'yes'"):
        list(module["Dataset"]().records(tmp_path))


def test_doctor_checks_the_weights_named_in_the_config(tmp_path):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"none")
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"checkpoints": {TINY: str(file)}}))
    with pytest.raises(PedbenchError, match=f"^{file} is no readable safetensors file"):
        doctor._weights(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert doctor._weights(tmp_path / "c.yaml").startswith("tiny_clip, sha256 ")


@pytest.fixture
def division(tmp_path, monkeypatch):
    """A folder of PETA without the published zero-shot division, and a config that names it."""
    for name in ("PETA", "PETA_ZS"):
        monkeypatch.delenv(f"PEDBENCH_ROOT_{name}", raising=False)
    root = tmp_path / "data"
    dataset = registry.load_dataset("peta_zs")
    dataset.fake(root, np.random.default_rng(0))
    for pickle in root.rglob("*.pkl"):
        pickle.unlink()
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    config |= {"roots": {"peta": str(root)}}
    config |= {"dataset_options": {"peta_zs": {"check_counts": False}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return root, tmp_path / "c.yaml"


def test_doctor_reads_folder_and_options_of_the_config(division, capsys):
    """And names the splits that cannot be used."""
    root, config = division
    assert main(["doctor", "--dataset", "peta_zs", "--configfile", str(config)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"PETA-ZS in {root} (")
    assert [line.split(":")[0] for line in said if line.startswith("split ")] == [
        "split zero_shot_rebuilt"
    ]
    assert said[-1] == (
        "all is well, but 2 splits cannot be used: zero_shot, zero_shot_trainval (no train or no "
        "test images)"
    )
    assert main(["doctor", "--dataset", "peta_zs", "--root", str(root)]) > 0  # counts are checked


def test_doctor_takes_the_folder_it_stands_in(division, monkeypatch, capsys):
    root, _ = division
    monkeypatch.chdir(root)
    assert main(["doctor", "--dataset", "peta_zs", "--root", ".", "--any-counts"]) == 0
    assert "PETA-ZS in . (" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--root", "."], ["--decode"], ["--any-counts"]])
def test_doctor_ignores_no_option(option, capsys):
    assert main(["doctor", *option]) == 1
    assert "need --dataset NAME" in capsys.readouterr().err


def test_doctor_tells_what_a_plan_leaves_out(tmp_path, capsys):
    config = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    config["datasets"] = [*config["datasets"], "peta/trainval"]
    config |= {"roots": {"peta": "/nowhere"}, "absent_data": "skip"}
    config |= {"results": str(tmp_path)}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    said = doctor._config(tmp_path / "c.yaml").splitlines()
    assert said[1].startswith("note  no data, so left out: peta (/nowhere is no folder)")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"absent_data": "refuse"}))
    assert main(["doctor", "--configfile", str(tmp_path / "c.yaml")]) == 1
    said = capsys.readouterr().out
    assert said.count("roots: peta (PETA): no data (/nowhere is no folder)") == 1
    assert said.endswith("\n1 to mend, each said above\n")


@pytest.mark.parametrize("kind", ["method", "dataset"])
def test_scaffolds_pass_the_contract_suite(kind, tmp_path):
    """In a copy of the plug-in folders, so that the checkout is left alone; with the methods, the
    one that docs/reid.md shows."""
    import shutil

    for folder in ("methods", "datasets", "src", "tests", "config", "resources", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    scaffold.create(kind, "demo", tmp_path)
    if kind == "method":
        [shown] = re.findall(
            r'^```python\n(""".*?)^```',
            (ROOT / "docs/reid.md").read_text(),
            re.DOTALL | re.MULTILINE,
        )
        (tmp_path / "methods/last_mlps.py").write_text(shown)
    done = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-rA"],
            *["-k", "demo or (last_mlps and reid)"],
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
    assert kind == "dataset" or re.search(r"PASSED .*last_mlps.*reid", done.stdout)
