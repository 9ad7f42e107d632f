"""The contracts every plug-in meets: what a method, a dataset, a batch and an output are.

This module is the bottom of the import graph: when loaded it imports nothing of pedbench, and
torch only for type checkers, so that the planner and ``pedbench --help`` start without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from pedbench.nn.backbone import Backbone

Subset = Literal["train", "val", "test"]
TaskKind = Literal["par", "reid"]  # attribute recognition, re-identification
SUBSETS: tuple[Subset, ...] = ("train", "val", "test")
Region = Literal["head", "upper", "lower", "feet", "whole"]

UNKNOWN = -1  # label code of an attribute that nobody could tell

TINY = "tiny_clip"  # the backbone that is shipped with its weights
# our name: open_clip's name of the model with QuickGELU, which OpenAI's weights need
OPENAI = {
    "ViT-B-16": "ViT-B-16-quickgelu",
    "ViT-L-14": "ViT-L-14-quickgelu",
    "RN50": "RN50-quickgelu",
}
BACKBONES = (TINY, *OPENAI)
# height and width in pixels, known without torch; `pedbench weights` holds the models to them
IMAGE_SIZES = {TINY: (64, 32), "ViT-B-16": (224, 224), "ViT-L-14": (224, 224), "RN50": (224, 224)}


class PedbenchError(Exception):
    """A mistake a user can mend; the message names the culprit and the fix."""


class Remark(UserWarning):
    """What the reader of a dataset noticed and its user should know, though nothing is broken;
    told with ``warnings.warn``."""


@dataclass(frozen=True)
class Attribute:
    """One binary attribute: its name in results and how it is put into words."""

    name: str
    region: Region
    phrase: str  # completes "a photo of a person ...", e.g. "wearing a hat"
    negative: str  # the same for its absence, e.g. "without a hat"


@dataclass(frozen=True)
class ReidSettings:
    """What the protocol says of the losses and of the neck in person re-identification; each is a
    setting of `config.Protocol`, where it is explained."""

    id_loss: Literal["cross_entropy", "cosface", "arcface", "circle"]
    id_loss_weight: float
    id_margin: float
    id_scale: float
    label_smoothing: float
    pair_loss: Literal["none", "triplet", "triplet_soft", "contrastive", "cosface", "circle"]
    pair_loss_weight: float
    margin: float
    feature: Literal["before", "after"]

    @property
    def compares(self) -> bool:
        """Whether the pair loss weighs anything."""
        return self.pair_loss != "none" and self.pair_loss_weight != 0


@dataclass(frozen=True)
class Task:
    """What a method must solve; the same for all methods of one dataset and split.

    ``positive_ratio`` holds, per attribute, the share of positives among the known labels of
    the training subset, shape ``(A,)``. In re-identification ``identities`` is the number C of
    persons in the training subset, ``cameras`` that of the dataset's cameras.
    """

    kind: TaskKind
    attributes: tuple[Attribute, ...]
    positive_ratio: tuple[float, ...]
    loss_weighting: str = "released"
    novel: tuple[str, ...] = ()  # attributes asked for in testing, of which training has no label
    identities: int = 0
    cameras: int = 0
    reid: ReidSettings | None = None


@dataclass
class Batch:
    """``images (B, 3, H, W)`` normalised, ``labels (B, A)`` in {0, 1, -1}; in re-identification
    ``identities (B,)`` in 0 ... C - 1 and ``cameras (B,)`` from 0, both int64."""

    images: Tensor
    labels: Tensor
    identities: Tensor | None = None
    cameras: Tensor | None = None


@dataclass
class Output:
    """``logits (B, A)`` before the sigmoid; ``extras`` is whatever the method's loss needs.

    In re-identification ``features (B, D)`` are what retrieval compares by their cosine, and
    ``logits (B, C)`` scores of the training identities.
    """

    logits: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


def as_output(value: Output | Tensor) -> Output:
    """A head may return plain logits."""
    return value if isinstance(value, Output) else Output(value)


@dataclass(frozen=True)
class Stage:
    """One phase of training. ``groups`` names the parameter groups that train in it, ``settings``
    holds the settings of the protocol that are others in it, e.g. ``{"epochs": 10}``. Without
    ``selects`` its epochs are neither validated nor chosen: what is scored does not change in it.
    """

    name: str
    groups: tuple[str, ...]
    lr: float | None = None  # None: each group's own
    settings: Mapping[str, Any] = field(default_factory=dict)
    selects: bool = True


P = TypeVar("P")


class BaseMethod(Generic[P]):
    """A way of adapting a CLIP backbone. One file in ``methods/`` holds one subclass ``Method``
    and one frozen dataclass ``Params`` whose fields are all the hyperparameters, with defaults.

    The core hands over a backbone whose weights are all frozen; ``build`` adds modules (which
    train) and may unfreeze what it adapts. The core owns optimiser, loop, precision and files.
    """

    trains: ClassVar[bool] = True  # False: nothing is learned, one run without seeds
    tasks: ClassVar[tuple[TaskKind, ...]] = ("par",)  # that it can solve
    # what tuning searches: (low, high) of a float, on a log scale, or a list of choices
    search: ClassVar[Mapping[str, tuple[float, float] | list[Any]]] = {}
    needs_tokens: ClassVar[bool] = False  # True: works among the patch tokens of the image tower

    def __init__(self, params: P) -> None:
        self.params = params

    def supports(self, task: Task, backbone: Backbone) -> str | None:
        """None, or the reason why this method cannot solve ``task`` on ``backbone``."""
        if task.kind not in self.tasks:
            return f"defined for {', '.join(self.tasks)}, not for {task.kind}"
        if self.needs_tokens and not backbone.tokens:
            return (
                f"needs a vision transformer's patch tokens; {backbone.name}'s image tower has none"
            )
        if task.novel and not self.open_vocabulary():
            return (
                "learns weights of single attributes, so it cannot tell the "
                f"{len(task.novel)} novel ones, which no training image has a label of"
            )
        return None

    def open_vocabulary(self) -> bool:
        """Whether nothing that is learned belongs to a single attribute, so that any other could
        be asked for by its text. Default: where a hyperparameter ``head`` is "pair"."""
        return getattr(self.params, "head", None) == "pair"

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        """A module with ``forward(images (B, 3, H, W)) -> Output``.

        A module that also has ``stem(images) -> Tensor`` and a submodule ``head`` with
        ``forward(images) == head(stem(images))`` gets its stem cached while only the head trains.

        In re-identification a module may have ``reads``, names out of ``cameras`` and
        ``identities``: ``forward``, or ``head``, then gets these of the batch as keyword arguments,
        ``(B,)`` int64. ``identities`` is None outside training.
        """
        raise NotImplementedError

    def loss(self, output: Output, batch: Batch, task: Task) -> dict[str, Tensor]:
        """Scalar terms; their sum is minimised. Default: the protocol's weighted BCE, or its
        identity and pair losses.

        Where several processes share a batch, ``output`` and ``batch`` are those of all of it, but
        ``batch.images`` is empty. So ``output.extras`` must have one row per image, or be numbers.
        """
        if task.kind == "reid":
            from pedbench.tasks.reid_losses import reid_terms

            return reid_terms(output, batch, task)
        from pedbench.tasks.losses import weighted_bce

        return {"bce": weighted_bce(output.logits, batch.labels, task)}

    def prepare(self, model: nn.Module, batches: Iterator[Batch]) -> None:
        """Set from the training subset what is not learned by steps, once before them, in
        evaluation mode and without gradients. ``batches`` yields every training image once, not
        augmented, in the manifest's order. What is set must live in trained parameters or
        persistent buffers. Default: the biases of a sigmoid head."""
        from pedbench.nn.heads import start_biases

        start_biases(model, batches)

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Optimiser groups: ``name``, ``params``, ``lr`` and, if they differ from the protocol,
        ``weight_decay``, ``warmup_epochs``. Default: what trains in ``model.head`` at
        ``params.head_lr`` (if there is one) and everything else, each at ``params.lr``. A linear
        head needs a group of its own, named ``head``: it may start from the probe."""
        params: Any = self.params
        inside = {id(p) for p in getattr(model, "head", model).parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        head = [p for p in trained if id(p) in inside]
        body = [p for p in trained if id(p) not in inside]
        groups = [
            {"name": "head", "params": head, "lr": getattr(params, "head_lr", params.lr)},
            {"name": "body", "params": body, "lr": params.lr},
        ]
        return [group for group in groups if group["params"]]

    def stages(self, groups: tuple[str, ...]) -> tuple[Stage, ...]:
        """Phases of training, in order. Default: one, with every group, if there is any."""
        return (Stage("fit", groups),) if groups else ()

    def start_stage(self, model: nn.Module, stage: Stage) -> None:
        """Called before the first step of ``stage``, and again where a killed run goes on in it;
        it must come to the same both times. Default: nothing."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimiser step ``step`` (from 1) of ``steps`` of a stage, while the
        gradients still stand. What it changes must live in trained parameters or persistent
        buffers, which checkpoints keep. Default: nothing."""


@dataclass(frozen=True)
class Record:
    """One image. ``subset`` maps a split to the subset the image belongs to (or omits it)."""

    image: str  # its name, unique in the dataset
    labels: tuple[int, ...]  # 0, 1 or -1, in the order of SPEC.attributes
    subset: Mapping[str, Subset]
    identity: int = -1
    camera: int = -1
    file: str = ""  # the picture, relative to the dataset's root; default: ``image``
    box: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels: the
    # part of the picture that is the image; what leaves the picture is cut off
    queries: tuple[str, ...] = ()  # splits for re-identification in which it is a query; else
    # an image of their val or test belongs to the gallery


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a dataset before its files are opened."""

    title: str
    licence: str
    attributes: tuple[Attribute, ...]
    splits: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # split -> subset -> n
    citation: str = ""
    identities: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # persons
    disjoint: tuple[str, ...] = ()  # splits none of whose persons is in two subsets
    without: Mapping[str, str] = field(default_factory=dict)  # splits it cannot have -> the reason
    reid: tuple[str, ...] = ()  # splits for re-identification, disjoint anyway; their counts and
    # identities are of train, val_query, val_gallery, query, gallery

    def task_of(self, split: str) -> TaskKind:
        return "reid" if split in self.reid else "par"


COMMON_OPTIONS = ("check_counts", "phrases")  # of every dataset; docs/datasets.md


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``dataset_options`` say beside the options that every dataset has."""
    return {key: value for key, value in options.items() if key not in COMMON_OPTIONS}


class BaseDataset:
    """A source of images and labels. One file in ``datasets/`` holds one subclass ``Dataset``."""

    SPEC: ClassVar[DatasetSpec]
    inputs: ClassVar[tuple[str, ...]] = ()  # files of the repository that its records depend on,
    # beside its own and its parents': the DAG watches them
    PARENTS: ClassVar[Mapping[str, type[BaseDataset]]] = {}  # datasets it is made of; their folders
    # are generate()'s option "roots"
    FOLDER_OF: ClassVar[str] = ""  # the dataset whose folder it is read from, unless given its own

    def generate(self, root: Path, options: Mapping[str, Any]) -> None:
        """Make the dataset below ``root`` unless it is there with these options. Only datasets
        that are made override this; for obtained ones there is nothing to do."""

    def expected(self, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, int]]:
        """Images per split and subset that ``records`` must yield; empty: not checked.

        Raises PedbenchError on ``options`` (of the config's ``dataset_options``) that the dataset
        does not have: by default it has none of its own.
        """
        for key in options:
            raise PedbenchError(
                f"dataset_options: unknown key '{key}' (known: {', '.join(COMMON_OPTIONS)})"
            )
        return self.SPEC.counts

    def records(self, root: Path) -> Iterator[Record]:
        """Every image, sorted by name. Reads below ``root`` and writes nothing there. Raises
        PedbenchError naming what is missing or off, several things on lines of their own; what
        is only odd is told as a ``Remark``."""
        raise NotImplementedError

    def fake(self, root: Path, rng: np.random.Generator) -> None:
        """A tiny tree in the dataset's native layout, so that tests need no licence."""
        raise NotImplementedError
