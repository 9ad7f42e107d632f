"""What every variant costs: parameters, operations, speed, memory, energy.

Each variant is measured in a process of its own, one after the other, by a job that has the machine
to itself. docs/cost.md says what the columns mean, and what they do not.
"""

from __future__ import annotations

import gc
import importlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pedbench.checkpoint import Checkpoints
from pedbench.config import Protocol
from pedbench.contracts import BaseMethod, PedbenchError
from pedbench.data import identity_batches
from pedbench.devices import device_name
from pedbench.engine import Fit
from pedbench.files import read_json, write_text
from pedbench.manifest import Manifest, read_manifest
from pedbench.memory import Memory
from pedbench.predict import normalisation, predict
from pedbench.runs import RunConfig, device_of, refusal
from pedbench.train import Job, build_model, make_task, training_set

KEY = ("dataset", "split", "method", "variant")
SIZES = (1, 8, 32)  # images per forward pass in prediction
COLUMNS = (
    *(*KEY, "device", "threads"),
    *("parameters_allocated", "parameters_trained", "parameters_effective", "share_of_full"),
    *("adapter_bytes", "gflop_per_image", "train_images_per_s", "latency_ms_1"),
    *(f"images_per_s_{size}" for size in SIZES),
    *("train_peak_mb", "predict_peak_mb", "seconds_fit", "device_of_runs", "energy_j_per_image"),
)
BATCHES = 4  # of training images that are used
STEPS, WARM_UP = 12, 5  # of the timed training; how many of them are not timed
SECONDS, LEAST = 0.3, 5  # of timed predictions


def write_costs(
    plan: Mapping[str, Any],
    backbones: Path,
    threads: int,
    out: Path,
    prepared: Path | None = None,
) -> None:
    """Write one row per variant of the tables, in their order, measured where it runs first.

    ``backbones`` is the folder of what `pedbench weights` wrote, ``prepared`` that of prepared
    pictures; without it picture files are decoded. A variant that fails keeps what its runs tell.
    Raises PedbenchError when all fail.
    """
    importlib.import_module("open_clip")  # slow: not again in every process
    rows, failures = [], []
    for experiment in tqdm(list(first_experiments(plan)), unit="variant"):
        folder = Path(experiment["folder"])
        settings = folder / "config.json"
        manifest = Path(plan["datasets"][experiment["dataset"]]["manifest"])
        row = {key: experiment[key] for key in KEY}
        row |= kept_by_runs([folder / f"seed{seed}" for seed in experiment["seeds"]])
        try:
            weights = backbones / f"{read_json(settings)['backbone']}.json"
            row |= in_own_process(measure, settings, manifest, weights, threads, prepared)
        except Exception as error:  # of any method; the others go on
            failures.append(f"{'/'.join(row[key] for key in KEY)}: {_reason(error)}")
            tqdm.write(f"not measured: {failures[-1]}")
        rows.append(row)
    if failures and len(failures) == len(rows):
        raise PedbenchError(f"no variant's cost could be measured. {failures[0]}")
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    write_text(out, table.to_csv(index=False, lineterminator="\n"))


