"""The one training loop, for all methods: from a built model to the tensors it learned.

Randomness of a step is a function of (seed, stage, step) alone, so a run that is killed at any
step and resumed from its last checkpoint ends with the same bits as an undisturbed one. Several
processes share each batch: `pedbench.together`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from pedbench.checkpoint import (
    Checkpoints,
    Trained,
    load_optimiser,
    load_trained,
    optimiser_tensors,
    save_tensors,
)
from pedbench.config import Protocol
from pedbench.contracts import BaseMethod, Batch, PedbenchError, Stage, Task, as_output
from pedbench.data import Images, augment, epoch_order, erase, identity_batches, normalise
from pedbench.files import write_text
from pedbench.nn.heads import LinearHead
from pedbench.runs import derive_seed, epoch_file
from pedbench.schedules import learning_rate_factor
from pedbench.stopping import REASONS, Stopped, deferred, reason
from pedbench.together import Team

Validate = Callable[[nn.Module], float]


class Diverged(PedbenchError):
    """A loss or a gradient that is not finite."""


@dataclass
class TrainingSet:
    """Images, labels ``(N, A)`` and, in re-identification, identities ``(N,)`` from 0 and cameras
    ``(N,)`` of the training subset; nothing of val or test."""

    images: Images
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    identities: Tensor | None = None
    cameras: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, images: Tensor, positions: Tensor, device: torch.device) -> Batch:
        """``images`` with what is known of those at ``positions``."""
        known = (self.labels, self.identities, self.cameras)
        return Batch(images, *(None if v is None else v[positions].to(device) for v in known))  # type: ignore[arg-type]


@dataclass
class State:
    """Where training stands; everything in it is written to the checkpoint."""

    stage: int = 0
    step: int = 0  # finished steps of this stage
    sums: dict[str, float] = field(default_factory=dict)  # loss terms of the running epoch
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -math.inf
    seconds: float = 0.0  # of training, over all starts of the run


class Fit:
    """One training of ``model`` by ``method``; call :meth:`run` once."""

    def __init__(
        self,
        method: BaseMethod[Any],
        model: nn.Module,
        task: Task,
        data: TrainingSet,
        protocol: Protocol,
        seed: int,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        log: Path,
        validate: Validate | None = None,
        label: str = "",
        epochs: Path | None = None,
    ) -> None:
        """``epochs``: a folder that gets the trained tensors after each of the method's own
        epochs; None: they are not kept."""
        self.method, self.task, self.data, self.protocol = method, task, data, protocol
        self.seed, self.accelerator, self.checkpoints = seed, accelerator, checkpoints
        self.team = Team(accelerator.num_processes, accelerator.process_index)
        self.log, self.validate, self.label, self.epochs = log, validate, label, epochs
        if protocol.selects_by and validate is None:
            raise PedbenchError(
                f"selection '{protocol.selection}' needs a validation subset; there is none"
            )
        self.model = model
        self.trained = Trained(model)
        self.groups = {g["name"]: g for g in method.param_groups(model)}
        self._check_groups()
        self.state = State()
        self.before = 0  # stages in front of the method's own
        self.best: dict[str, Tensor] = {}

    def _check_groups(self) -> None:
        grouped = [id(p) for g in self.groups.values() for p in g["params"]]
        wanted = {id(p) for p in self.model.parameters() if p.requires_grad}
        if len(grouped) != len(set(grouped)) or set(grouped) != wanted:
            raise PedbenchError(
                f"{type(self.method).__module__}: param_groups must hold every trainable "
                "parameter exactly once"
            )

    def run(self) -> dict[str, Tensor]:
        """Train all stages; returns the selected adapter's tensors.

        Raises Diverged naming step and parameter group when a loss or gradient is not finite,
        Stopped when the job was asked to leave, which it does with a checkpoint of the running
        step, and PedbenchError when a checkpoint is corrupt.
        """
        with deferred():
            return self._run()

    def _run(self) -> dict[str, Tensor]:
        self._since = time.perf_counter()
        stages = self.method.stages(tuple(self.groups))
        if self._starts_from_the_probe():
            epochs = {"epochs": self.protocol.probe_epochs}
            probe = Stage("probe", ("head",), self.protocol.probe_lr, epochs)
            self.before, stages = 1, (probe, *stages)
        resumed = self.checkpoints.load()
        if resumed is not None and self._lacks_epochs(resumed[1]["history"]):
            resumed = None  # they were not kept when it started
        if resumed is not None:
            self._restore(*resumed)
        else:
            self._prepare()
        for index in range(self.state.stage, len(stages)):
            self._run_stage(stages[index], index, resumed[0] if resumed else None)
            resumed = None
            self.state.stage, self.state.step, self.state.sums = index + 1, 0, {}
        self._count_time()
        return self.best or self.trained.tensors()  # without a stage nothing was validated

    def _starts_from_the_probe(self) -> bool:
        """Whether a linear head stands above something that trains, and starts from the probe."""
        head = getattr(self.model, "head", None)
        if self.protocol.head_init != "linear_probe" or not isinstance(head, LinearHead):
            return False
        inside = {id(p) for p in head.parameters()}
        groups = {name: {id(p) for p in g["params"]} for name, g in self.groups.items()}
        if set().union(*groups.values()) == inside:
            return False
        if groups.get("head") != inside:
            raise PedbenchError(
                f"{type(self.method).__module__}: head_init 'linear_probe' first trains the linear "
                "head alone, so param_groups must hold its parameters, and no others, in a group "
                "named 'head'"
            )
        return True

    def _own(self, history: list[dict[str, Any]]) -> int:
        """How many of the finished epochs are the method's own, not the probe's."""
        return max(0, len(history) - self.before * self.protocol.probe_epochs)

    def _lacks_epochs(self, history: list[dict[str, Any]]) -> bool:
        """Whether an epoch that a checkpoint has behind it should have been kept and was not."""
        if self.epochs is None:
            return False
        kept = (epoch_file(self.epochs, number) for number in range(self._own(history)))
        return not all(file.is_file() for file in kept)

    def _prepare(self) -> None:
        def batches() -> Iterator[Batch]:
            for positions in torch.arange(len(self.data)).split(self.protocol.eval_batch_size):
                device = self.accelerator.device
                pictures = self.data.images[positions].to(device)
                pictures = normalise(pictures, self.data.mean, self.data.std)
                yield self.data.batch(pictures, positions, device)

        training = self.model.training
        self.model.eval()
        torch.manual_seed(derive_seed(self.seed, "prepare"))
        with torch.no_grad(), self.accelerator.autocast():
            self.method.prepare(self.model, batches())
        self.model.train(training)

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        model = {k.removeprefix("model/"): v for k, v in tensors.items() if k[:6] == "model/"}
        load_trained(self.model, model, self.checkpoints.folder)
        self.best = {k.removeprefix("best/"): v for k, v in tensors.items() if k[:5] == "best/"}
        best = meta.pop("best")
        self.state = State(**meta, best=-math.inf if best is None else best)
        if self.team.rank == 0:
            tqdm.write(f"{self.label}: resumed at stage {meta['stage']}, step {meta['step']}")

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.state.seconds, self._since = self.state.seconds + now - self._since, now

    def _save(self, optimiser: torch.optim.Optimizer) -> None:
        self._count_time()
        if self.team.rank > 0:
            return
        tensors = {f"model/{k}": v for k, v in self.trained.tensors().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors |= optimiser_tensors(optimiser)
        meta = dict(vars(self.state))
        if math.isinf(self.state.best):
            meta["best"] = None
        self.checkpoints.save(tensors, meta)

    def _run_stage(self, stage: Stage, index: int, tensors: dict[str, Tensor] | None) -> None:
        protocol = replace(self.protocol, **stage.settings)
        own, number = index >= self.before, max(index - self.before, 0)
        groups = self._activate(stage)
        if own:
            self.method.start_stage(self.model, stage)
        else:  # a method's long warm-up is not the probe's
            warmup = min(1, protocol.warmup_epochs)
            groups = [{**group, "warmup_epochs": warmup} for group in groups]
        optimiser = make_optimiser(groups, protocol, stage.lr)
        if tensors is not None:
            load_optimiser(optimiser, tensors)
        epochs = protocol.epochs
        per_epoch, batch, order = self._sampler(protocol)
        norms = any(isinstance(m, nn.BatchNorm1d) for m in self.model.modules())
        least = max(2 if norms else 1, self.team.size)
        if batch < least * protocol.accumulate:
            raise PedbenchError(
                f"{self.label}: a step has {batch} images (batch_size {protocol.batch_size}, "
                f"{len(self.data)} for training), too few for accumulate {protocol.accumulate} in "
                f"{self.team.size} processes (at least {least} in each part); lower accumulate or "
                "raise batch_size"
            )
        total = epochs * per_epoch
        self._agree()
        stem = cached_stem(self.model, self.data, protocol, self.accelerator, self.team)
        self._sharing(stem).share_statistics(self.model)
        trainee: Any = self.model if stem is None else self.model.head
        # not `prepare`, which would let processes average gradients: `Team.add` sums them
        model: Any = self.accelerator.prepare_model(trainee, evaluation_mode=True)
        model._is_accelerate_prepared = True  # as it notes: no other stage does it again
        optimiser = self.accelerator.prepare_optimizer(optimiser)
        bar = tqdm(
            total=total,
            initial=self.state.step,
            desc=f"{self.label} {stage.name}",
            mininterval=5,
            disable=self.team.rank > 0,
        )
        self.model.train()
        for epoch in range(self.state.step // per_epoch, epochs):
            seed = derive_seed(self.seed, "order", str(number))
            batches = order(seed, epoch)
            for position in range(self.state.step % per_epoch, per_epoch):
                step = self.state.step
                for group in optimiser.param_groups:
                    factor = learning_rate_factor(protocol, group, step, per_epoch, epochs)
                    group["lr"] = group["base_lr"] * factor
                step_seed = derive_seed(self.seed, "step", str(number), str(step))
                chosen = batches[position]
                terms = self._step(model, optimiser, protocol, chosen, stem, step, step_seed)
                if own:
                    self.method.after_step(self.model, step + 1, total)
                optimiser.zero_grad()
                for name, value in terms.items():
                    self.state.sums[name] = self.state.sums.get(name, 0.0) + value
                self.state.step += 1
                bar.update()
                last = position + 1 == per_epoch
                if last:
                    self._end_epoch(optimiser, stage, epoch, per_epoch, select=own)
                why = self._reason()
                if (
                    why
                    or self.state.step % protocol.checkpoint_steps == 0
                    or (last and epoch + 1 == epochs)
                ):
                    self._save(optimiser)
                if why:
                    self.accelerator.wait_for_everyone()  # until it is saved
                    where = f"{self.label} {stage.name}, step {self.state.step}"
                    raise Stopped(where, why, got_on=True)
        bar.close()
        self.accelerator.free_memory()  # it would keep this stage's model and optimiser

    def _agree(self) -> None:
        """Let all processes stand where the first one stands."""
        if self.team.size > 1 and any(
            getattr(m, "last_for_all", False) for m in self.model.modules()
        ):
            raise PedbenchError(
                f"{self.label}: gl_aggregation 'released' reads the last image of a batch for all, "
                "and several processes have several last ones: train with --processes 1"
            )
        trained = [p.detach() for group in self.groups.values() for p in group["params"]]
        self.team.agree([*trained, *self.model.buffers()])

    def _sharing(self, stem: Stem | None) -> Team:
        """Who shares a step: kept features are few, so each process does all of them."""
        return self.team if stem is None else Team(1, 0)

    def _reason(self) -> str | None:
        """Why all processes have to leave now; None: they may go on."""
        own = reason()
        latest = self.team.largest(0 if own is None else 1 + REASONS.index(own))
        return REASONS[latest - 1] if latest else None

    def _sampler(self, protocol: Protocol) -> tuple[int, int, Callable[[int, int], Tensor]]:
        """Steps of an epoch, images B of a step, and what gives the positions ``(steps, B)`` of an
        epoch from seed and epoch."""
        data, size = self.data, min(protocol.batch_size, len(self.data))
        if self.task.kind == "par" or protocol.sampler == "shuffle":
            steps = len(data) // size

            def shuffled(seed: int, epoch: int) -> Tensor:
                return epoch_order(len(data), seed, epoch)[: steps * size].view(steps, size)

            return steps, size, shuffled
        each = protocol.images_per_identity
        persons = min(protocol.batch_size // each, self.task.identities)
        if persons < 2 or protocol.batch_size % each or persons % protocol.accumulate:
            raise PedbenchError(
                f"{self.label}: batches of {protocol.batch_size} images, images_per_identity "
                f"{each}, accumulate {protocol.accumulate}: a batch must be a whole number of "
                f"persons (at least two; there are {self.task.identities}), the same number in "
                "each part; change batch_size"
            )
        assert data.identities is not None
        drawn = partial(identity_batches, data.identities, persons, each)
        steps, size = drawn(0, 0).shape
        return steps, size, drawn

    def _activate(self, stage: Stage) -> list[dict[str, Any]]:
        """Let exactly the parameters of the stage's groups receive gradients."""
        for group in self.groups.values():
            for parameter in group["params"]:
                parameter.requires_grad_(group["name"] in stage.groups)
        return [self.groups[name] for name in stage.groups]

    def _step(
        self,
        model: nn.Module,
        optimiser: Any,
        protocol: Protocol,
        chosen: Tensor,
        stem: Stem | None,
        step: int,
        seed: int,
    ) -> dict[str, float]:
        """One optimiser step on the images at ``chosen``; returns the loss terms.

        Every process computes the loss of all images, part by part, and shows its share of each
        part to the model.
        """
        accelerator, device = self.accelerator, self.accelerator.device
        team = self._sharing(stem)
        parts = torch.arange(len(chosen)).tensor_split(protocol.accumulate)
        mine = [team.share(part) for part in parts]
        torch.manual_seed(seed)
        inputs = (
            stem(chosen, seed) if stem else self._views(protocol, chosen, torch.cat(mine), seed)
        )
        if team.rank > 0:  # other units drop out; what is drawn for pictures is drawn
            torch.manual_seed(derive_seed(seed, "process", str(team.rank)))
        totals: dict[str, float] = {}
        for part, own, shown in zip(parts, mine, inputs.split([*map(len, mine)]), strict=True):
            with accelerator.autocast():
                shown = shown.to(device)
                batch = self.data.batch(shown, chosen[own], device)
                output = as_output(model(shown, **read(self.model, batch)))
                if team.size > 1:
                    output = team.whole(output, len(part))
                    batch = self.data.batch(shown.new_empty(0), chosen[part], device)
                terms = self.method.loss(output, batch, self.task)
            if not terms:
                raise PedbenchError(
                    f"{self.label}: every loss weighs 0, so there is nothing to train by: raise "
                    "id_loss_weight, or name a pair_loss and raise pair_loss_weight"
                )
            loss = torch.stack(list(terms.values())).sum()
            share = len(part) / len(chosen)
            if not torch.isfinite(loss):
                self._stop(step, terms)
            accelerator.backward(loss * share)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + share * value.item()
        for group in optimiser.param_groups:
            team.add(p.grad for p in group["params"] if p.grad is not None)
            norm = accelerator.clip_grad_norm_(group["params"], protocol.clip_norm or math.inf)
            if norm is not None and not torch.isfinite(norm):
                self._stop(step, terms, group["name"])
        optimiser.step()
        return totals

    def _views(self, protocol: Protocol, chosen: Tensor, mine: Tensor, seed: int) -> Tensor:
        """The pictures at ``chosen[mine]`` as this step shows them, on the device."""
        shown = torch.zeros(len(chosen), dtype=torch.bool)
        shown[mine] = True
        views = torch.Generator().manual_seed(seed)
        pictures = self.data.images[chosen[mine]]
        pictures = augment(pictures, protocol.flip, protocol.crop_padding, views, shown)
        pictures = pictures.to(self.accelerator.device)
        pictures = normalise(pictures, self.data.mean, self.data.std)
        if protocol.random_erasing:
            pictures = erase(pictures, protocol.random_erasing, protocol.erasing_fill, shown)
        return pictures

    def _stop(self, step: int, terms: dict[str, Tensor], group: str | None = None) -> None:
        values = ", ".join(f"{name} = {value.item():.4g}" for name, value in terms.items())
        if group is None:
            size = {n: _largest(g["params"]) for n, g in self.groups.items()}
            worst = max(size, key=lambda n: size[n])
            what = (
                f"the loss is not finite ({values}); the largest weights are in parameter group "
                f"'{worst}' (up to {size[worst]:.3g})"
            )
        else:
            what = f"the gradient of parameter group '{group}' is not finite ({values})"
        raise Diverged(
            f"{self.label}: step {step}: {what}. Lower the learning rate, set clip_norm or use "
            "precision fp32; the last checkpoint before this step is kept."
        )

    def _end_epoch(
        self, optimiser: Any, stage: Stage, epoch: int, steps: int, select: bool
    ) -> None:
        line: dict[str, Any] = {"stage": stage.name, "epoch": epoch, "step": self.state.step}
        line |= {f"loss/{name}": value / steps for name, value in self.state.sums.items()}
        line |= {f"lr/{group['name']}": group["lr"] for group in optimiser.param_groups}
        self.state.sums = {}
        validate = self.validate if select and stage.selects else None
        if validate is not None and (metric := self.protocol.selects_by):
            line[f"val/{metric}"] = score = validate(self.model)
            self.model.train()
            if score > self.state.best:
                self.state.best, self.best = score, self.trained.tensors()
        self.state.history.append(line)
        if self.team.rank == 0:
            if select and self.epochs is not None:
                number = self._own(self.state.history) - 1
                save_tensors(epoch_file(self.epochs, number), self.trained.tensors(), {})
            lines = (json.dumps(entry, sort_keys=True) for entry in self.state.history)
            write_text(self.log, "\n".join(lines) + "\n")


