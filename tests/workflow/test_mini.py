"""The smoke run from empty to LaTeX, again, elsewhere, with bad input, with a new method."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from checkout import Checkout

CONFIG = "config/smoke.yaml"
RESULTS = Path("results/smoke")
RUNS = RESULTS / "runs/synthetic_a/standard"
TABLES = (f"{RESULTS}/tables", "--configfile", CONFIG)
ONE_MORE = ("--config", "seeds=[0,1,2]")
AGAIN = ("--forcerun", "manifest")


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    checkout = Checkout.make(tmp_path_factory.mktemp("first") / "pedbench")
    return checkout, checkout.snakemake(*TABLES)


def trained(text: str) -> list[str]:
    """``split/method/variant`` of every training job that Snakemake announces."""
    pattern = r"rule train:.*?split=(\w+), method=(\w+), variant=([\w.-]+)"
    return sorted("/".join(names) for names in re.findall(pattern, text, re.DOTALL))


def files(checkout: Checkout, *patterns: str) -> dict[str, Path]:
    """Path below the run folders -> file, for every match."""
    base = checkout.root / RUNS
    return {str(p.relative_to(base)): p for pattern in patterns for p in base.rglob(pattern)}


def times(checkout: Checkout) -> dict[str, int]:
    return {name: path.stat().st_mtime_ns for name, path in files(checkout, "*").items()}


def contents(checkout: Checkout) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file in the seeds' folders."""
    found = files(checkout, "seed*/*")
    return {n: (p.stat().st_mtime_ns, p.read_bytes()) for n, p in found.items() if p.is_file()}


def test_from_empty_to_latex(mini):
    checkout, said = mini
    results = checkout.root / RESULTS
    methods = ["linear_probe/default", "zero_shot/default"]
    assert trained(said) == [f"{split}/{m}" for split in ("reid", "standard") for m in methods]
    assert "4 of 4 training jobs to run, about" in said  # the estimate, before the start
    assert {p.suffix for p in (results / "tables").iterdir()} >= {".csv", ".md", ".tex"}
    latex = "".join(path.read_text() for path in (results / "tables").glob("*.tex"))
    assert r"\toprule" in latex and r"\pm" in latex
    long = pq.read_table(results / "long.parquet").to_pandas()
    assert set(long["method"]) == {"zero_shot", "linear_probe"}
    assert set(long.loc[long["method"] == "linear_probe", "seed"]) == {0, 1}
    assert set(long.loc[long["method"] == "zero_shot", "seed"]) == {0}
    assert set(long["subset"]) == {"val", "test"}
    metrics = long[long["attribute"] == ""].groupby("split")["metric"].agg(set)
    assert {"mA", "F1_instance"} <= metrics["standard"] and "mA" not in metrics["reid"]
    assert {"mAP", "rank1", "mINP"} <= metrics["reid"] and "mAP" not in metrics["standard"]
    for output in ("stats", "figures", "pictures/captions.json", "mlflow.json"):
        assert (results / output).exists(), output


def test_second_invocation_does_nothing(mini):
    checkout, _ = mini
    before = times(checkout)
    for source in checkout.root.glob("methods/*.py"):
        source.touch()  # as in a fresh clone: time stamps mean nothing
    (checkout.root / "resources/tiny_clip/tiny_clip.safetensors").touch()
    assert "Nothing to be done" in checkout.snakemake(*TABLES)
    assert times(checkout) == before


def test_finished_results_are_shared_and_compared(mini, tmp_path):
    checkout, _ = mini
    bundle, imported = str(tmp_path / "smoke.zip"), ("--imported", str(tmp_path / "imported"))
    results = ("--results", str(RESULTS))
    for command, said in (
        (("export", *results, "--out", bundle), "6 runs of 2 variants"),
        (("import", bundle, "--as", "their_lab", *imported), "their_lab: unpacked"),
        (("compare", "zero_shot", "their_lab:zero_shot", *results, *imported), "are the same in"),
        (("compare", "linear_probe", "their_lab:zero_shot", *results, *imported), " is above "),
    ):
        done = checkout.run("pedbench", *command)
        assert done.returncode == 0 and said in done.stdout, done.stdout
    left_out = {"data", "figures", "pictures", "tables", "logs"}
    assert not left_out & {path.name for path in (tmp_path / "imported/their_lab").iterdir()}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file below ``folder`` but locks; MLflow names its folders at
    random."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    found = (p for p in files if "mlflow_artifacts" not in p.parts)
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


SEED = "runs/synthetic_a/standard/linear_probe/default/seed1"
AFTER_RUNS = ("scored.json", "long.parquet", "mlflow", "stats/", "figures/")
AFTER_RUNS += ("pictures/", "selection.csv", "tables/", "logs/")


RULES = {"collect", "stats", "selection", "track", "figures", "pictures", "tables"}


