"""RAPv2: 84,928 pedestrians of 25 cameras in a shopping mall; 54 attributes.

Layout::

    RAP2/
      RAP_dataset/CAM01-2014-02-15-...-tarid0-frame218-line1.png ...   also RAP_datasets/
      RAP_annotation/RAP_annotation.mat

``standard`` is the annotation's first draw of train / val / test (50,957 / 16,986 / 16,985), which
papers use, ``standard_2`` to ``standard_5`` are the others; ``trainval`` and ``trainval_2`` and so
on have train and val as train. The person is known in 26,638 images. Fields, counts and names are
those that public code reads: no copy of the annotation was at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pedbench.contracts import Attribute, BaseDataset, DatasetSpec, Record, Remark
from pedbench.formats import fakes, rap
from pedbench.formats.labels import trainval

BIBTEX = """
@article{li2019richly,
  author = {Dangwei Li and Zhang Zhang and Xiaotang Chen and Kaiqi Huang},
  title = {A Richly Annotated Pedestrian Dataset for Person Retrieval in Real Surveillance
             Scenarios},
  journal = {IEEE Transactions on Image Processing},
  volume = {28},
  number = {4},
  pages = {1575--1590},
  year = {2019}
}
"""

SPELLINGS = {"Femal": ("Female",)}
# Of the first partition's train and val together, in the order of the attributes; published with
# the authors' training code.
# fmt: off
RATIOS = (
    0.005755, 0.193236, 0.931869, 0.015336, 0.066320,
    0.216373, 0.077653, 0.047393, 0.231459, 0.115994,
    0.284739, 0.030423, 0.041756, 0.096566, 0.027258,
    0.575747, 0.029701, 0.020458, 0.027965, 0.266120, 0.117760,
    0.263118, 0.202434, 0.084497, 0.014321, 0.226558, 0.084483,
    0.021327, 0.069073, 0.026360, 0.038135, 0.027464, 0.010362, 0.024447, 0.296631,
    0.008875, 0.403103, 0.547341, 0.035294, 0.312777,
    0.136453, 0.777887, 0.074195, 0.938757, 0.053501,
    0.033793, 0.026669, 0.048408, 0.023284, 0.010509,
    0.017897, 0.025448, 0.132876, 0.010229,
)
TOLERANCE = 0.002
PERSONS, IMAGES_OF_THEM = 2_589, 26_638  # of the literature
# where the file has its evaluated attributes, 1-based, and its rank of each attribute of SPEC
SELECTED = (
    *range(1, 6), *range(8, 11), *range(12, 19), *range(22, 32), 46, 48, 49, *range(51, 54),
    *range(68, 72), 73, 74, *range(89, 92), *range(93, 97), 98, 99, 101, 102, *range(106, 112),
)
RANKS = (*range(10, 45), *range(1, 5), 0, *range(5, 10), *range(45, 54))
# fmt: on


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="RAPv2",
        licence="licence agreement with CASIA to be signed; research only, not to be passed on",
        attributes=(
            Attribute("hs-BaldHead", "head", "who is bald", "who is not bald"),
            Attribute("hs-LongHair", "head", "with long hair", "with short hair"),
            Attribute("hs-BlackHair", "head", "with black hair", "with hair that is not black"),
            Attribute("hs-Hat", "head", "with a hat on", "without a hat"),
            Attribute("hs-Glasses", "head", "with glasses", "without glasses"),
            Attribute("ub-Shirt", "upper", "in a shirt", "without a shirt"),
            Attribute("ub-Sweater", "upper", "in a sweater", "without a sweater"),
            Attribute("ub-Vest", "upper", "in a vest", "without a vest"),
            Attribute("ub-TShirt", "upper", "in a T-shirt", "without a T-shirt"),
            Attribute("ub-Cotton", "upper", "in a padded coat", "without a padded coat"),
            Attribute("ub-Jacket", "upper", "in a jacket", "without a jacket"),
            Attribute("ub-SuitUp", "upper", "in a suit", "without a suit"),
            Attribute("ub-Tight", "upper", "in a tight top", "in a loose top"),
            Attribute("ub-ShortSleeve", "upper", "in short sleeves", "in long sleeves"),
            Attribute("ub-Others", "upper", "in some other top", "in a top of a common kind"),
            Attribute("lb-LongTrousers", "lower", "in long trousers", "without long trousers"),
            Attribute("lb-Skirt", "lower", "in a skirt", "without a skirt"),
            Attribute("lb-ShortSkirt", "lower", "in a short skirt", "without a short skirt"),
            Attribute("lb-Dress", "lower", "in a dress", "without a dress"),
            Attribute("lb-Jeans", "lower", "in jeans", "without jeans"),
            Attribute("lb-TightTrousers", "lower", "in tight trousers", "without tight trousers"),
            Attribute("shoes-Leather", "feet", "in leather shoes", "without leather shoes"),
            Attribute("shoes-Sports", "feet", "in sports shoes", "without sports shoes"),
            Attribute("shoes-Boots", "feet", "in boots", "without boots"),
            Attribute("shoes-Cloth", "feet", "in cloth shoes", "without cloth shoes"),
            Attribute("shoes-Casual", "feet", "in casual shoes", "without casual shoes"),
            Attribute("shoes-Other", "feet", "in some other shoes", "in shoes of a common kind"),
            Attribute("attachment-Backpack", "upper", "with a backpack", "without a backpack"),
            Attribute(
                "attachment-ShoulderBag",
                "upper",
                "with a bag over one shoulder",
                "without a bag over the shoulder",
            ),
            Attribute("attachment-HandBag", "whole", "with a handbag", "without a handbag"),
            Attribute("attachment-Box", "whole", "with a box", "without a box"),
            Attribute(
                "attachment-PlasticBag", "whole", "with a plastic bag", "without a plastic bag"
            ),
            Attribute("attachment-PaperBag", "whole", "with a paper bag", "without a paper bag"),
            Attribute("attachment-HandTrunk", "whole", "with a suitcase", "without a suitcase"),
            Attribute(
                "attachment-Other", "whole", "with some other thing", "without any other thing"
            ),
            Attribute("AgeLess16", "whole", "who is at most sixteen", "who is over sixteen"),
            Attribute(
                "Age17-30",
                "whole",
                "who is between seventeen and thirty",
                "who is under seventeen or over thirty",
            ),
            Attribute(
                "Age31-45",
                "whole",
                "who is between thirty-one and forty-five",
                "who is under thirty-one or over forty-five",
            ),
            Attribute(
                "Age46-60",
                "whole",
                "who is between forty-six and sixty",
                "who is under forty-six or over sixty",
            ),
            Attribute("Femal", "whole", "who is a woman", "who is a man"),
            Attribute("BodyFat", "whole", "of heavy build", "not of heavy build"),
            Attribute("BodyNormal", "whole", "of average build", "not of average build"),
            Attribute("BodyThin", "whole", "of slim build", "not of slim build"),
            Attribute("Customer", "whole", "who is shopping", "who is not shopping"),
            Attribute(
                "Employee", "whole", "who works in the shop", "who does not work in the shop"
            ),
            Attribute("action-Calling", "whole", "who is on the phone", "who is not on the phone"),
            Attribute("action-Talking", "whole", "who talks to somebody", "who talks to nobody"),
            Attribute("action-Gathering", "whole", "in a group of people", "apart from others"),
            Attribute(
                "action-Holding", "whole", "with the arms around something", "with free arms"
            ),
            Attribute("action-Pushing", "whole", "who pushes something", "who pushes nothing"),
            Attribute("action-Pulling", "whole", "who pulls something", "who pulls nothing"),
            Attribute(
                "action-CarryingByArm",
                "upper",
                "with something hung over the arm",
                "with nothing hung over the arm",
            ),
            Attribute(
                "action-CarryingByHand",
                "whole",
                "with something in the hand",
                "with empty hands",
            ),
            Attribute(
                "action-Other", "whole", "who does something else", "who does what people often do"
            ),
        ),
        splits=(*rap.draws("standard"), *rap.draws("trainval")),
        counts={  # of the literature; no file was at hand
            **{
                split: {"train": 50_957, "val": 16_986, "test": 16_985}
                for split in rap.draws("standard")
            },
            **{split: {"train": 67_943, "test": 16_985} for split in rap.draws("trainval")},
        },
    )

    def records(self, root: Path) -> Iterator[Record]:
        annotation = rap.read(root, rap.V2, self.SPEC.attributes, SPELLINGS)
        if len(annotation.names) == rap.V2.images:
            self._check_ratios(annotation)
            _check_persons(annotation)
        splits = {
            **dict(zip(rap.draws("standard"), annotation.partitions, strict=True)),
            **dict(zip(rap.draws("trainval"), map(trainval, annotation.partitions), strict=True)),
        }
        return rap.records(root, rap.V2, annotation, splits, range(len(annotation.names)))

    def _check_ratios(self, annotation: rap.Annotation) -> None:
        inside = [subset in ("train", "val") for subset in annotation.partitions[0]]
        ratios = (annotation.labels[inside] == 1).mean(0)
        off = [
            f"{attribute.name} {found:.4f} for {published:.4f}"
            for attribute, found, published in zip(
                self.SPEC.attributes, ratios, RATIOS, strict=True
            )
            if abs(found - published) > TOLERANCE
        ]
        if off:
            warnings.warn(
                f"{annotation.path}: {len(off)} of {len(RATIOS)} attributes have another share of "
                f"positives in train and val than was published ({', '.join(off[:5])}): another "
                "release, or its columns were exchanged",
                Remark,
                stacklevel=2,
            )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        count, width = 40, rap.V2.columns
        names = [
            f"CAM{1 + i % 3:02d}-2014-02-15-20140215161032-tarid{i}-frame{7 * i}-line1.png"
            for i in rng.permutation(count)
        ]
        heads = [f"unused-{i}" for i in range(width)]
        for attribute, rank in zip(self.SPEC.attributes, RANKS, strict=True):
            heads[SELECTED[rank] - 1] = attribute.name
        labels = rng.integers(0, 2, (count, width), dtype=np.int32)
        labels[3, 0] = 2  # Femal: could not be told
        labels[:, 111] = rng.integers(1, 5, count)  # the viewpoint, which is no attribute
        identities = np.full((count, 1), -1, np.int16)
        identities[:30, 0] = np.repeat(np.arange(1, 16), 2)
        partitions = []
        for _ in range(rap.DRAWS):
            parts = fakes.divide(count, rng, 0.6, 0.2)
            partitions.append(
                {
                    name: 1 + part[None].astype(np.int32)
                    for name, part in zip(rap.V2.parts.values(), parts, strict=True)
                }
            )
        struct = {
            "name": fakes.cell(names),
            "data": labels,
            "attribute": fakes.cell(heads),
            "selected_attribute": np.array([SELECTED], np.uint8),
            "partition_attribute": fakes.cell(partitions, row=True),
            "person_identity": identities,
            "partition_reid": {
                "train_identity": np.arange(1, 8, dtype=np.int16)[None],
                "test_identity": np.arange(8, 16, dtype=np.int16)[None],
            },
        }
        for name in names:
            fakes.noise(root / "RAP_dataset" / name, rng)
        (root / "RAP_dataset" / "Thumbs.db").write_bytes(b"not a picture")
        fakes.write_mat(root / "RAP_annotation" / "RAP_annotation.mat", {rap.VARIABLE: struct})


def _check_persons(annotation: rap.Annotation) -> None:
    known = annotation.identities[annotation.identities >= 0]
    persons = len(np.unique(known))
    if (persons, len(known)) != (PERSONS, IMAGES_OF_THEM):
        warnings.warn(
            f"{annotation.path}: {persons:,} persons are known in {len(known):,} images, but "
            f"{PERSONS:,} in {IMAGES_OF_THEM:,} were published: another release",
            Remark,
            stacklevel=2,
        )
