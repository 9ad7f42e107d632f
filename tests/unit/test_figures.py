"""The figures: every one there, repeatable, showing the scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import SKILL, fake_results
from PIL import Image

from pedbench.collect import collect, read_long, select
from pedbench.figures import sweep_figure, write_figures
from pedbench.files import write_json
from pedbench.score import score_runs
from pedbench.stats import write_stats

SWEPT = {"promptpar/swept1": 0.8, "promptpar/swept5": 1.2}
SWEEP: Any = {
    **{"name": "prompt_length", "dataset": "a", "split": "standard"},
    "parameter": "prompt_length",
    "lines": [
        {
            **{"method": "promptpar", "base": "default"},
            "points": [
                {"value": 1, "variant": "swept1"},
                {"value": 5, "variant": "swept5"},
                {"value": 25, "variant": "default"},
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("figures")
    results = fake_results(root, splits=("standard",), skill=SKILL | SWEPT, images=40)
    refused = {**results.plan["experiments"][0], "method": "r", "folder": str(root / "refused")}
    write_json(root / "refused/refused.json", {"reason": "no"})
    experiments = [*results.plan["experiments"], refused]
    plan: dict[str, Any] = {**results.plan, "experiments": experiments, "sweeps": [SWEEP]}
    score_runs(results.folders, results.manifests, root / "scored.json")
    collect(results.folders, root / "long.parquet")
    shown = [f for f in results.folders if "swept" not in f.parent.name]
    baseline = plan["comparison"]["baseline"]
    write_stats(shown, results.manifests, root / "stats", baseline=baseline, resamples=100)
    for name in ("figures", "again"):
        write_figures(root / "long.parquet", root / "stats", plan, root / name)
    return root


def test_every_figure_is_there_twice_equal_and_dateless(drawn):
    names = {path.name for path in (drawn / "figures").iterdir()}
    stems = ("prompt_length", "methods_a_standard")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("pdf", "png")}
    for name in names:
        content = (drawn / "figures" / name).read_bytes()
        assert content == (drawn / "again" / name).read_bytes()
        assert b"CreationDate" not in content
    assert Image.open(drawn / "figures" / "prompt_length.png").width == 1400


def test_the_curve_shows_means_over_seeds_and_the_baseline(drawn):
    scores = select(read_long(drawn / "long.parquet"), subset="test", attribute="")
    figure = sweep_figure(SWEEP, scores, "F1_instance", "linear_probe/default")
    axes = figure.axes[0]
    curve, line = (np.asarray(one.get_data()) for one in (axes.lines[0], axes.lines[-1]))
    values = select(scores, metric="mA", method="promptpar")
    points = SWEEP["lines"][0]["points"]
    means = [select(values, variant=p["variant"])["value"].mean() for p in points]
    assert list(curve[0]) == [0, 1, 2]
    assert list(curve[1]) == pytest.approx(means)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "25"]
    probe = select(scores, metric="mA", method="linear_probe")["value"].mean()
    assert line[1][0] == pytest.approx(probe)


def test_a_sweep_without_baseline_or_with_missing_points_is_drawn(drawn):
    scores = select(read_long(drawn / "long.parquet"), subset="test", attribute="")
    scores = scores.query("method != 'linear_probe' and variant != 'swept1'")
    figure = sweep_figure(SWEEP, scores, "F1_instance", "linear_probe/default")
    assert list(np.asarray(figure.axes[0].lines[0].get_xdata())) == [1, 2]
    assert len(figure.axes[0].lines) == 1