@pytest.mark.parametrize(
    ("name", "rules", "remade"),
    [
        pytest.param(
            SEED,
            {*RULES, "train", "cost", "score"},
            (f"{SEED}/", "cost.csv", SEED.replace("seed1", "seeds0-1.done.json"), *AFTER_RUNS),
            marks=pytest.mark.system,
        ),
        pytest.param(
            f"{SEED}/scores.test.json",
            {*RULES, "score"},
            (f"{SEED}/scores.test.json", *AFTER_RUNS),
            marks=pytest.mark.system,
        ),
        pytest.param(
            *("figures", {"figures", "tables"}, ("figures/", "tables/", "logs/")),
            marks=pytest.mark.system,
        ),
    ],
    ids=["a seed", "scores", "figures"],
)
def test_what_is_deleted_comes_back_and_nothing_else_moves(mini, tmp_path, name, rules, remade):
    checkout = Checkout(tmp_path / "pedbench")
    shutil.copytree(mini[0].root, checkout.root, symlinks=True)
    results = checkout.root / RESULTS
    before = state(results)
    path = results / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = state(results)
    checkout.snakemake("-n", *TABLES)
    checkout.snakemake(*TABLES, "--dag")
    assert state(results) == found  # planning touches nothing
    said = checkout.snakemake(*TABLES)
    assert set(re.findall(r"^\w*rule (\w+):", said, re.MULTILINE)) == rules
    after = state(results)
    assert after.keys() == before.keys()
    assert [n for n in before if after[n] != before[n] and not n.startswith(remade)] == []
    timed = [n for n in before if after[n][1] != before[n][1] and not n.startswith("logs/")]
    of_time = re.compile(r"mlflow\.db|(.*/)?cost[._].*|tables/index\..*")
    assert [name for name in timed if not of_time.fullmatch(name)] == []
    assert "Nothing to be done" in checkout.snakemake(*TABLES)


def test_prepared_pictures_may_be_deleted_and_come_back_for_new_runs(mini, tmp_path):
    checkout = Checkout(tmp_path / "pedbench")
    shutil.copytree(mini[0].root, checkout.root, symlinks=True)
    prepared = checkout.root / RESULTS / "prepared"
    before = state(prepared)
    assert len(before) == 4
    shutil.rmtree(prepared)
    assert "Nothing to be done" in checkout.snakemake(*TABLES)
    target = (f"{RESULTS}/scored.json", *TABLES[1:], *ONE_MORE)
    said = checkout.snakemake(*target)
    rules = re.findall(r"^\w*rule (\w+):", said, re.MULTILINE)
    assert rules.count("prepare") == rules.count("train") == 2  # one of either dataset
    assert {n: data for n, (_, data) in state(prepared).items()} == {
        n: data for n, (_, data) in before.items()
    }
    assert "Nothing to be done" in checkout.snakemake(*target)


@pytest.mark.system
def test_an_audit_of_epochs_repeats_finished_runs_to_the_same_bits(mini, tmp_path):
    """Added to a plan whose runs are done, or with its epochs deleted."""
    checkout = Checkout(tmp_path / "pedbench")
    shutil.copytree(mini[0].root, checkout.root, symlinks=True)
    audit = "released_selection={dataset: synthetic_a/standard, methods: [linear_probe]}"
    wanted = (f"{RESULTS}/selection.csv", "--configfile", CONFIG, "--config", audit)
    patterns = ("adapter.safetensors", "predictions.*.parquet", "scores.*.json", "metrics.jsonl")
    before = {name: path.read_bytes() for name, path in files(checkout, *patterns).items()}
    long = (checkout.root / RESULTS / "long.parquet").read_bytes()
    assert trained(checkout.snakemake(*wanted)) == ["standard/linear_probe/default"]
    after = {name: path.read_bytes() for name, path in files(checkout, *patterns).items()}
    assert after == before
    assert (checkout.root / RESULTS / "long.parquet").read_bytes() == long
    table = pd.read_csv(checkout.root / RESULTS / "selection.csv")
    assert list(table["seed"]) == [0] * 6 + [1] * 6
    assert np.all(table["released"] >= table["last_epoch"])
    assert "Nothing to be done" in checkout.snakemake(*wanted)
    shutil.rmtree(checkout.root / RUNS / "linear_probe/default/seed1/epochs")
    assert trained(checkout.snakemake("-n", *wanted)) == ["standard/linear_probe/default"]


def nothing(root: Path) -> None:
    """The mistake is in the command."""


def first_image(root: Path) -> Path:
    return min((root / RESULTS / "data/synthetic_a/images").iterdir())


def lose_an_image(root: Path) -> None:
    """The prepared pictures, which nothing misses, are gone too."""
    first_image(root).unlink()
    shutil.rmtree(root / RESULTS / "prepared")


def truncate_an_image(root: Path) -> None:
    first_image(root).write_bytes(first_image(root).read_bytes()[:200])


def move_an_image_to_val(root: Path) -> None:
    table = root / RESULTS / "data/synthetic_a/splits.csv"
    table.write_text(table.read_text().replace(",train,", ",val,", 1))


