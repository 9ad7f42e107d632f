"""New plug-ins from templates that already run: a place to start from, not an empty file."""

from __future__ import annotations

import re
from pathlib import Path

from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.files import write_text
from pedbench.registry import Kind

BIBTEX = '''# What `pedbench cite` prints; fill in and uncomment:
# BIBTEX = """
# @inproceedings{(key),
#   author = {(Last, First and Last, First)},
#   title = {(title)},
#   booktitle = {(conference)},
#   year = {(year)},
# }
# """'''

METHOD = '''"""{title}: a residual adapter on the image feature, then one linear unit per attribute.

Paper: (authors, "title", venue and year, section).
Trains: the adapter and the head.
Parameters: 43,075 at ViT-B/16, 64,579 at ViT-L/14 (51 attributes).
Published: (a number as printed, with its dataset).
Run: snakemake --cores all results/{name}/tables --config results=results/{name}
'methods=[linear_probe,{name}]'

(Where and why this departs from the paper.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pedbench.contracts import BaseMethod, Output, Task
from pedbench.nn.backbone import Backbone

{bibtex}


@dataclass(frozen=True)
class Params:
    """Every hyperparameter, as a literal default and one line of explanation."""

    lr: float = 1e-2  # learning rate
    bottleneck: int = 16  # width of the adapter's hidden layer


class Model(nn.Module):
    """``forward(images (B, 3, H, W)) -> Output`` with logits ``(B, A)``."""

    def __init__(self, backbone: Backbone, attributes: int, bottleneck: int) -> None:
        super().__init__()
        self.backbone = backbone  # all its weights are frozen; unfreeze what you adapt
        width = backbone.embed_dim
        self.head = nn.Sequential(Adapter(width, bottleneck), nn.Linear(width, attributes))

    def stem(self, images: Tensor) -> Tensor:
        """The frozen part, ``(B, 3, H, W) -> (B, E)``: computed once and cached."""
        return self.backbone.encode_image(images)

    def forward(self, images: Tensor) -> Output:
        return Output(self.head(self.stem(images)))


class Adapter(nn.Module):
    """x + W2 relu(W1 norm(x)); the identity at first, since W2 starts at zero."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x + self.up(torch.relu(self.down(x)))


class Method(BaseMethod[Params]):
    tasks = ("par",)  # attribute recognition; for "reid", re-identification, see docs/reid.md
    search = {{"lr": (1e-4, 1e-1)}}  # what `snakemake tune` searches, on a log scale

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        return Model(backbone, len(task.attributes), self.params.bottleneck)
'''

DATASET = '''"""{title}: images and a CSV with one row per image.

Below the root: ``images/`` and ``labels.csv`` with the columns ``image`` (path below
``images/``), ``subset`` (train, val or test), optionally ``identity`` and ``camera`` (integers),
and one column of 0, 1 or -1 (unknown) per attribute of SPEC.
Licence: (what its owners allow).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pedbench.contracts import Attribute, BaseDataset, DatasetSpec, PedbenchError, Record

{bibtex}


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="{title}",
        licence="(what its owners allow)",
        attributes=(
            Attribute("hat", "head", "wearing a hat", "without a hat"),
            Attribute("backpack", "upper", "with a backpack", "without a backpack"),
            Attribute("shorts", "lower", "wearing shorts", "without shorts"),
        ),
        splits=("standard",),
        counts={{}},  # e.g. {{"standard": {{"train": 800, "val": 100, "test": 100}}}}: then checked
    )

    def records(self, root: Path) -> Iterator[Record]:
        names = [attribute.name for attribute in self.SPEC.attributes]
        path = root / "labels.csv"
        if not path.is_file():
            raise PedbenchError(f"{{path}}: no such file; see the top of datasets/{name}.py")
        with path.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            absent = [n for n in ("image", "subset", *names) if n not in (table.fieldnames or ())]
            if absent:
                raise PedbenchError(f"{{path}}: column '{{absent[0]}}' is missing")
            rows = sorted(table, key=lambda row: row["image"])
        for row in rows:
            yield Record(
                image=f"images/{{row['image']}}",
                labels=tuple(whole(path, row, name) for name in names),
                subset={{"standard": row["subset"]}},  # type: ignore[dict-item]
                identity=whole(path, row, "identity") if row.get("identity") else -1,
                camera=whole(path, row, "camera") if row.get("camera") else -1,
            )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        """Thirty noise pictures in this layout, for the tests."""
        names = [attribute.name for attribute in self.SPEC.attributes]
        (root / "images").mkdir(parents=True)
        with (root / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["image", "subset", "identity", "camera", *names])
            for index in range(30):
                subset = ("train", "train", "val", "test", "test")[index % 5]
                picture = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
                Image.fromarray(picture).save(root / "images" / f"{{index:02d}}.png")
                labels = rng.integers(0, 2, len(names))
                table.writerow([f"{{index:02d}}.png", subset, index // 3, index % 3, *labels])


def whole(path: Path, row: Mapping[str, str], column: str) -> int:
    """The whole number in ``column`` of ``row``, or a PedbenchError naming file and row."""
    try:
        return int(row[column])
    except (TypeError, ValueError):
        raise PedbenchError(
            f"{{path}}: row of image '{{row['image']}}': {{column}} is {{row[column]!r}}, "
            "but a whole number is wanted"
        ) from None
'''

NEXT = {
    "method": """\
wrote {path}: it runs as it is. Next:
  1. put your method into it; every hyperparameter is a field of Params, and the lines at the top
     and BIBTEX are what docs/methods.md (pedbench docs) and pedbench cite print
  2. one line in config/config.yaml, under methods:   - {name}
  3. pytest tests/contract -k {name}      the contract every method meets (pip install -e '.[dev]')
  4. snakemake --cores all results/tables      runs only the new method's jobs""",
    "dataset": """\
wrote {path}: it reads images/ and labels.csv. Next:
  1. state its attributes in SPEC, with a phrase for presence and absence
  2. config/config.yaml: '- {name}/standard' under datasets:, and its folder under roots:
  3. pytest tests/contract -k {name}      the contract every dataset meets (pip install -e '.[dev]')
  4. snakemake --cores all results/tables""",
}


def create(kind: Kind, name: str, root: Path = ROOT) -> str:
    """Write the plug-in and return what to do next. Raises PedbenchError for a bad or taken
    name; an existing file is never overwritten."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PedbenchError(
            f"'{name}' cannot be a {kind}'s name: use lower-case letters, digits and underscores, "
            "starting with a letter (it becomes a file, a config entry and a folder)"
        )
    path = root / f"{kind}s" / f"{name}.py"
    if path.exists():
        raise PedbenchError(f"{path} exists already; choose another name or edit that file")
    template = METHOD if kind == "method" else DATASET
    title = name.replace("_", " ").capitalize()
    write_text(path, template.format(name=name, title=title, bibtex=BIBTEX))
    return NEXT[kind].format(name=name, path=path.relative_to(root))
