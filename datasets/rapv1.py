"""RAPv1: 41,585 pedestrians of 23 cameras in a shopping mall; 51 attributes.

Layout::

    RAP/
      RAP_dataset/CAM31_2014-03-18_..._tarid93_frame2823_line1.png ...
      RAP_annotation/RAP_annotation.mat

``trainval`` is the annotation's first draw of train / test (33,268 / 8,317), which papers use;
``trainval_2`` to ``trainval_5`` are the others. There are no validation images. ``Female`` is
unknown in 125 images, the person in 18,920. Fields, counts and sums are those of the real file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pedbench.contracts import Attribute, BaseDataset, DatasetSpec, PedbenchError, Record, Remark
from pedbench.formats import fakes, rap

BIBTEX = """
@article{li2016richly,
  author = {Dangwei Li and Zhang Zhang and Xiaotang Chen and Haibin Ling and Kaiqi Huang},
  title = {A Richly Annotated Dataset for Pedestrian Attribute Recognition},
  journal = {arXiv preprint arXiv:1603.07054},
  year = {2016}
}
"""

SPELLINGS = {"action-Pusing": ("action-Pushing",)}
ONES = 355_432  # in the columns of the 51 attributes
HALVES = ((1324, 11_217), (1323, 11_448))  # persons and images, to train and test re-identification
OLDER_SKIRT = 0.01  # of lb-Skirt, 6.5 % are positive; in an older release 0.06 %


class Dataset(BaseDataset):
    SPEC = DatasetSpec(
        title="RAPv1",
        licence="licence agreement with CASIA to be signed; research only, not to be passed on",
        attributes=(
            Attribute("Female", "whole", "who is a woman", "who is a man"),
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
            Attribute("BodyFat", "whole", "of heavy build", "not of heavy build"),
            Attribute("BodyNormal", "whole", "of average build", "not of average build"),
            Attribute("BodyThin", "whole", "of slim build", "not of slim build"),
            Attribute("Customer", "whole", "who is shopping", "who is not shopping"),
            Attribute("Clerk", "whole", "who works in the shop", "who does not work in the shop"),
            Attribute("hs-BaldHead", "head", "who is bald", "who is not bald"),
            Attribute("hs-LongHair", "head", "with long hair", "with short hair"),
            Attribute("hs-BlackHair", "head", "with black hair", "with hair that is not black"),
            Attribute("hs-Hat", "head", "with a hat on", "without a hat"),
            Attribute("hs-Glasses", "head", "with glasses", "without glasses"),
            Attribute("hs-Muffler", "head", "with a scarf", "without a scarf"),
            Attribute("ub-Shirt", "upper", "in a shirt", "without a shirt"),
            Attribute("ub-Sweater", "upper", "in a sweater", "without a sweater"),
            Attribute("ub-Vest", "upper", "in a vest", "without a vest"),
            Attribute("ub-TShirt", "upper", "in a T-shirt", "without a T-shirt"),
            Attribute("ub-Cotton", "upper", "in a padded coat", "without a padded coat"),
            Attribute("ub-Jacket", "upper", "in a jacket", "without a jacket"),
            Attribute("ub-SuitUp", "upper", "in a suit", "without a suit"),
            Attribute("ub-Tight", "upper", "in a tight top", "in a loose top"),
            Attribute("ub-ShortSleeve", "upper", "in short sleeves", "in long sleeves"),
            Attribute("lb-LongTrousers", "lower", "in long trousers", "without long trousers"),
            Attribute("lb-Skirt", "lower", "in a skirt", "without a skirt"),
            Attribute("lb-ShortSkirt", "lower", "in a short skirt", "without a short skirt"),
            Attribute("lb-Dress", "lower", "in a dress", "without a dress"),
            Attribute("lb-Jeans", "lower", "in jeans", "without jeans"),
            Attribute("lb-TightTrousers", "lower", "in tight trousers", "without tight trousers"),
            Attribute("shoes-Leather", "feet", "in leather shoes", "without leather shoes"),
            Attribute("shoes-Sport", "feet", "in sports shoes", "without sports shoes"),
            Attribute("shoes-Boots", "feet", "in boots", "without boots"),
            Attribute("shoes-Cloth", "feet", "in cloth shoes", "without cloth shoes"),
            Attribute("shoes-Casual", "feet", "in casual shoes", "without casual shoes"),
            Attribute("attach-Backpack", "upper", "with a backpack", "without a backpack"),
            Attribute(
                "attach-SingleShoulderBag",
                "upper",
                "with a bag over one shoulder",
                "without a bag over the shoulder",
            ),
            Attribute("attach-HandBag", "whole", "with a handbag", "without a handbag"),
            Attribute("attach-Box", "whole", "with a box", "without a box"),
            Attribute("attach-PlasticBag", "whole", "with a plastic bag", "without a plastic bag"),
            Attribute("attach-PaperBag", "whole", "with a paper bag", "without a paper bag"),
            Attribute("attach-HandTrunk", "whole", "with a suitcase", "without a suitcase"),
            Attribute("attach-Other", "whole", "with some other thing", "without any other thing"),
            Attribute("action-Calling", "whole", "who is on the phone", "who is not on the phone"),
            Attribute("action-Talking", "whole", "who talks to somebody", "who talks to nobody"),
            Attribute("action-Gathering", "whole", "in a group of people", "apart from others"),
            Attribute(
                "action-Holding", "whole", "with the arms around something", "with free arms"
            ),
            Attribute("action-Pusing", "whole", "who pushes something", "who pushes nothing"),
            Attribute("action-Pulling", "whole", "who pulls something", "who pulls nothing"),
            Attribute(
                "action-CarrybyArm",
                "upper",
                "with something hung over the arm",
                "with nothing hung over the arm",
            ),
            Attribute(
                "action-CarrybyHand", "whole", "with something in the hand", "with empty hands"
            ),
        ),
        splits=rap.draws("trainval"),
        without={
            split: "RAPv1 has no validation images, its annotation names train and test only; use "
            f"'{split.replace('standard', 'trainval')}'"
            for split in rap.draws("standard")
        },
        counts={split: {"train": 33_268, "test": 8_317} for split in rap.draws("trainval")},
        identities={  # among the images whose person is known
            "trainval": {"train": 2624, "test": 1721},
            "trainval_2": {"train": 2623, "test": 1684},
            "trainval_3": {"train": 2619, "test": 1750},
            "trainval_4": {"train": 2622, "test": 1718},
            "trainval_5": {"train": 2617, "test": 1729},
        },
    )

    def records(self, root: Path) -> Iterator[Record]:
        annotation = rap.read(root, rap.V1, self.SPEC.attributes, SPELLINGS)
        if len(annotation.names) == rap.V1.images:
            self._check_sums(annotation)
        splits = dict(zip(self.SPEC.splits, annotation.partitions, strict=True))
        return rap.records(root, rap.V1, annotation, splits, range(len(annotation.names)))

    def _check_sums(self, annotation: rap.Annotation) -> None:
        names = [attribute.name for attribute in self.SPEC.attributes]
        positive = annotation.labels == 1
        skirt = positive[:, names.index("lb-Skirt")].mean()
        ones = int(positive.sum())
        if skirt < OLDER_SKIRT:
            warnings.warn(
                f"{annotation.path}: lb-Skirt is positive in {skirt:.2%} of the images, not in "
                "6.51 %: this is an older release of the annotation (hs-BaldHead differs too); "
                "say so beside results",
                Remark,
                stacklevel=2,
            )
            return
        if ones != ONES:
            warnings.warn(
                f"{annotation.path}: {ones:,} positive labels, but the known release has {ONES:,}: "
                "this is another one, or it was changed",
                Remark,
                stacklevel=2,
            )
        if annotation.halves != HALVES:
            raise PedbenchError(
                f"{annotation.path}: persons and images for re-identification are "
                f"{annotation.halves} in train and test, but {HALVES} in the release: identities "
                "were changed; obtain the file again"
            )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        count, width = 36, rap.V1.columns
        names = [
            f"CAM{1 + i % 3:02d}_2014-03-18_20140318125002_tarid{i}_frame{7 * i}_line1.png"
            for i in rng.permutation(count)
        ]
        labels = rng.integers(0, 2, (count, width), dtype=np.int32)
        labels[3, 0] = 2  # Female: could not be told
        identities = np.repeat(np.arange(1, count // 2 + 1), 2).astype(np.int16)
        identities[-6:] = -1
        heads = [a.name for a in self.SPEC.attributes]
        heads += [f"unused-{i}" for i in range(width - len(heads))]
        partitions = []
        for _ in range(rap.DRAWS):
            train, test = (
                1 + part[None].astype(np.uint16) for part in fakes.divide(count, rng, 0.8)
            )
            partitions.append({"train_index": train, "test_index": test})
        struct = {
            "partion": fakes.cell(partitions),
            "label": labels,
            "attribute_chinese": fakes.cell(heads),
            "attribute_eng": fakes.cell(heads),
            "position": np.zeros((count, 16), np.int32),
            "imagesname": fakes.cell(names),
            "attribute_exp": fakes.cell([f"exp-{i}" for i in range(51)]),
            "identity": identities[:, None],
            "reid_partion": {
                "train_identity": np.arange(1, 9, dtype=np.uint16)[None],
                "test_identity": np.arange(9, 16, dtype=np.uint16)[None],
            },
        }
        for name in names:
            fakes.noise(root / "RAP_dataset" / name, rng)
        (root / "RAP_dataset" / "Thumbs.db").write_bytes(b"not a picture")
        fakes.write_mat(root / "RAP_annotation" / "RAP_annotation.mat", {rap.VARIABLE: struct})
