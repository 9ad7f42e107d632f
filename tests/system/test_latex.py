"""All tables, the papers' among them, compile in one document."""

from __future__ import annotations

import re
import subprocess

import pytest
from helpers import fake_results
from tools import need

from pedbench.collect import collect
from pedbench.score import score_runs
from pedbench.stats import write_stats
from pedbench.tables.write import write_tables

PREAMBLE = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,graphicx,amssymb}
\begin{document}
"""


@pytest.mark.system
def test_all_tables_compile_in_one_document(tmp_path):
    pdflatex = need("pdflatex")
    skill = {"zero_shot": 0.2, "linear_probe": 1.0, "my_50%_method": 1.2}
    results = fake_results(
        tmp_path, ("peta", "rapv1", "a_b"), ("standard", "trainval"), skill, images=30
    )
    score_runs(results.folders, results.manifests, tmp_path / "scored.json")
    collect(results.folders, tmp_path / "long.parquet")
    baseline = "linear_probe/default"
    write_stats(
        results.folders, results.manifests, tmp_path / "stats", baseline=baseline, resamples=20
    )
    names = {"cost": COST, "selection": SELECTION}
    for name, text in names.items():
        (tmp_path / f"{name}.csv").write_text(text)
    more = {name: tmp_path / f"{name}.csv" for name in names}
    args = tmp_path / "long.parquet", tmp_path / "stats", [], results.plan
    write_tables(*args, tmp_path / "tables", **more)
    found = sorted((tmp_path / "tables").rglob("*.tex"))
    assert len(found) >= 2 + 2 + 9
    parts = [f"\\input{{{path}}}\\clearpage\n" for path in found]
    (tmp_path / "all.tex").write_text(PREAMBLE + "".join(parts) + "\\end{document}\n")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"({len(found)} pages" in done.stdout
    wide = re.findall(r"Overfull \\hbox \(([\d.]+)pt", done.stdout)
    assert [float(points) for points in wide if float(points) > 1] == []


COST = """\
dataset,split,method,variant,device,threads,parameters_allocated,parameters_trained,\
parameters_effective,share_of_full,adapter_bytes,gflop_per_image,train_images_per_s,latency_ms_1,\
images_per_s_1,images_per_s_8,images_per_s_32,train_peak_mb,predict_peak_mb,seconds_fit,\
device_of_runs,energy_j_per_image
peta,standard,linear_probe,default,A 50% CPU_1,1,2000,1000,1000,0.5,4096,0.01,100,2,4,5,6,5,4,1,\
A 50% CPU_1,
peta,standard,zero_shot,default,Big & GPU,,0,0,0,0,,0.01,,2,500,600,700,,30,,,
"""
SELECTION = """\
dataset,split,method,variant,seed,metric,last_epoch,validation,released,epoch_last,\
epoch_validation,epoch_released
a_b,standard,linear_probe,default,0,mA,0.70,0.71,0.74,8,7,3
a_b,standard,linear_probe,default,0,F1_instance,0.70,0.71,0.74,8,7,3
"""
