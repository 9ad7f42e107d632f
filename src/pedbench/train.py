"""The job of one dataset, split, method and variant: fit and predict its seeds, one by one."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from pedbench.checkpoint import Checkpoints, load_tensors, load_trained, save_tensors
from pedbench.config import Protocol
from pedbench.contracts import BaseMethod, PedbenchError, ReidSettings, Task
from pedbench.data import Images, labelled
from pedbench.devices import device_name
from pedbench.engine import Diverged, Fit, TrainingSet, Validate
from pedbench.files import read_json, write_json
from pedbench.launch import is_first, processes
from pedbench.manifest import Manifest, read_manifest
from pedbench.memory import Memory
from pedbench.nn.backbone import Backbone, load_backbone
from pedbench.predict import (
    normalisation,
    predict,
    write_features,
    write_predictions,
    write_rankings,
)
from pedbench.prepared import Prepared
from pedbench.registry import load_method, load_params
from pedbench.results import sigmoid
from pedbench.runs import (
    PREDICTED,
    REFUSED,
    RunConfig,
    RunFolder,
    derive_seed,
    environment,
    run_digest,
)
from pedbench.tasks import par, reid
from pedbench.tasks.reid import Rankings
from pedbench.together import leave, meet


@dataclass
class Part:
    """The images of some subsets, decoded, with their manifest rows."""

    manifest: Manifest
    images: Images


def train(
    config_path: Path,
    manifest_path: Path,
    weights_path: Path,
    seeds: Sequence[int],
    threads: int,
    keep_epochs: bool = False,
    prepared: Path | None = None,
) -> dict[str, str]:
    """Fit and predict every seed beside ``config_path``; finished ones are recognised and kept.
    With ``keep_epochs`` a run keeps the tensors of every epoch and is finished only with them;
    nothing else of it differs. ``prepared`` is the index of the dataset's prepared pictures;
    without it the picture files are decoded, to the same bits.

    Several processes train one seed after the other together; the first one alone writes.

    Returns seed -> digest of the run. Where the method cannot solve the task there is none, and
    ``refused.json`` beside ``config_path`` holds its reason.
    """
    torch.set_num_threads(threads)
    config, manifest = RunConfig.read(config_path), read_manifest(manifest_path)
    weights = read_json(weights_path)
    digests = {
        seed: run_digest(config, seed, manifest.digest, weights["sha256"], threads, processes())
        for seed in seeds
    }
    folders = {seed: RunFolder(config_path.parent / f"seed{seed}") for seed in seeds}
    pending = [seed for seed in seeds if not folders[seed].is_finished(digests[seed], keep_epochs)]
    for seed in set(seeds) - set(pending) if is_first() else ():
        tqdm.write(f"{folders[seed].path}: finished before, kept")
    refused = config_path.with_name(REFUSED)
    if is_first():
        refused.unlink(missing_ok=True)
    if pending:
        raw = read_json(config_path)
        job = Job(config, raw, manifest, weights_path, threads, prepared=prepared)
        reason = make_method(config).supports(job.task, job.backbone)
        if reason is not None:
            if is_first():
                tqdm.write(f"{config_path.parent}: not run: {reason}")
                write_json(refused, {"reason": reason})
            return {}
        for seed in pending:
            with folders[seed].alone() if is_first() else nullcontext():
                job.run(seed, digests[seed], folders[seed], keep_epochs)
    leave()
    return {str(seed): digest for seed, digest in digests.items()}


def check_validation(config: RunConfig, manifest: Manifest) -> None:
    """Raises PedbenchError when epochs are to be chosen by images that the split does not have."""
    if config.protocol.selects_by and not manifest.has(config.split, "val"):
        raise PedbenchError(
            f"{config.dataset}/{config.split} has no validation images, which selection "
            f"'{config.protocol.selection}' chooses epochs by: set selection to last_epoch, or "
            "take a split that has some"
        )


def make_task(config: RunConfig, train_manifest: Manifest, cameras: int = 0) -> Task:
    """The task as the training subset defines it; ``cameras``: how many the dataset has.

    Raises PedbenchError when labels that the split hides are to be taken for negatives, and when
    the protocol is one for another task.
    """
    protocol = config.protocol
    if train_manifest.is_reid(config.split) != (protocol.task == "reid"):
        raise PedbenchError(
            f"{config.dataset}/{config.split} cannot be run by {protocol.name}, a protocol of task "
            f"{protocol.task}"
        )
    novel = train_manifest.novel.get(config.split, ())
    if novel and config.protocol.unknown_labels != "ignored":
        raise PedbenchError(
            f"{config.dataset}/{config.split} hides the labels of {len(novel)} attributes from "
            f"training; unknown_labels '{config.protocol.unknown_labels}' would teach that no "
            "image has them: set it to 'ignored'"
        )
    task = Task(
        kind=protocol.task,
        attributes=train_manifest.attributes,
        positive_ratio=train_manifest.positive_ratio(),
        loss_weighting=protocol.loss_weighting,
        novel=novel,
    )
    if protocol.task == "par":
        return task
    named = {field.name: getattr(protocol, field.name) for field in fields(ReidSettings)}
    persons = train_manifest.rows["identity"].nunique()
    return replace(task, identities=persons, cameras=cameras, reid=ReidSettings(**named))


def make_method(config: RunConfig) -> BaseMethod[Any]:
    """The method with its hyperparameters."""
    return load_method(config.method)(load_params(config.method, config.params))


def build_model(
    config: RunConfig, backbone: Backbone, task: Task, seed: int
) -> tuple[BaseMethod[Any], nn.Module]:
    """A fresh model on a copy of ``backbone``; initialisation depends on seed and method only."""
    method = make_method(config)
    reason = method.supports(task, backbone)
    if reason is not None:
        raise PedbenchError(
            f"{config.method} cannot run on {config.dataset} with {config.backbone}: {reason}"
        )
    torch.manual_seed(derive_seed(seed, "init", config.method))
    return method, method.build(copy.deepcopy(backbone), task)


def make_accelerator(protocol: Protocol) -> Accelerator:
    """Device and precision, and the other processes of the training. On a GPU only kernels that
    repeat their bits are used, where there are any."""
    meet()
    accelerator = Accelerator(
        mixed_precision="no" if protocol.precision == "fp32" else "bf16",
        cpu=processes() > 1 and not torch.cuda.is_available(),  # else it takes each for one alone
    )
    if accelerator.device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return accelerator


class Job:
    """What the seeds of one job share: pictures, backbone, device."""

    def __init__(
        self,
        config: RunConfig,
        raw: dict[str, Any],
        manifest: Manifest,
        weights_path: Path,
        threads: int,
        subsets: Sequence[str] = PREDICTED,
        prepared: Path | None = None,
    ) -> None:
        """``subsets``: those that are predicted, where the split has them. ``manifest`` may be a
        part of the one whose pictures are in ``prepared``."""
        check_validation(config, manifest)
        self.config, self.raw, self.threads = config, raw, threads
        self.manifest_digest = manifest.digest
        weights = read_json(weights_path)
        protocol = config.protocol
        self.backbone = load_backbone(
            config.backbone,
            weights["file"],
            image_size=protocol.image_size,
            stride=protocol.patch_stride,
        )
        if self.backbone.weights_sha256 != weights["sha256"]:
            raise PedbenchError(
                f"the weights of {config.backbone} changed since {weights_path} was written; "
                "delete that file and run again"
            )
        self.accelerator = make_accelerator(config.protocol)
        torch.set_num_threads(threads)  # accelerate has its own idea of them in several processes
        self.backbone.to(self.accelerator.device)
        self.prepared = prepared
        self.fitted = self._load(manifest, "train")
        there = [subset for subset in subsets if manifest.has(config.split, subset)]
        self.evaluated = {subset: self._load(manifest, subset) for subset in there}
        self.cameras = int(manifest.rows["camera"].to_numpy().max()) + 1
        self.task = make_task(config, self.fitted.manifest, self.cameras)

    def _load(self, manifest: Manifest, subset: str) -> Part:
        protocol, size = self.config.protocol, self.backbone.image_size
        rows = manifest.subset(self.config.split, subset)
        rows = rows.settled(subset, protocol.unknown_labels)
        if self.prepared is None or not self.prepared.exists():  # deleted after the first runs
            return Part(rows, Images.decoded(rows, size, protocol.resize, self.threads))
        store = Prepared(self.prepared, rows, size, protocol.resize)
        assert rows.positions is not None  # it is a subset
        return Part(rows, Images(store.load, rows.positions, size))

    def labelled(self, seed: int) -> Part:
        """The training images that the runs of ``seed`` use: a share of them, if the protocol's
        label_fraction is below 1."""
        fraction, whole = self.config.protocol.label_fraction, self.fitted
        if fraction == 1:
            return whole
        used = labelled(len(whole.images), fraction, derive_seed(seed, "labels"))
        return Part(whole.manifest.take(used.numpy()), whole.images.take(used))

    def build(
        self, seed: int, config: RunConfig | None = None
    ) -> tuple[BaseMethod[Any], nn.Module]:
        """The method and its fresh model, on the device."""
        task = make_task(self.config, self.labelled(seed).manifest, self.cameras)
        method, model = build_model(config or self.config, self.backbone, task, seed)
        return method, model.to(self.accelerator.device)

    def run(self, seed: int, digest: str, folder: RunFolder, keep_epochs: bool = False) -> None:
        """Fit, save the adapter, predict, mark as done; only the first process writes."""
        main = is_first()
        if main:
            self._open(seed, digest, folder)
        self.accelerator.wait_for_everyone()
        memory = Memory(self.accelerator.device)
        method, model = self.build(seed)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        seconds = 0.0
        if method.trains:
            fit = self._fit(method, model, seed, digest, folder, keep_epochs)
            tensors, seconds = fit.run(), fit.state.seconds
            if main:
                save_tensors(folder.adapter, tensors, {"digest": digest})
        self.accelerator.wait_for_everyone()
        started = time.perf_counter()
        if method.trains:
            load_trained(model, load_tensors(folder.adapter)[0], folder.adapter)
        for subset, part in self.evaluated.items():
            found = self.logits(model, part)
            if main:
                self._write(found, part, folder, subset, digest)
        if main:
            cost = {
                "seconds_fit": round(seconds, 2),
                "seconds_predict": round(time.perf_counter() - started, 2),
                "parameters_trained": trained,
                "parameters_total": sum(p.numel() for p in model.parameters()),
            }
            if peak := memory.highest():
                cost["peak_memory_mb"] = round(peak / 1e6)
            write_json(folder.path / "cost.json", cost)
            folder.finish(digest, keep_epochs)
        self.accelerator.wait_for_everyone()

    def try_out(self, params: dict[str, Any], seed: int, folder: RunFolder) -> float:
        """mA, or mAP, on the validation subset after training with ``params``; no prediction is
        kept.

        Raises Diverged when a loss, a gradient or a logit is not finite.
        """
        config = replace(self.config, params=params)
        sha256 = self.backbone.weights_sha256
        digest = run_digest(config, seed, self.manifest_digest, sha256, self.threads)
        method, model = self.build(seed, config)
        load_trained(model, self._fit(method, model, seed, digest, folder).run(), folder.path)
        validate = self._validation()
        assert validate is not None  # `tune` refuses splits without
        return validate(model)

    def _open(self, seed: int, digest: str, folder: RunFolder) -> None:
        task = asdict(make_task(self.config, self.labelled(seed).manifest, self.cameras))
        own = {"seed": seed, "manifest_digest": self.manifest_digest, "task": task}
        folder.start(digest, {**self.raw, **own})
        device = self.accelerator.device
        named = {"device": str(device), "device_name": device_name(device)}
        record = environment(self.threads, processes(), named, self.backbone.weights_sha256)
        write_json(folder.path / "environment.json", record)

    def _fit(
        self,
        method: BaseMethod[Any],
        model: nn.Module,
        seed: int,
        digest: str,
        folder: RunFolder,
        keep_epochs: bool = False,
    ) -> Fit:
        mean, std = normalisation(self.backbone, self.config.protocol)
        part = self.labelled(seed)
        return Fit(
            method,
            model,
            make_task(self.config, part.manifest, self.cameras),
            training_set(part, self.config.split, mean, std),
            self.config.protocol,
            derive_seed(seed, "data"),
            self.accelerator,
            Checkpoints(folder.checkpoint, digest),
            folder.metrics,
            self._validation(),
            label="/".join(folder.path.parts[-5:]),
            epochs=folder.epochs if keep_epochs else None,
        )

    def logits(self, model: nn.Module, part: Part) -> np.ndarray:
        """``(N, A)``, or in re-identification the features ``(N, D)``. Raises Diverged when the
        last step, whose loss nobody saw, left them not finite."""
        protocol, accelerator = self.config.protocol, self.accelerator
        kept = "features" if self.task.kind == "reid" else "logits"
        cameras = torch.from_numpy(part.manifest.rows["camera"].to_numpy(np.int64))
        found = predict(model, part.images, self.backbone, protocol, accelerator, kept, cameras)
        if not np.isfinite(found).all():
            raise Diverged(
                f"{self.config.method}: the trained model's {kept} are not finite. Lower the "
                "learning rate, set clip_norm or use precision fp32"
            )
        return found

    def rankings(self, features: np.ndarray, manifest: Manifest) -> Rankings:
        """Of the queries of a subset, among its gallery."""
        identity, camera = (manifest.rows[name].to_numpy() for name in ("identity", "camera"))
        cuda = "cuda" if self.accelerator.device.type == "cuda" else None
        asks = manifest.is_query(self.config.split)
        return reid.rank_subset(features, asks, identity, camera, device=cuda)

    def _write(
        self, found: np.ndarray, part: Part, folder: RunFolder, subset: str, digest: str
    ) -> None:
        """Logits or features as predictions; what follows from features too."""
        if self.task.kind == "par":
            write_predictions(folder.predictions(subset), part.manifest, found, digest)
            return
        write_features(folder.predictions(subset), part.manifest, found, digest)
        queries = part.manifest.take(np.flatnonzero(part.manifest.is_query(self.config.split))).rows
        rankings = self.rankings(found, part.manifest)
        write_rankings(folder.rankings(subset), queries, rankings, digest)

    def _validation(self) -> Validate | None:
        """mA or mAP on the validation subset, for best_val selection; None where there is none."""
        part = self.evaluated.get("val")
        if part is None:
            return None

        def validate(model: nn.Module) -> float:
            found = self.logits(model, part)
            if self.task.kind == "reid":
                return reid.score(self.rankings(found, part.manifest))["mAP"]
            threshold = self.config.protocol.threshold
            return par.score(sigmoid(found), part.manifest.labels, threshold)["mA"]

        return validate


def training_set(
    part: Part, split: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> TrainingSet:
    """What the engine gets to see; persons are numbered from 0 in the order of their identities."""
    rows, labels = part.manifest.rows, torch.from_numpy(part.manifest.labels.copy())
    if not part.manifest.is_reid(split):
        return TrainingSet(part.images, labels, mean, std)
    _, numbers = np.unique(rows["identity"], return_inverse=True)
    cameras = torch.from_numpy(rows["camera"].to_numpy(np.int64))
    return TrainingSet(part.images, labels, mean, std, torch.from_numpy(numbers), cameras)
