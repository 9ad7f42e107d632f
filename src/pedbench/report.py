"""``results/report.html``: Snakemake's own report of a finished plan, one file, offline."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pedbench.config import protocol_of
from pedbench.contracts import PedbenchError
from pedbench.files import read_captions, read_json, write_atomic
from pedbench.plan import TASKS, Plan
from pedbench.results import display_name

STYLE = "workflow/report/style.css"
PICTURES = ("figures", "pictures")
MARKUP = re.compile(r"([\\*`_|])")  # of reStructuredText


def write_report(config: Mapping[str, Any], out: Path) -> None:
    """Let Snakemake report what it made with ``config``, all of whose tables are there.

    A second Snakemake does it while the first one waits, so that the report is a file like any
    other: without a lock, and with the whole config, whatever the first one merged it from.
    Raises PedbenchError when it fails.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent) as folder:
        plan, made = Path(folder, "config.json"), Path(folder, "report.html")
        plan.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", f"{config['results']}/tables"]
        command += ["--report", str(made), "--report-stylesheet", STYLE]
        command += ["--configfile", str(plan)]
        command += ["--nolock", "--workflow-profile", "none", "--rerun-triggers", "mtime"]
        done = subprocess.run(
            command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        print(done.stdout, flush=True)
        if done.returncode or not made.is_file():
            raise PedbenchError(f"{out}: Snakemake could not make its report; it says why above")
        write_atomic(out, lambda temporary: shutil.copyfile(made, temporary))


def texts(plan: Plan) -> dict[str, Any]:
    """What the templates in ``workflow/report/`` show: ``entries``, the title, caption and category
    of every table and picture by its path without the ending, and facts on the plan.

    Empty entries where nothing was made yet.
    """
    results = Path(plan.results)
    entries: dict[str, dict[str, str]] = {}
    for page in sorted((results / "tables").rglob("*.html")):
        title = re.search("<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.DOTALL)
        entries[str(page.with_suffix(""))] = {
            "title": html.unescape(title[1]) if title else page.stem
        }
    for folder in PICTURES:
        for stem, entry in read_captions(results / folder).items():
            entries[str(results / folder / stem)] = {**entry, "caption": escaped(entry["caption"])}
    shown = [e for e in plan.experiments if e.in_tables]
    machines = [read_json(path) for path in sorted(results.glob("runs/*/*/*/*/*/environment.json"))]
    return {
        "entries": entries,
        "tasks": list(dict.fromkeys(TASKS[protocol_of(e.spec).task] for e in shown)),
        "protocols": list(dict.fromkeys(escaped(protocol_of(e.spec).name) for e in shown)),
        "places": list(dict.fromkeys(f"{e.dataset}, {e.split} split" for e in shown)),
        "methods": list(dict.fromkeys(escaped(display_name(e.method, e.variant)) for e in shown)),
        "sweeps": [escaped(name) for name in dict.fromkeys(s.name for s in plan.sweeps)],
        "runs": sum(len(e.seeds) for e in plan.experiments),
        "commits": sorted(
            {str(m["commit"])[:12] + " (with local changes)" * m["dirty"] for m in machines}
        ),
        "devices": sorted({str(m["device"]) for m in machines}),
        "config": yaml.safe_dump(dict(plan.config), allow_unicode=True).rstrip(),
    }


def escaped(text: str) -> str:
    """``text`` as reStructuredText prints it."""
    return MARKUP.sub(r"\\\1", text)
