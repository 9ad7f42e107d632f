"""The code of docs/statistics.md, "By hand", knows no pedbench and gives the same p-values."""

from __future__ import annotations

import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_results
from scipy.stats import norm

from pedbench.collect import collect, select
from pedbench.manifest import read_manifest, write_manifest
from pedbench.score import score_runs
from pedbench.stats import FRIEDMAN, POSTHOC, VS_BASELINE, WILCOXON, read_stats, write_stats

DOCS = Path(__file__).parents[2] / "docs" / "statistics.md"
RESAMPLES = 150


@pytest.fixture(scope="module")
def code() -> list[str]:
    """The blocks: in twenty lines, settings, bootstrap, permutation, Holm, blocks."""
    section = DOCS.read_text(encoding="utf-8").partition("## By hand")[2]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 6 and "pedbench" not in "".join(blocks)
    return blocks


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("by_hand")
    results = fake_results(root, images=60)
    for path in results.manifests.values():
        manifest = read_manifest(path)
        manifest.rows.loc[::5, "identity"] = -1  # unknown
        write_manifest(manifest, path)
    score_runs(results.folders, results.manifests, root / "scored.json")
    collect(results.folders, root / "long.parquet")
    arguments: dict[str, Any] = {"baseline": "linear_probe/default", "resamples": RESAMPLES}
    write_stats(results.folders, results.manifests, root / "stats", **arguments)
    return root


def settings(code: list[str], root: Path, row: dict[str, Any]) -> dict[str, Any]:
    """What the first block defines, for this row of vs_baseline.csv."""
    names: dict[str, Any] = {}
    exec(code[1], names)
    place = f"{row['dataset']}/{row['split']}"
    wanted = {k: row[k] for k in ("dataset", "split", "metric", "unit")} | {"results": root}
    wanted |= {"a": f"{row['method']}/{row['variant']}", "resamples": RESAMPLES}
    wanted |= {"stream": [0, zlib.crc32(place.encode())]}
    single = len(list((root / "runs" / place / wanted["a"]).glob("seed*"))) == 1
    wanted |= {"pairs": [(0, 0), (0, 1), (0, 2)] if single else [(0, 0), (1, 1), (2, 2)]}
    assert wanted.keys() < names.keys()
    return names | wanted


def test_twenty_lines(code, root):
    short, names = code[0], {}
    for old, new in (
        ('"results"', repr(str(root))),
        ("synthetic_a", "a"),
        ("lora/default", "full/default"),
        ("2000", str(RESAMPLES)),
    ):
        assert old in short
        short = short.replace(old, new)
    exec(short, names)
    tests = read_stats(root / "stats" / VS_BASELINE)
    row = select(tests, dataset="a", split="standard", metric="mA", method="full")
    assert names["p"] == pytest.approx(row["p"].item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # a draw without positives
def test_every_p_value_against_the_baseline(code, root):
    tests = read_stats(root / "stats" / VS_BASELINE)
    assert set(tests["unit"]) == {"image", "identity"} and len(tests) == 12
    for row in tests.to_dict("records"):
        names = settings(code, root, row)  # type: ignore[arg-type]
        exec(code[2] + code[3], names)
        for column in ("difference", "se_images", "se_seeds", "p", "p_permutation"):
            close = pytest.approx(row[column], rel=1e-5 if column == "p" else 1e-6)
            assert names[column] == close, (row, column)
        exec(code[4], names)
        place = tests.query(f"split == '{row['split']}'")
        np.testing.assert_allclose(names["p_holm"], place["p_holm"], rtol=1e-6)


def test_one_seed_by_hand(code, root):
    row = {"dataset": "a", "split": "standard", "metric": "mA", "method": "full"}
    names = settings(code, root, row | {"variant": "default", "unit": "image"})
    names["pairs"] = [(0, 0)]
    exec(code[2], names)
    z = abs(names["difference"]) / names["se_images"]
    assert names["se_seeds"] == 0 and names["p"] == pytest.approx(2 * norm.sf(z), rel=1e-5)


@pytest.mark.parametrize("metric", ["mA", "F1"])
def test_p_values_over_blocks(code, root, metric):
    row = {"dataset": "a", "split": "standard", "metric": metric, "unit": "image"}
    names = settings(code, root, row | {"method": "full", "variant": "default"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code[5], names)
    stats = {n: read_stats(root / "stats" / n) for n in (WILCOXON, FRIEDMAN, POSTHOC)}
    chosen = {name: select(table, metric=metric) for name, table in stats.items()}
    wilcoxon = chosen[WILCOXON].query("method == 'full'")["p"].item()
    assert names["p_wilcoxon"] == pytest.approx(wilcoxon, rel=1e-6)
    assert names["p_friedman"] == pytest.approx(chosen[FRIEDMAN]["p"].item(), rel=1e-6)
    nemenyi = names["p_nemenyi"].to_numpy()
    upper = nemenyi[~np.eye(len(nemenyi), dtype=bool)]
    np.testing.assert_allclose(upper, chosen[POSTHOC]["p"], rtol=1e-6)