def _largest(parameters: list[Tensor]) -> float:
    """Largest magnitude; infinite when a value is not finite."""
    largest = max(p.detach().abs().max().item() for p in parameters)
    return largest if math.isfinite(largest) else math.inf


def make_optimiser(
    groups: list[dict[str, Any]], protocol: Protocol, lr: float | None = None
) -> torch.optim.Optimizer:
    """SGD, AdamW or Adam (whose decay is part of the gradient) over the groups, each with its own
    decay and, unless ``lr`` is given, rate."""
    prepared = [
        {
            **g,
            "base_lr": g["lr"] if lr is None else lr,
            "weight_decay": g.get("weight_decay", protocol.weight_decay),
        }
        for g in groups
    ]
    if protocol.optimiser == "sgd":
        return torch.optim.SGD(prepared, lr=0.0, momentum=protocol.momentum)
    adam = torch.optim.Adam if protocol.optimiser == "adam" else torch.optim.AdamW
    return adam(prepared, lr=0.0)


Stem = Callable[[Tensor, int], Tensor]


def cached_stem(
    model: nn.Module,
    data: TrainingSet,
    protocol: Protocol,
    accelerator: Accelerator,
    team: Team,
) -> Stem | None:
    """Features of the frozen stem, computed once for each view (plain, mirrored).

    None if anything in the stem trains or the augmentation has too many views. The choice of
    views draws the same random numbers as :func:`pedbench.data.augment`.
    """
    varied = protocol.crop_padding or protocol.random_erasing
    if not hasattr(model, "stem") or varied or stem_trains(model, data, accelerator):
        return None
    views = [stem_features(model, data, protocol, accelerator, team, mirrored=False)]
    if protocol.flip:
        views.append(stem_features(model, data, protocol, accelerator, team, mirrored=True))
    stacked = torch.stack(views)

    def pick(positions: Tensor, seed: int) -> Tensor:
        if not protocol.flip:
            return stacked[0, positions]
        generator = torch.Generator().manual_seed(seed)
        mirrored = torch.rand(len(positions), generator=generator) < 0.5
        return stacked[mirrored.long(), positions]

    return pick


