"""``pedbench rerank``: a run's kept features, ranked again."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fake_mixed_results

from pedbench.cli import main
from pedbench.evaluation import evaluation
from pedbench.manifest import read_manifest
from pedbench.results import read_run

RUN = "runs/r/reid/linear_probe/default/seed0"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reranked") / "results"
    fake_mixed_results(root, skill={"linear_probe": 0.6}, seeds=(0,), images=5)
    return root


def rerank(capsys, folder: Path, *options: str) -> tuple[int, list[str], str]:
    """Status, lines and error."""
    status = main(["rerank", "--run", str(folder), *options])
    shown = capsys.readouterr()
    return status, shown.out.splitlines(), shown.err


@pytest.mark.parametrize("subset", ["val", "test"])
def test_the_metrics_without_and_with_it(root, subset, capsys):
    _, lines, _ = rerank(capsys, root / RUN, "--subset", subset)
    counted = "28 queries, 1 of them skipped, 28 gallery images"
    assert lines[0] == f"r/reid/linear_probe/default/seed0, {subset}: {counted}"
    assert lines[2].split() == ["mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"]
    found = evaluation(read_run(root / RUN), read_manifest(root / "manifests/r.parquet"), subset)
    expected = [f"{100 * value:.2f}" for value in found.scores()["overall"].values()]
    assert lines[3].split()[2:] == expected != lines[4].split()[1:]
    assert lines[-1] == "The tables of the suite never contain re-ranked numbers."


def test_its_settings_are_taken(root, capsys):
    _, usual, _ = rerank(capsys, root / RUN)
    _, original, _ = rerank(capsys, root / RUN, "--weight", "1", "--k1", "7")
    assert original[3].split()[2:] == original[4].split()[1:] != usual[4].split()[1:]
    assert "k1 = 7, k2 = 6, weight 1." in original[-2]
    assert rerank(capsys, root / RUN, "--k2", "2")[1][4] != usual[4]


def test_what_cannot_be_ranked_again_is_said(root, tmp_path, capsys):
    status, _, error = rerank(capsys, root / "runs/a/standard/linear_probe/default/seed0")
    assert status == 1 and "a run of attribute recognition, which ranks nothing" in error
    assert "config.json: no such file" in rerank(capsys, root / "runs/r/reid")[2]
    (tmp_path / "seed0").symlink_to(root / RUN)
    assert "not below a folder of results" in rerank(capsys, tmp_path / "seed0")[2]
    (root / RUN / "predictions.val.parquet").unlink()
    assert (
        "predictions.val.parquet: no such file" in rerank(capsys, root / RUN, "--subset", "val")[2]
    )
    (root / "manifests/r.parquet").unlink()
    assert "r.parquet: no such manifest" in rerank(capsys, root / RUN)[2]
