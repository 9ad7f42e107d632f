"""Golden metrics, losses and learning-rate schedules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from golden import Case, Tolerances, plain_task
from torch import Tensor
from torch.nn import functional as F

from pedbench import schedules
from pedbench.contracts import Task
from pedbench.tasks import par
from pedbench.tasks.losses import label_weights, weighted_bce

TOLERANCES: dict[str, Tolerances] = {
    "par_metrics": {"exact64": (0.0, 1e-12)},
    "par_loss": {"output": (1e-6, 0.0), "loss": (1e-6, 0.0), "grad": (1e-5, 1e-7)},
    "lr_schedules": {"exact64": (1e-12, 0.0)},
}


def check_par_metrics(case: Case) -> None:
    pattern = re.compile(r"exact64/(\d+)/t(\d+)/(promptpar_vtb|rethinking)/(\w+)")
    for name in sorted(case.open):
        match = pattern.fullmatch(name)
        assert match, f"{name}: unknown array"
        index, threshold, source, metric = match.groups()
        p, y = case.arrays[f"input/{index}/probs"], case.arrays[f"input/{index}/labels"]
        case.compare(name, released_metrics(p, y, int(threshold) / 100, source)[metric])


def released_metrics(p: np.ndarray, y: np.ndarray, threshold: float, source: str) -> dict[str, Any]:
    """Our metrics by the names of the authors' functions."""
    cells = par.cells(p, y, threshold)
    n = par.label_counts(cells, np.ones((1, len(p))))
    label = {k: v[0] for k, v in par.label_metrics(n, "released").items()}
    overall = par.score(p, y, threshold, "released")
    wrong = (n.false_positive + n.false_negative)[0]
    found = n.true_positive[0]
    with np.errstate(invalid="ignore"):
        union = np.where(found + wrong > 0, found / (found + wrong), 0.0)
    return {
        "label_pos_recall": label["positive_recall"],
        "label_neg_recall": label["negative_recall"],
        "label_prec": label["precision"],
        "label_acc": union,
        "label_f1": label["F1"],
        "label_ma": label["mA"],
        "error_num": wrong,
        "fn_num": n.false_negative[0],
        "fp_num": n.false_positive[0],
        "ma": overall["mA"],
        "instance_acc": overall["accuracy"],
        "instance_prec": overall["precision"],
        "instance_recall": overall["recall"],
        "instance_f1": overall["F1_harmonic" if source == "rethinking" else "F1_instance"],
    }


def check_par_loss(case: Case) -> None:
    targets, coded = case.tensor("input/targets"), case.tensor("input/targets_with_2")
    ratio = case.tensor("input/pos_ratio")

    def task(weighting: str) -> Task:
        return plain_task(len(ratio), ratio, weighting)

    def ignoring_nothing(logits: Tensor) -> Tensor:
        # the authors' module binarises its mask first, so that code 2 is a positive of target 2
        weights = label_weights((coded > 0.5).float(), ratio, "released")
        loss = F.binary_cross_entropy_with_logits(logits, coded, weights, reduction="sum")
        return loss / len(logits)

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "cel_weighted": lambda x: weighted_bce(x, targets, task("released")),
        "cel_weighted_sum": lambda x: weighted_bce(x, targets, task("released")) * len(x),
        "cel_unweighted": lambda x: weighted_bce(x, targets, task("none")),
        "cel_targets_with_2": ignoring_nothing,
        "vtb_cel_weighted": lambda x: weighted_bce(x, targets, task("released")),
        "rethinking_bce_weighted": lambda x: weighted_bce(x, targets, task("released")),
        "rethinking_bce_unweighted": lambda x: weighted_bce(x, targets, task("none")),
    }
    for name in case.names("loss/"):
        logits = case.tensor("input/logits").requires_grad_()
        loss = losses[name](logits)
        loss.backward()
        case.compare(f"loss/{name}", loss)
        case.compare(f"grad/{name}/logits", logits.grad)
    case.compare("output/ratio2weight", label_weights(targets, ratio, "released"))
    weights = label_weights(coded, ratio, "released")
    case.compare("output/ratio2weight_targets_with_2", weights)


# schedule name -> rate of an epoch (from 1) out of `epochs`, from the authors' configurations
RATES: dict[str, Callable[[int, int], float]] = {
    "promptpar_head": lambda e, n: 8e-3 * schedules.epoch_cosine(e, n, 5, 0.01, 0.002),
    "promptpar_prompt": lambda e, n: 4e-3 * schedules.epoch_cosine(e, n, 10, 0.01, 0.002),
    "vtb": lambda e, n: 8e-3 * schedules.epoch_cosine(e, n, 5, 0.01, 0.002),
    "clipreid_stage1": lambda e, n: (
        3.5e-4 * schedules.epoch_cosine(e, n, 5, 1e-5 / 3.5e-4, 1e-6 / 3.5e-4)
    ),
    "clipreid_stage2": lambda e, n: 5e-6 * schedules.multistep(e, 10, 0.1),
    "coop": lambda e, n: 2e-3 * schedules.delayed_cosine(e, n, 1, 1e-5 / 2e-3),
    "cocoop": lambda e, n: 2e-3 * schedules.delayed_cosine(e, n, 1, 1e-5 / 2e-3),
    "maple": lambda e, n: 3.5e-3 * schedules.delayed_cosine(e, n, 1, 1e-5 / 3.5e-3),
    "vpt": lambda e, n: 2.5e-3 * schedules.delayed_cosine(e, n, 1, 1e-5 / 2.5e-3),
}


def check_lr_schedules(case: Case) -> None:
    for name in sorted(case.open):
        match = re.fullmatch(r"exact64/(\w+)_(\d+)ep", name)
        assert match and match[1] in RATES, f"{name}: unknown schedule"
        epochs = int(match[2])
        case.compare(name, [RATES[match[1]](epoch, epochs) for epoch in range(1, epochs + 1)])
