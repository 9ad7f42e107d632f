"""The audit of released code's model selection: how much a test maximum flatters a method.

The code of PromptPAR, like that of others, scores the test images after every epoch and reports of
each metric the largest value. Runs that `released_selection` names keep the tensors of every epoch;
after all training is done and scored they are re-scored here. What comes out is ``selection.csv``
and nothing else: this module is above everything that makes scores, statistics and comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pedbench.checkpoint import Trained, load_tensors, load_trained
from pedbench.collect import read_long, select
from pedbench.contracts import PedbenchError, as_output
from pedbench.data import normalise
from pedbench.engine import TrainingSet, stem_trains
from pedbench.files import read_json, write_text
from pedbench.manifest import read_manifest
from pedbench.predict import normalisation
from pedbench.results import sigmoid
from pedbench.runs import RunConfig, RunFolder, epoch_file, refusal, run_digest
from pedbench.tasks.par import INSTANCE, image_terms, of_sums
from pedbench.train import Job, Part

KEY = ("dataset", "split", "method", "variant", "seed")
METRICS = ("mA", *INSTANCE, "F1_harmonic")  # those of the published tables
CHOICES = ("last_epoch", "validation", "released")
COLUMNS = (*KEY, "metric", *CHOICES, "epoch_last", "epoch_validation", "epoch_released")

Scores = Mapping[str, Mapping[str, np.ndarray]]  # subset -> metric -> value of every epoch


def write_selection(
    plan: Mapping[str, Any],
    long: Path,
    backbones: Path,
    threads: int,
    out: Path,
    prepared: Path | None = None,
) -> None:
    """Write ``selection.csv``, a row per seed and metric of every experiment that keeps its epochs.

    ``plan`` holds the contents of plan.json, ``long`` is the finished long table, ``backbones`` the
    folder of what `pedbench weights` wrote. Raises PedbenchError when an epoch is missing, or when
    the epoch that the protocol selects does not have the very score of the long table.
    """
    torch.set_num_threads(threads)
    known = select(read_long(long), subset="test", attribute="")
    rows = []
    for experiment in plan["experiments"]:
        folder = Path(experiment["folder"])
        if experiment["keep_epochs"] and refusal(folder) is None:
            manifest = read_manifest(Path(plan["datasets"][experiment["dataset"]]["manifest"]))
            config, raw = RunConfig.read(folder / "config.json"), read_json(folder / "config.json")
            weights = backbones / f"{config.backbone}.json"
            job = Job(config, raw, manifest, weights, threads, prepared=config.store(prepared))
            for seed in experiment["seeds"]:
                run = RunFolder(folder / f"seed{seed}")
                scores = score_epochs(job, seed, run)
                key = dict(zip(KEY, (*(experiment[k] for k in KEY[:-1]), seed), strict=True))
                found = compare_choices(scores)
                reported = select(known, **key)
                reported = dict(zip(reported["metric"], reported["value"], strict=True))
                _check(run, found, reported, job.config.protocol.selection)
                rows += [key | row for row in found]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"epoch_validation": "Int64"})
    write_text(out, table.to_csv(index=False, lineterminator="\n"))


def score_epochs(job: Job, seed: int, run: RunFolder) -> Scores:
    """The validation and test scores of every kept epoch of one run, by its own threshold."""
    sha256 = job.backbone.weights_sha256
    made = run.path / "environment.json"
    processes = read_json(made).get("processes", 1) if made.is_file() else 1
    digest = run_digest(job.config, seed, job.manifest_digest, sha256, job.threads, processes)
    if not run.is_finished(digest, epochs=True):
        raise PedbenchError(
            f"{run.path}: not finished with its epochs; run the benchmark again, it will be trained"
        )
    count = len(read_json(run.done)["epochs"])
    if not count:
        raise PedbenchError(f"{run.path}: has no epochs; take it out of 'released_selection'")
    _, model = job.build(seed)
    start = Trained(model).buffers  # an epoch's file lacks those that had not moved
    predict = {subset: _predictor(job, model, part) for subset, part in job.evaluated.items()}
    found = {subset: {metric: np.empty(count) for metric in METRICS} for subset in predict}
    for number in range(count):
        file = epoch_file(run.epochs, number)
        load_trained(model, {**start, **load_tensors(file)[0]}, file)
        for subset, part in job.evaluated.items():
            probabilities, labels = sigmoid(predict[subset]()), part.manifest.labels
            terms = image_terms(probabilities, labels, job.config.protocol.threshold)
            scores, _ = of_sums(terms.sum(axis=0, keepdims=True))
            for metric, values in found[subset].items():
                values[number] = scores[metric][0]
    return found


def compare_choices(scores: Scores) -> list[dict[str, Any]]:
    """Per metric its test value, and the epoch (from 0), under three ways of choosing: the last
    epoch; the best mA on the validation images, None where there are none; the metric's own maximum
    over the test images, which is what released code reports. The first of equal epochs is taken.
    """
    last = len(scores["test"]["mA"]) - 1
    validation = _best(scores["val"]["mA"]) if "val" in scores else None
    rows = []
    for metric in METRICS:
        test = scores["test"][metric]
        epochs = (last, validation, _best(test))
        found = [None if epoch is None else float(test[epoch]) for epoch in epochs]
        values = dict(zip(CHOICES, found, strict=True))
        numbers = dict(zip(COLUMNS[-3:], epochs, strict=True))
        rows.append({"metric": metric, **values, **numbers})
    return rows


def _best(values: np.ndarray) -> int:
    return int(np.argmax(np.nan_to_num(values, nan=-np.inf)))


def _check(
    run: RunFolder, found: list[dict[str, Any]], reported: Mapping[str, float], selection: str
) -> None:
    """The epoch that the protocol selects has the score that the tables print."""
    choice = "validation" if selection == "best_val_mA" else "last_epoch"
    for row in found:
        again, before = row[choice], reported[row["metric"]]
        if not np.isclose(again, before, rtol=0, atol=1e-9, equal_nan=True):
            raise PedbenchError(
                f"{run.epochs}: {row['metric']} of the selected epoch is {again}, but {before} in "
                f"the long table: these are not the epochs of its run; delete {run.path} and run "
                "again"
            )


def _predictor(job: Job, model: nn.Module, part: Part) -> Callable[[], np.ndarray]:
    """Gives the logits of ``part`` with whatever weights ``model`` has when it is called; what a
    stem that never trains makes of the images is computed once."""
    protocol, accelerator = job.config.protocol, job.accelerator
    mean, std = normalisation(job.backbone, protocol)
    shown = TrainingSet(job.fitted.images, torch.empty(0), mean, std)
    if not hasattr(model, "stem") or stem_trains(model, shown, accelerator):
        return lambda: job.logits(model, part)
    stem, head = model.stem, model.head
    batches = torch.arange(len(part.images)).split(protocol.eval_batch_size)
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        features = [
            stem(normalise(part.images[b].to(accelerator.device), mean, std))  # type: ignore
            for b in batches
        ]

    def predict() -> np.ndarray:
        model.eval()
        with torch.no_grad(), accelerator.autocast():
            logits = [as_output(head(f)).logits.float().cpu() for f in features]  # type: ignore
        return torch.cat(logits).numpy()

    return predict
