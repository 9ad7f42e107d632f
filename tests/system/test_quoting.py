"""Paths are the user's, whatever is in them: they reach every command as one word."""

from __future__ import annotations

import json
import shutil

import pytest
from checkout import Checkout

pytestmark = pytest.mark.system
ODD = """it's "a" $(touch trap) `touch trap`; touch trap *"""


def test_roots_checkpoints_and_phrases_may_hold_anything(tmp_path):
    checkout = Checkout.make(tmp_path / "pedbench")
    place = tmp_path / ODD
    place.mkdir()
    weights = place / "tiny clip's.safetensors"
    shutil.copy(checkout.root / "resources/tiny_clip/tiny_clip.safetensors", weights)
    phrases = place / "my 'words'.csv"
    phrases.write_text("attribute,phrase,negative\nhat,with a lid,without a lid\n")
    config = {
        "protocol": "embedded",
        "backbone": "tiny_clip",
        "datasets": ["synthetic_a/standard"],
        "methods": ["zero_shot"],
        "seeds": [0],
        "roots": {"synthetic_a": f"{place}/da {{ta}}"},
        "checkpoints": {"tiny_clip": str(weights)},
        "dataset_options": {
            "synthetic_a": {"identities": 10, "images_per_identity": 2, "phrases": str(phrases)}
        },
    }
    (checkout.root / "odd.json").write_text(json.dumps(config))
    targets = ("results/manifests/synthetic_a.parquet", "results/weights/tiny_clip.json")
    checkout.snakemake(*targets, "results/plan.json", "--configfile", "odd.json")
    record = json.loads((checkout.root / targets[1]).read_text())
    assert record["file"] == str(weights)
    assert len(list((place / "da {ta}").rglob("*.png"))) == 20
    assert not list(tmp_path.rglob("trap"))
