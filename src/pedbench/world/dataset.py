"""What the synthetic datasets share: making the files of a world, and reading them back.

Layout below the root: ``images/{identity:05d}_c{camera}_{k:03d}.png``; ``labels.csv`` (image,
identity, camera, one column of 0, 1 or -1 per attribute); ``splits.csv`` (image, one column per
split; and for one for re-identification ``query:{split}``, 0 or 1); ``world.json`` (options and
code digest, written last).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from PIL import Image

from pedbench.contracts import (
    SUBSETS,
    UNKNOWN,
    BaseDataset,
    DatasetSpec,
    PedbenchError,
    Record,
    Subset,
)
from pedbench.world.attributes import ATTRIBUTES, INDEX
from pedbench.world.domains import Domain
from pedbench.world.render import PARTS, render, sample_people

SPLITS = ("standard", "zero_shot")
REID = "reid"
_SHARES = (0.50, 0.15, 0.35)
_TOLD_BY = {  # nobody can tell these attributes where the part is not in the picture
    "shoe": ("boots", "sneakers", "sandals"),
    "face": ("glasses", "beard"),
}
_FILES = {"images", "labels.csv", "splits.csv", "world.json"}
_SHUFFLES = 64  # partitions of the identities among which the most even one is taken


def world_spec(
    domain: Domain, title: str, splits: tuple[str, ...] = SPLITS, reid: tuple[str, ...] = ()
) -> DatasetSpec:
    """The spec of the dataset that ``domain`` annotates."""
    return DatasetSpec(
        title=title,
        licence="made by this package, under its licence",
        attributes=tuple(ATTRIBUTES[INDEX[name]] for name in domain.attributes),
        splits=splits,
        reid=reid,
    )


class SyntheticDataset(BaseDataset):
    """Subclasses name a ``DOMAIN`` and its ``SPEC``.

    Options: ``seed`` of the world (people, pictures and splits; the domain stays the same),
    ``identities`` and ``images_per_identity``.
    """

    DOMAIN: ClassVar[Domain]
    DEFAULTS: ClassVar[Mapping[str, int]] = {
        "seed": 0,
        "identities": 400,
        "images_per_identity": 10,
    }
    LEAST: ClassVar[Mapping[str, int]] = {"seed": 0, "identities": 8, "images_per_identity": 1}

    def generate(self, root: Path, options: Mapping[str, Any]) -> None:
        """Render the world to ``root`` unless it is there already; another world is replaced,
        and a killed call leaves nothing. Raises PedbenchError on bad options and when ``root``
        holds anything else."""
        chosen = self._checked(options)
        if _read(root / "world.json") == self._world(chosen):
            return
        _check_replaceable(root)
        partial = root.with_name(f".{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            (partial / "images").mkdir(parents=True)
            self._write(partial, chosen)
            shutil.rmtree(root, ignore_errors=True)
            partial.rename(root)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise PedbenchError(
                f"{root}: the synthetic world cannot be written ({error.strerror or error}). "
                "Check that the folder above it is a writable folder with free space, or name "
                "another one under 'roots' in the config."
            ) from error

    def _write(self, folder: Path, options: Mapping[str, int]) -> None:
        ids, each = options["identities"], options["images_per_identity"]
        people_rng, camera_rng, picture_rng, split_rng = _streams(self.DOMAIN, options["seed"])
        people = sample_people(ids, people_rng)
        who = np.repeat(np.arange(ids), each)
        cameras = _assign_cameras(ids, each, len(self.DOMAIN.cameras), camera_rng)
        pictures, parts = render(people, who, cameras, self.DOMAIN, picture_rng)

        columns = [INDEX[name] for name in self.DOMAIN.attributes]
        labels = people.labels[who]
        for part, told in _TOLD_BY.items():
            hidden = np.flatnonzero(~parts[:, PARTS.index(part)].any(axis=(1, 2)))
            labels[hidden[:, None], [INDEX[name] for name in told]] = UNKNOWN
        splits = self._splits(people.labels[:, columns], who, cameras, split_rng)
        names = [
            f"images/{i:05d}_c{c}_{k % each:03d}.png"
            for k, (i, c) in enumerate(zip(who, cameras, strict=True))
        ]
        order = np.argsort(names)
        for i in order:
            Image.fromarray(pictures[i]).save(folder / names[i])
        _write_csv(
            folder / "labels.csv",
            ("image", "identity", "camera", *self.DOMAIN.attributes),
            ((names[i], who[i], cameras[i], *labels[i, columns]) for i in order),
        )
        _write_csv(
            folder / "splits.csv",
            ("image", *splits),
            ((names[i], *(column[i] for column in splits.values())) for i in order),
        )
        (folder / "world.json").write_text(self._world(options), encoding="utf-8")

    def _splits(
        self, labels: np.ndarray, who: np.ndarray, cameras: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The columns of ``splits.csv`` ``(N,)``, given ``labels (identities, A)`` and person and
        camera of each image ``(N,)``."""
        names = np.array(SUBSETS)
        by_image = _divide(rng.permutation(len(who)))
        by_person = _divide(_even_order(labels, rng))
        return {"standard": names[by_image], "zero_shot": names[by_person[who]]}

    def _world(self, options: Mapping[str, int]) -> str:
        """The text of ``world.json``: all that decides the files, the code by its digest."""
        world = {"domain": self.DOMAIN.name, **options, "code": _code_digest()}
        return json.dumps(world, indent=1) + "\n"

    def expected(self, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
        """Images per split and subset: 50 / 15 / 35 % of the images or of the identities."""
        chosen = self._checked(options)
        ids, each = chosen["identities"], chosen["images_per_identity"]
        images, people = _counts(ids * each), _counts(ids)
        return {
            "standard": dict(zip(SUBSETS, images, strict=True)),
            "zero_shot": {s: each * n for s, n in zip(SUBSETS, people, strict=True)},
        }

    def records(self, root: Path) -> Iterator[Record]:
        """Every image of the two CSV files. Raises PedbenchError when one is missing or off."""
        named = [attribute.name for attribute in self.SPEC.attributes]
        labels = _read_csv(root / "labels.csv", ("image", "identity", "camera", *named))
        queries = {f"query:{split}": split for split in self.SPEC.reid}
        splits = _read_csv(root / "splits.csv", ("image", *self.SPEC.splits, *queries))
        if [row["image"] for row in labels] != [row["image"] for row in splits]:
            raise PedbenchError(
                f"{root}: labels.csv and splits.csv list different images; delete the folder and "
                "run again, the world will be made anew"
            )
        for row, subset in zip(labels, splits, strict=True):
            yield Record(
                image=row["image"],
                labels=tuple(int(row[name]) for name in named),
                subset={split: cast(Subset, subset[split]) for split in self.SPEC.splits},
                queries=tuple(split for key, split in queries.items() if subset[key] == "1"),
                identity=int(row["identity"]),
                camera=int(row["camera"]),
            )

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        """A world of 20 people with 6 pictures each."""
        seed = int(rng.integers(2**31))
        self.generate(root, {"seed": seed, "identities": 20, "images_per_identity": 6})

    def _checked(self, options: Mapping[str, Any]) -> dict[str, int]:
        """All options. Raises PedbenchError on an unknown one or a value out of range."""
        for key, value in options.items():
            if key not in self.DEFAULTS:
                near = difflib.get_close_matches(str(key), self.DEFAULTS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                known = ", ".join(self.DEFAULTS)
                raise PedbenchError(f"dataset_options: unknown key '{key}'{hint} (known: {known})")
            least = self.LEAST[key]
            if type(value) is not int or value < least:
                raise PedbenchError(
                    f"dataset_options: {key} is {value!r}; use a whole number of at least {least}"
                )
        return {**self.DEFAULTS, **options}


class SyntheticReid(SyntheticDataset):
    """A world for re-identification, with the one split `REID`: of unseen persons, 50 / 15 / 35 %.

    In val and test, half of the cameras that saw a person give one picture each to the queries; all
    others are the gallery, so that every query has a match by another camera. Every tenth person is
    never asked for: a distractor.
    """

    DEFAULTS = {"seed": 0, "identities": 320, "images_per_identity": 8}
    LEAST = {"seed": 0, "identities": 8, "images_per_identity": 2}

    def _splits(
        self, labels: np.ndarray, who: np.ndarray, cameras: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        subset = np.array(SUBSETS)[_divide(_even_order(labels, rng))][who]
        query = _one_by_half(who, cameras, rng) & (who % 10 != 9) & (subset != "train")
        return {REID: subset, f"query:{REID}": query.astype(int)}

    def expected(self, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
        chosen = self._checked(options)
        each, people = chosen["images_per_identity"], _counts(chosen["identities"])
        return {REID: {s: each * n for s, n in zip(SUBSETS, people, strict=True)}}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@cache
def _code_digest() -> str:
    """sha256 of the modules that draw the world, so that a changed renderer draws anew."""
    folder = Path(__file__).parent
    names = ("attributes.py", "dataset.py", "domains.py", "render.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def _check_replaceable(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir() or not {path.name for path in root.iterdir()} <= _FILES:
        raise PedbenchError(
            f"{root}: holds something that is not a synthetic world, so it is not replaced; move "
            "it away or name another folder under 'roots' in the config"
        )


def _streams(domain: Domain, seed: int) -> list[np.random.Generator]:
    """Independent generators for people, cameras, pictures and splits."""
    sequence = np.random.SeedSequence([zlib.crc32(domain.name.encode()), seed])
    return [np.random.default_rng(child) for child in sequence.spawn(4)]


def _assign_cameras(ids: int, each: int, cameras: int, rng: np.random.Generator) -> np.ndarray:
    """A camera per image, ``(ids * each,)``: every person before as many cameras as possible."""
    first = rng.permuted(np.tile(np.arange(cameras), (ids, 1)), axis=1)
    return np.sort(first[:, np.arange(each) % cameras], axis=1).ravel()


def _counts(n: int) -> tuple[int, int, int]:
    train, val = round(_SHARES[0] * n), round(_SHARES[1] * n)
    return train, val, n - train - val


def _divide(order: np.ndarray) -> np.ndarray:
    """Subset numbers ``(n,)``: the first half of ``order`` is train, and so on."""
    subset = np.empty(len(order), dtype=np.int8)
    subset[order] = np.repeat(np.arange(3), _counts(len(order)))
    return subset


def _one_by_half(who: np.ndarray, cameras: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(N,)`` bool: of each person one picture by each of half of his cameras, rounded down."""
    chosen = np.zeros(len(who), bool)
    for person in np.unique(who):
        own = np.flatnonzero(who == person)
        first = np.unique(cameras[own], return_index=True)[1]
        chosen[own[rng.permutation(first)[: len(first) // 2]]] = True
    return chosen


def _even_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order of the people whose division gives all subsets similar attribute frequencies."""
    share = labels.mean(axis=0)
    spread = np.sqrt(share * (1 - share)).clip(1e-6)

    def unevenness(order: np.ndarray) -> float:
        parts = np.split(labels[order], np.cumsum(_counts(len(order)))[:-1])
        return max(float((np.abs(part.mean(axis=0) - share) / spread).max()) for part in parts)

    return min((rng.permutation(len(labels)) for _ in range(_SHUFFLES)), key=unevenness)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _read_csv(path: Path, header: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except FileNotFoundError:
        raise PedbenchError(
            f"{path}: missing; delete the folder and run again, the world will be made anew"
        ) from None
    if tuple(reader.fieldnames or ()) != header:
        raise PedbenchError(
            f"{path}: columns differ from this version's ({', '.join(header)}); delete the "
            "folder and run again, the world will be made anew"
        )
    return rows
