"""results/report.html: made by the DAG, with every table and picture, and it opens offline."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest
from checkout import Checkout
from tools import need

from pedbench.files import read_json

pytestmark = pytest.mark.system
PLAN = ("--configfile", "config/smoke.yaml", "--config", "results=elsewhere/mine", "seeds=[0]")
RESULTS = Path("elsewhere/mine")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout with the report of the smoke plan, changed on the command line."""
    checkout = Checkout.make(tmp_path_factory.mktemp("report") / "pedbench")
    checkout.snakemake(f"{RESULTS}/report.html", *PLAN)
    return checkout


@pytest.fixture(scope="module")
def page(made):
    return (made.root / RESULTS / "report.html").read_text(encoding="utf-8")


def variable(page: str, name: str):
    found = re.search(rf"^ *var {name} = ([\[{{\"].*);$", page, re.MULTILINE)
    assert found, name
    return json.loads(found[1])


def test_every_table_and_picture_is_in_it(made, page):
    results, shown = made.root / RESULTS, variable(page, "results")
    wanted = {p for p in results.glob("tables/**/*.html") if p.name != "index.html"}
    pictures = [p for folder in ("figures", "pictures") for p in results.glob(f"{folder}/*.png")]
    wanted |= set(pictures)
    assert len(wanted) > 10 and {made.root / path for path in shown} == wanted
    for path, entry in shown.items():
        content = base64.b64decode(entry["data_uri"].partition("base64,")[2])
        assert content == (made.root / path).read_bytes()
        assert entry["caption"] and all(entry["labels"].values())
    for picture in pictures:
        caption = read_json(picture.with_name("captions.json"))[picture.stem]
        entry = shown[str(picture.relative_to(made.root))]
        assert entry["labels"]["Figure"] == caption["title"]
        assert caption["caption"].split()[0] in entry["caption"]


def test_it_says_what_was_run(page):
    about = variable(page, "workflow_desc")
    for text in ("synthetic_a, standard split", "Linear probe", "results: elsewhere/mine"):
        assert text in about
    assert "with the seeds 0, under" in about
    categories = list(variable(page, "categories"))
    assert sorted(categories) == ["1 Tables", "2 Figures", "3 Tables of papers"]
    timed = {entry["rule"] for entry in variable(page, "runtimes_spec")["data"]["values"]}
    assert timed >= {"train", "score", "stats", "figures", "pictures", "tables", "track"}


def test_it_is_made_once(made):
    assert "Nothing to be done" in made.snakemake(f"{RESULTS}/report.html", *PLAN)


def test_a_browser_without_network_shows_it(made, page):
    assert len(page) < 15e6
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", page)
    command = [need("chromium"), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    command += ["--dump-dom", (made.root / RESULTS / "report.html").as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    menu = done.stdout.partition('id="app"')[2]
    for text in ("Statistics", "1 Tables", "2 Figures", "Comparison of methods"):
        assert text in menu
    assert "<canvas" in menu or "<svg" in menu.partition("Comparison of methods")[2]  # the graph
