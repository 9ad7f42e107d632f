"""``pedbench doctor``: everything that can be wrong before a run, in one look."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pedbench.contracts import SUBSETS, PedbenchError

FREE_GIGABYTES = 1.0  # the embedded default writes about a tenth of this
Check = Callable[[], str]


def examine(configfile: Path) -> int:
    """Print one line per check; the number of failed ones is the exit status."""
    failures = 0
    for title, check in _checks(configfile):
        try:
            print(f"ok    {title}: {check()}")
        except PedbenchError as error:
            failures += 1
            print(f"FAIL  {title}: {error}")
    print("all is well" if not failures else f"{failures} to mend, each said above")
    return failures


def examine_dataset(name: str, root: Path | None, decode: bool, options: Mapping[str, Any]) -> int:
    """Print everything that is off in a dataset's folder; the number of problems is the exit
    status. Nothing is written."""
    from pedbench.intake import decoded, examine, header
    from pedbench.registry import load_dataset

    dataset, variable = load_dataset(name), f"PEDBENCH_ROOT_{name.upper()}"
    root = root or Path(os.environ.get(variable, ""))
    if root == Path():
        parents = " and ".join(dataset.PARENTS)
        instead = f"; or examine {parents}, of which it is made" if parents else ""
        raise PedbenchError(f"name the folder of {name} with --root, or set {variable}{instead}")
    found = examine(name, dataset, root, options, look=decoded if decode else header)
    print(f"{dataset.SPEC.title} in {root} ({dataset.SPEC.licence})")
    for split in dataset.SPEC.splits:
        inside = Counter(r.subset[split] for r in found.records if split in r.subset)
        if inside:
            print(f"ok    {split}: {', '.join(f'{n} {inside[n]}' for n in SUBSETS if inside[n])}")
    for remark in found.remarks:
        print(f"note  {remark}")
    for problem in found.problems:
        print(f"FAIL  {problem}")
    count = len(found.problems)
    print("all is well" if not count else f"{count} to mend, each said above")
    return min(count, 100)


def _checks(configfile: Path) -> Iterator[tuple[str, Check]]:
    yield "packages", _packages
    yield "torch", _torch
    yield "plug-ins", _plugins
    yield "config", lambda: _config(configfile)
    yield "weights", lambda: _weights(configfile)
    yield "disk", _disk


def _packages() -> str:
    wanted = ("torch", "torchvision", "open_clip_torch", "accelerate", "snakemake", "mlflow")
    found = []
    for name in wanted:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            raise PedbenchError(
                f"{name} is not installed in this environment; run 'make install' or "
                "'pip install -e .'"
            ) from None
    return ", ".join(found)


def _torch() -> str:
    import torch
    import torchvision  # the guard in pedbench/__init__ makes this work beside a CPU torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    where = ", ".join(devices) if devices else "no GPU found, the CPU will be used"
    return f"{torch.__version__} with torchvision {torchvision.__version__}; {where}"


def _plugins() -> str:
    from pedbench.registry import datasets, load_dataset, load_method, methods, read_params

    for name in methods():
        read_params(name)
        load_method(name)
    for name in datasets():
        load_dataset(name)
    return f"{len(methods())} methods, {len(datasets())} datasets"


def _read(configfile: Path) -> Any:
    from pedbench.config import read_yaml
    from pedbench.plan import make_plan

    return make_plan(read_yaml(configfile.resolve()), str(configfile))


def _config(configfile: Path) -> str:
    plan = _read(configfile)
    return f"{configfile}: {len(plan.experiments)} experiments in {len(plan.batches)} jobs"


def _weights(configfile: Path) -> str:
    from pedbench.nn.backbone import load_backbone

    plan, found = _read(configfile), []
    for name in plan.backbones:
        file = plan.weights_file(name)
        if file is not None and not Path(file).is_file():
            found.append(f"{name}: {file} is not there yet, the run will train it (pretrain: true)")
        else:
            found.append(f"{file or name}, sha256 {load_backbone(name, file).weights_sha256[:12]}")
    return "; ".join(found)


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < FREE_GIGABYTES:
        raise PedbenchError(f"{free:.1f} GB free here; make room, a run needs {FREE_GIGABYTES} GB")
    return f"{free:.0f} GB free in {Path.cwd()}"
