"""Small, deterministic things most tests need: a backbone with random weights, a dataset."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from pedbench.contracts import Attribute, BaseDataset, DatasetSpec, Record, Subset
from pedbench.intake import build_manifest
from pedbench.manifest import Manifest

ATTRIBUTES = (
    Attribute("hat", "head", "wearing a hat", "without a hat"),
    Attribute("backpack", "upper", "carrying a backpack", "without a backpack"),
    Attribute("trousers", "lower", "wearing trousers", "without trousers"),
    Attribute("boots", "feet", "wearing boots", "without boots"),
    Attribute("female", "whole", "who is a woman", "who is a man"),
)
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": [64, 32], "patch_size": 8, "width": 32, "layers": 4, "head_width": 16,
    },
    "text_cfg": {
        "context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
    },
}  # fmt: skip


class NoiseDataset(BaseDataset):
    """Noise pictures whose brightness of a band depends on the label, so there is something to
    learn; 48 train, 16 val, 16 test, or train and val together as ``trainval``. As ``reid`` every
    four pictures show a person, by three cameras, and the first of them is the query."""

    SPEC = DatasetSpec(
        "noise", "none", ATTRIBUTES, ("standard", "trainval", "reid"), reid=("reid",)
    )
    COUNTS: ClassVar[dict[Subset, int]] = {"train": 48, "val": 16, "test": 16}

    def expected(self, options):
        return {"standard": self.COUNTS, "trainval": {"train": 64, "test": 16}, "reid": self.COUNTS}

    def generate(self, root: Path, options) -> None:
        rng = np.random.default_rng(0)
        root.mkdir(parents=True, exist_ok=True)
        labels = rng.integers(0, 2, (80, len(ATTRIBUTES)))
        for index, row in enumerate(labels):
            picture = rng.integers(0, 120, (64, 32, 3))
            for band, value in enumerate(row):
                picture[band * 12 : band * 12 + 10] += 100 * value
            Image.fromarray(picture.astype(np.uint8)).save(root / f"{index:03d}.png")
        np.savetxt(root / "labels.csv", labels, fmt="%d", delimiter=",")

    def records(self, root: Path) -> Iterator[Record]:
        labels = np.loadtxt(root / "labels.csv", delimiter=",", dtype=int)
        subsets: list[Subset] = [name for name, n in self.COUNTS.items() for _ in range(n)]
        for index, (row, subset) in enumerate(zip(labels, subsets, strict=True)):
            labels_of = tuple(int(v) for v in row)
            both: Subset = "test" if subset == "test" else "train"
            where: dict[str, Subset] = {"standard": subset, "trainval": both, "reid": subset}
            asks = ("reid",) if index % 4 == 0 and subset != "train" else ()
            image, person, camera = f"{index:03d}.png", index // 4, index % 3
            yield Record(image, labels_of, where, person, camera, queries=asks)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Manifest:
    root = tmp_path_factory.mktemp("noise")
    dataset = NoiseDataset()
    dataset.generate(root / "data", {})
    return build_manifest("noise", dataset, root / "data", {}, root / "noise.parquet")


@pytest.fixture(scope="session")
def backbone():
    """A CLIP of four layers with random weights and CLIP's full vocabulary."""
    from pedbench.nn.backbone import Backbone

    return Backbone.from_config(MODEL, name="random", seed=1)


@pytest.fixture
def prepare(tmp_path, manifest, backbone, monkeypatch):
    """Write the inputs of a job of ``method`` in a fresh folder; returns the job's arguments."""
    from pedbench.config import read_protocol, resolve
    from pedbench.files import write_json
    from pedbench.manifest import write_manifest

    monkeypatch.setattr("pedbench.train.load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr("pedbench.label.load_backbone", lambda name, file: backbone)

    def inputs(method="linear_probe", split="standard", folder="v", **values):
        swept = {"epochs": 2, **values}
        kind = ("embedded_reid", "tiny_clip_reid") if split == "reid" else ("embedded", "tiny_clip")
        spec = resolve(method, "default", read_protocol(kind[0], kind[1:]), swept, "test")
        names = {"dataset": "noise", "split": split, "method": method, "variant": "default"}
        write_json(tmp_path / folder / "config.json", {**names, "backbone": "random", **spec})
        write_json(tmp_path / "weights.json", {"sha256": backbone.weights_sha256, "file": None})
        write_manifest(manifest, tmp_path / "noise.parquet")
        settings = tmp_path / folder / "config.json"
        return settings, tmp_path / "noise.parquet", tmp_path / "weights.json"

    return inputs