def damage_the_weights(root: Path) -> None:
    weights = root / "resources/tiny_clip/tiny_clip.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def put_a_file(name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        shutil.rmtree(root / RESULTS / name, ignore_errors=True)
        (root / RESULTS / name).write_text("not a folder")

    return spoil


def fill_the_disk(root: Path) -> None:
    """No file reaches the disk any more, in any process."""
    (root / "src/sitecustomize.py").write_text(
        "import errno, os\n"
        "def fsync(descriptor):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.fsync = fsync\n"
    )


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (nothing, ("--config", "sedes=[0]"), "unknown key 'sedes'; did you mean 'seeds'?"),
        (nothing, ("--config", "methods=[linear_prob]"), "unknown method 'linear_prob'; did you"),
        (lose_an_image, ONE_MORE, "images/00000_c0_000.png: image is missing; restore it"),
        (truncate_an_image, AGAIN, "images/00000_c0_000.png: image is truncated"),
        (move_an_image_to_val, AGAIN, "split 'standard': train 199 of 200 images"),
        (damage_the_weights, (), "tiny_clip.safetensors is corrupt"),
        (put_a_file("stats"), (), "results/smoke/stats: is a file where a folder has to be"),
        (put_a_file("logs"), ONE_MORE, "results/smoke/logs: is a file where a folder has to be"),
        (
            put_a_file("runs/synthetic_a/standard/linear_probe/default/seed2"),
            ONE_MORE,
            "default/seed2/train.done.json: cannot be written",
        ),
        (fill_the_disk, ONE_MORE, "the disk (or your quota) is full. Finished runs are untouched"),
    ],
    ids=[
        *("unknown key", "mistyped method", "missing image", "truncated image", "wrong count"),
        *("corrupt weights", "file for stats", "file for logs", "file for a run", "full disk"),
    ],
)
def test_bad_input_ends_in_one_paragraph_and_keeps_finished_runs(
    mini, tmp_path, spoil, arguments, message
):
    finished = Checkout(tmp_path / "pedbench")
    shutil.copytree(mini[0].root, finished.root, symlinks=True)
    before = contents(finished)
    assert len(before) >= 3 * 8
    spoil(finished.root)
    done = finished.run("snakemake", "--cores", "2", *TABLES, *arguments)
    assert done.returncode != 0
    assert [line for line in done.stdout.splitlines() if message in line], done.stdout
    assert "Traceback" not in done.stdout
    after = contents(finished)
    assert [name for name in before if after.get(name) != before[name]] == []


@pytest.mark.system
def test_two_complete_runs_are_byte_identical(mini, tmp_path):
    first, _ = mini
    second, name = Checkout.make(tmp_path / "elsewhere"), RESULTS / "long.parquet"
    second.snakemake(str(name), "--configfile", CONFIG, cores=1)
    patterns = ("predictions.*.parquet", "scores.*.json", "adapter.safetensors")
    ours, theirs = files(first, *patterns), files(second, *patterns)
    assert ours.keys() == theirs.keys() and len(ours) >= 3 * 4
    assert [n for n in ours if ours[n].read_bytes() != theirs[n].read_bytes()] == []
    assert (first.root / name).read_bytes() == (second.root / name).read_bytes()


def test_new_method_runs_only_its_own_jobs(mini):
    checkout, _ = mini
    before, results = times(checkout), checkout.root / RESULTS
    pictures = [*results.glob("figures/*.png"), results / "pictures/relevance.png"]
    drawn = {str(path.relative_to(results)): path.read_bytes() for path in pictures}
    assert checkout.run("pedbench", "new-method", "demo").returncode == 0
    config = checkout.root / CONFIG
    config.write_text(config.read_text().replace("linear_probe]", "linear_probe, demo]"))
    assert trained(checkout.snakemake(*TABLES)) == ["standard/demo/default"]
    after = times(checkout)
    assert all(after[name] == time for name, time in before.items())
    names = ["cost.csv", "mlflow.json", "tables/per_attribute.csv", "stats/attributes.csv"]
    names += [f"tables/{name}.csv" for name in ("standard", "parameters", "cost")]
    names += [f"stats/{name}.csv" for name in ("intervals", "vs_baseline", "all_pairs", "wilcoxon")]
    assert [name for name in names if "demo" not in (results / name).read_text()] == []
    assert "Demo" in (results / "tables/index.html").read_text()
    for name, old in drawn.items():  # every figure and map that shows methods shows one more
        assert "reid" in name or (results / name).read_bytes() != old, name


def test_editing_a_method_reruns_only_its_runs(mini):
    checkout, _ = mini
    source = checkout.root / "methods/linear_probe.py"
    source.write_text(source.read_text() + "\n# edited\n")
    again = [f"{split}/linear_probe/default" for split in ("reid", "standard")]
    assert trained(checkout.snakemake("-n", *TABLES)) == again
