"""What a method is asked to do: losses (torch) and metrics (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pedbench.contracts import TaskKind

# what `comparison.metrics` may name: functions of sums over images or queries
TESTED: Mapping[TaskKind, tuple[str, ...]] = {
    "par": ("F1", "mA", "accuracy_label", "accuracy", "precision", "recall")
    + ("F1_instance", "F1_harmonic"),
    "reid": ("mAP", "rank1", "rank5", "rank10", "mINP"),
}


def tested(metrics: Sequence[str], task: TaskKind) -> tuple[str, ...]:
    """Those of ``metrics`` that ``task`` has."""
    return tuple(metric for metric in metrics if metric in TESTED[task])
