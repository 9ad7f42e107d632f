"""Learning-rate schedules as pure functions: a factor of the base rate at a step or epoch.

Being functions of the position alone they need no state in a checkpoint. ``cosine`` (the sound
default) and ``constant`` move with every optimiser step; the released schedules are set once per
epoch, counted from 1. They equal timm's and torch's schedulers and the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any, Protocol

from pedbench.contracts import PedbenchError


class Settings(Protocol):
    """What a training protocol says about its schedule."""

    @property
    def schedule(self) -> str: ...
    @property
    def warmup_epochs(self) -> float: ...
    @property
    def warmup_from(self) -> float: ...
    @property
    def final_lr_fraction(self) -> float: ...
    @property
    def milestones(self) -> tuple[int, ...]: ...


def learning_rate_factor(
    settings: Settings, group: Mapping[str, Any], step: int, steps_per_epoch: int, epochs: int
) -> float:
    """Factor of the group's base rate during ``step`` (from 0).

    A ``warmup_epochs`` of the parameter group goes before the protocol's. Raises PedbenchError
    for an unknown schedule.
    """
    warmup = group.get("warmup_epochs", settings.warmup_epochs)
    start, final = settings.warmup_from, settings.final_lr_fraction
    epoch = step // steps_per_epoch + 1
    match settings.schedule:
        case "cosine":
            total = epochs * steps_per_epoch
            return warmup_cosine(step, total, warmup * steps_per_epoch, start, final)
        case "constant":
            return _linear(step, warmup * steps_per_epoch, start)
        case "epoch_cosine":
            return epoch_cosine(epoch, epochs, warmup, start, final)
        case "delayed_cosine":
            return delayed_cosine(epoch, epochs, warmup, start)
        case "multistep":
            return multistep(epoch, warmup, start, settings.milestones)
    raise PedbenchError(
        f"schedule {settings.schedule!r} is unknown: use cosine, constant, epoch_cosine "
        "(PromptPAR, VTB, CLIP-ReID stage 1), delayed_cosine (CoOp family) or multistep "
        "(CLIP-ReID stage 2)"
    )


def warmup_cosine(step: float, total: float, warmup: float, start: float, final: float) -> float:
    """Linear from ``start`` to 1 over ``warmup``, then half a cosine to ``final`` at ``total``."""
    if step < warmup:
        return _linear(step, warmup, start)
    return _half_cosine((step - warmup) / max(total - warmup, 1), final)


def epoch_cosine(epoch: int, epochs: int, warmup: float, start: float, final: float) -> float:
    """PromptPAR, VTB and CLIP-ReID stage 1 (timm's cosine without warm-up prefix).

    The cosine runs from epoch 0 and is entered after the warm-up, so the rate peaks below 1;
    the last epoch runs at ``final``.
    """
    if epoch < warmup:
        return _linear(epoch, warmup, start)
    return _half_cosine(epoch / epochs, final) if epoch < epochs else final


def delayed_cosine(epoch: int, epochs: int, warmup: float, start: float) -> float:
    """CoOp, CoCoOp, MaPLe and VPT: ``start`` during the warm-up, then a cosine over ``epochs``
    that the end of training cuts off."""
    return start if epoch <= warmup else _half_cosine((epoch - 1 - warmup) / epochs, 0.0)


def multistep(
    epoch: int,
    warmup: float,
    start: float,
    milestones: tuple[int, ...] = (30, 50),
    gamma: float = 0.1,
) -> float:
    """CLIP-ReID stage 2: linear warm-up, then times ``gamma`` from each milestone on."""
    return _linear(epoch, warmup, start) * gamma ** sum(epoch >= m for m in milestones)


def _linear(position: float, warmup: float, start: float) -> float:
    return start + (1 - start) * position / warmup if position < warmup else 1.0


def _half_cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + cos(pi * min(progress, 1.0))) / 2