def first_experiments(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Of each method and variant in the tables, and each task, the first experiment that was not
    refused."""
    seen = set()
    for experiment in plan["experiments"]:
        folder = Path(experiment["folder"])
        if not experiment["in_tables"] or refusal(folder) is not None:
            continue
        task = RunConfig.read(folder / "config.json").protocol.task
        name = task, experiment["method"], experiment["variant"]
        if name not in seen:
            seen.add(name)
            yield experiment


def kept_by_runs(folders: list[Path]) -> dict[str, Any]:
    """Size of the adapter, mean duration of training and the device of the runs: empty where
    nothing was trained, the last two where several devices were used, whose times do not mix."""
    adapters = [folder / "adapter.safetensors" for folder in folders]
    if not adapters[0].is_file():
        return {}
    found: dict[str, Any] = {"adapter_bytes": adapters[0].stat().st_size}
    devices = {device_of(read_json(folder / "environment.json")) for folder in folders}
    if len(devices) == 1:
        seconds = mean(read_json(folder / "cost.json")["seconds_fit"] for folder in folders)
        found |= {"seconds_fit": _rounded(seconds), "device_of_runs": devices.pop()}
    return found


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result in a fork of this process: its memory is its own, and its death too."""
    fork = multiprocessing.get_context("fork")  # has what is imported; gc need not look at it
    with ProcessPoolExecutor(1, fork, initializer=gc.freeze) as pool:
        return pool.submit(function, *arguments).result()


def _reason(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process was killed, for want of memory most likely"
    return str(error) if isinstance(error, PedbenchError) else f"{type(error).__name__}: {error}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def measure(
    settings: Path, manifest: Path, weights: Path, threads: int, prepared: Path | None = None
) -> dict[str, Any]:
    """The cost of the variant with the resolved config ``settings``."""
    torch.set_num_threads(threads)
    bench = Bench(settings, manifest, weights, threads, prepared)
    row = {"device": device_name(bench.device), "threads": threads}
    row |= size_and_speed(bench)
    return row | peak_memory(bench)  # last: pages of code that has run once do not count


def size_and_speed(bench: Bench) -> dict[str, Any]:
    method, model = bench.build()
    row = count_parameters(model, bench.job.backbone) | prediction_speed(bench, model)
    if row["parameters_trained"]:
        row |= training_speed(bench, method, model)
    model.requires_grad_(False)  # the counter fails on what could have a gradient and has none
    row["gflop_per_image"] = count_flops(lambda: bench.predict(model, 1)) / 1e9
    return row


class Bench:
    """One variant with a few batches of its training images; the task is that of all of them."""

    def __init__(
        self,
        settings: Path,
        manifest: Path,
        weights: Path,
        threads: int,
        prepared: Path | None = None,
    ) -> None:
        config, whole = RunConfig.read(settings), read_manifest(manifest)
        # where a linear head starts from decides no cost, and when to validate neither
        short = {"head_init": "random", "selection": "last_epoch"}
        config = replace(config, protocol=replace(config.protocol, **short))
        train = whole.subset(config.split, "train")
        few = train.take(self._few(train, config.protocol))
        store = config.store(prepared)
        self.job = Job(config, read_json(settings), few, weights, threads, (), store)
        cameras = int(whole.rows["camera"].to_numpy().max()) + 1
        self.task, self.protocol = make_task(config, train, cameras), config.protocol
        self.device = self.job.accelerator.device
        self.data = training_set(
            self.job.fitted, config.split, *normalisation(self.job.backbone, self.protocol)
        )

    @staticmethod
    def _few(train: Manifest, protocol: Protocol) -> np.ndarray:
        """Positions of the images that are used: the first ones, in re-identification the first of
        every person."""
        order = np.arange(len(train.rows))
        if protocol.task == "reid":
            before = train.rows.groupby("identity").cumcount().to_numpy()
            order = np.argsort(before // protocol.images_per_identity, kind="stable")
        return np.sort(order[: BATCHES * protocol.batch_size])

    def build(self) -> tuple[BaseMethod[Any], nn.Module]:
        method, model = build_model(self.job.config, self.job.backbone, self.task, seed=0)
        return method, model.to(self.device)

    def predict(self, model: nn.Module, size: int) -> None:
        """The logits, or features, of ``size`` images in one forward pass."""
        images: Any = self.job.fitted.images
        images = images[torch.arange(size) % len(images)]
        protocol = replace(self.protocol, eval_batch_size=size)
        kept = "features" if self.task.kind == "reid" else "logits"
        cameras = torch.zeros(size, dtype=torch.int64)
        common = self.job.backbone, protocol, self.job.accelerator
        predict(model, images, *common, kept, cameras)

    @property
    def batch(self) -> int:
        """Images of a step."""
        if self.task.kind == "par":
            return min(self.protocol.batch_size, len(self.data))
        each = self.protocol.images_per_identity
        return min(self.protocol.batch_size // each, self.task.identities) * each

    @property
    def steps(self) -> int:
        """Of an epoch, at least."""
        shuffled = max(1, len(self.data) // self.batch)
        if self.data.identities is None:
            return shuffled
        each = self.protocol.images_per_identity
        dealt = identity_batches(self.data.identities, self.batch // each, each, 0, 0)
        return min(shuffled, len(dealt))

    def train(
        self,
        method: BaseMethod[Any],
        model: nn.Module,
        steps: int,
        after_step: Callable[[int], None],
    ) -> list[int]:
        """The engine's training with ``steps`` or a few more per stage; ``after_step(step)`` is
        called with step 1, 2, ... of each. Returns how many epochs the stages have in a run."""
        own_stages, own_after_step, planned = method.stages, method.after_step, []
        epochs = math.ceil(steps / self.steps)

        def stages(groups: tuple[str, ...]):
            found = own_stages(groups)
            planned.extend(s.settings.get("epochs", self.protocol.epochs) for s in found)
            short = {"epochs": epochs}
            return tuple(replace(s, settings={**s.settings, **short}) for s in found)

        def hook(model: nn.Module, step: int, steps: int) -> None:
            own_after_step(model, step, steps)
            after_step(step)

        method.stages, method.after_step = stages, hook
        with TemporaryDirectory() as folder:
            checkpoints, log = Checkpoints(Path(folder), ""), Path(folder) / "metrics.jsonl"
            common = self.job.accelerator, checkpoints, log
            Fit(method, model, self.task, self.data, self.protocol, 0, *common).run()
        return planned


def count_parameters(model: nn.Module, backbone: nn.Module) -> dict[str, Any]:
    """``effective`` holds as long as nothing trains; then `training_speed` finds it."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "parameters_allocated": sum(p.numel() for p in model.parameters()),
        "parameters_trained": trained,
        "parameters_effective": 0,
        "share_of_full": _rounded(100 * trained / sum(p.numel() for p in backbone.parameters())),
    }


def count_flops(forward: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions, two per multiply-add."""
    # torch's counter does not know the CPU's fused attention; the plain one is the same products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward()
    return counter.get_total_flops()


def prediction_speed(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """Median time from pictures in memory to logits, or features; the energy is that of the largest
    batch."""
    row: dict[str, Any] = {}
    meter = EnergyMeter(bench.device)
    for size in SIZES:
        for _ in range(2):
            bench.predict(model, size)
        start, seconds = meter.read(), []
        while len(seconds) < LEAST or sum(seconds) < SECONDS:
            begin = time.perf_counter()
            bench.predict(model, size)  # ends with the logits on the CPU
            seconds.append(time.perf_counter() - begin)
        joules = meter.joules(start, meter.read())
        row[f"images_per_s_{size}"] = _rounded(size / median(seconds))
        if size == 1:
            row["latency_ms_1"] = _rounded(1000 * median(seconds))
        if joules is not None:
            row["energy_j_per_image"] = _rounded(joules / len(seconds) / size)
    return row


def training_speed(bench: Bench, method: BaseMethod[Any], model: nn.Module) -> dict[str, Any]:
    """Median time of a step, with everything between two of them but the ends of epochs, and the
    number of trained scalars that had a gradient in one of the first steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    reached = [torch.zeros_like(p, dtype=torch.bool) for p in trained]
    ends: list[list[float]] = []  # of the steps of each stage

    def after_step(step: int) -> None:
        if step == 1:
            ends.append([])
        if step <= WARM_UP:
            for parameter, seen in zip(trained, reached, strict=True):
                if parameter.grad is not None:
                    seen |= parameter.grad != 0
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
        ends[-1].append(time.perf_counter())

    epochs = bench.train(method, model, STEPS, after_step)
    steps = [median(b - a for a, b in pairwise(stage[WARM_UP - 1 :])) for stage in ends]
    seconds = sum(n * step for n, step in zip(epochs, steps, strict=True)) / sum(epochs)
    return {
        "parameters_effective": sum(int(seen.sum()) for seen in reached),
        "train_images_per_s": _rounded(bench.batch / seconds),
    }


def peak_memory(bench: Bench) -> dict[str, Any]:
    """Peaks of training steps and of predicting the largest batch, above what was held before the
    model was built."""
    memory = Memory(bench.device)
    method, model = bench.build()
    memory.restart()
    bench.predict(model, max(SIZES))
    row: dict[str, Any] = {"predict_peak_mb": memory.peak()}
    peaks = []

    def after_step(step: int) -> None:
        if step > 1:  # a first step also holds what was computed before it
            peaks.append(memory.peak())
        memory.restart()

    if any(p.requires_grad for p in model.parameters()):
        bench.train(method, model, BATCHES, after_step)
        row["train_peak_mb"] = max(peaks) if None not in peaks else None
    return row


class EnergyMeter:
    """The machine's own counters of energy: a GPU's through NVML (package nvidia-ml-py), else the
    processor packages' through RAPL, where this user may read it. Nothing is estimated."""

    def __init__(self, device: torch.device, powercap: Path = Path("/sys/class/powercap")) -> None:
        self.wraps: list[int] = []  # counts at which a counter starts again, microjoules
        self._counters: list[Callable[[], int]] = []
        if device.type == "cuda":
            self._counters = _nvml_counter(device)
        else:  # name:0 is a package; its parts, name:0:0, are in it
            zones = [z for z in powercap.glob("intel-rapl:*") if z.name.count(":") == 1]
            files = [zone / "energy_uj" for zone in sorted(zones)]
            if all(os.access(file, os.R_OK) for file in files):
                self._counters = [partial(_number, file) for file in files]
                self.wraps = [_number(zone / "max_energy_range_uj") for zone in sorted(zones)]

    def read(self) -> list[int]:
        """Microjoules of every counter."""
        return [counter() for counter in self._counters]

    def joules(self, start: list[int], end: list[int]) -> float | None:
        """Between two readings, which a counter may have wrapped once; None without a counter."""
        spent = [b - a for a, b in zip(start, end, strict=True)]
        spent = [s + w if s < 0 else s for s, w in zip(spent, self.wraps or spent, strict=True)]
        return sum(spent) / 1e6 if spent else None


def _number(file: Path) -> int:
    return int(file.read_text())


def _nvml_counter(device: torch.device) -> list[Callable[[], int]]:
    """The GPU's counter, if the package is installed and the GPU has one."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return []
    return [lambda: 1000 * nvml.nvmlDeviceGetTotalEnergyConsumption(handle)]