def stem_trains(model: nn.Module, data: TrainingSet, accelerator: Accelerator) -> bool:
    """Whether features of an image depend on a trained parameter. Where parameters are registered
    does not tell: a head that computes texts holds the backbone, image tower included."""
    training = model.training
    model.eval()
    picture = data.images[torch.tensor([0])].to(accelerator.device)
    features = model.stem(normalise(picture, data.mean, data.std))  # type: ignore[operator]
    model.train(training)
    return features.requires_grad


def stem_features(
    model: nn.Module,
    data: TrainingSet,
    protocol: Protocol,
    accelerator: Accelerator,
    team: Team,
    mirrored: bool,
) -> Tensor:
    """``(N, ...)`` frozen features of every training image in manifest order."""

    def features(positions: Tensor) -> Tensor:
        pictures = data.images[positions]
        pictures = pictures.flip(3) if mirrored else pictures
        pictures = normalise(pictures.to(accelerator.device), data.mean, data.std)
        return model.stem(pictures).float()  # type: ignore[operator]

    training = model.training
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        found = team.in_batches(len(data), protocol.eval_batch_size, features)
    model.train(training)
    return found


def read(model: nn.Module, batch: Batch) -> dict[str, Tensor | None]:
    """What ``model`` reads of ``batch`` beside the images: see `BaseMethod.build`."""
    return {name: getattr(batch, name) for name in getattr(model, "reads", ())}
