"""``pedbench doctor``: everything that can be wrong before a run, in one look."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pedbench.contracts import SUBSETS, BaseDataset, PedbenchError, Record

FREE_GIGABYTES = 1.0  # the embedded default writes about a tenth of this
Check = Callable[[], str]


def examine(configfile: Path) -> int:
    """Print one line per check; the exit status is the number of problems, each told once though
    several checks may meet it."""
    said: set[str] = set()
    for title, check in _checks(configfile):
        try:
            print(f"ok    {title}: {check()}")
        except PedbenchError as error:
            if str(error) not in said:
                print(f"FAIL  {title}: {error}")
            said.add(str(error))
    print("all is well" if not said else f"{len(said)} to mend, each said above")
    return len(said)


def examine_dataset(
    configfile: Path, name: str, root: Path | None, decode: bool, options: Mapping[str, Any]
) -> int:
    """Print everything that is off in a dataset's folder; the number of problems is the exit
    status. Nothing is written. The folder is ``root`` or the one that a run of ``configfile``
    reads; ``options`` lie over its ``dataset_options``."""
    from pedbench.config import check_config, read_yaml
    from pedbench.intake import decoded, examine, header
    from pedbench.plan import root_of
    from pedbench.registry import load_dataset

    dataset = load_dataset(name)
    file = configfile.resolve() if configfile.is_file() else configfile  # else the repository's
    config = check_config(read_yaml(file), str(configfile))
    folder = root or root_of(config, name)
    if folder is None:
        raise PedbenchError(_no_folder(name, dataset))
    root, options = Path(folder), {**config["dataset_options"].get(name, {}), **options}
    found = examine(name, dataset, root, options, look=decoded if decode else header)
    print(f"{dataset.SPEC.title} in {root} ({dataset.SPEC.licence})")
    sizes = _sizes(dataset, found.records)
    for split, inside in sizes.items():
        if inside:
            asked = Counter(r.subset[split] for r in found.records if split in r.queries)
            queries = {name: f" ({asked[name]} queries)" for name in asked}
            told = [f"{n} {inside[n]}{queries.get(n, '')}" for n in SUBSETS if inside[n]]
            print(f"split {split}: {', '.join(told)}")
    for remark in found.remarks:
        print(f"note  {remark}")
    for problem in found.problems:
        print(f"FAIL  {problem}")
    count = len(found.problems)
    print(f"{count} to mend, each said above" if count else f"all is well{_unusable(sizes)}")
    return min(count, 100)


def _no_folder(name: str, dataset: BaseDataset) -> str:
    parents = " and ".join(dataset.PARENTS)
    instead = f"; or examine {parents}, of which it is made" if parents else ""
    return (
        f"name the folder of {name} with --root, with 'roots' in the config, or set "
        f"PEDBENCH_ROOT_{name.upper()}{instead}"
    )


def _sizes(dataset: BaseDataset, records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Split -> subset -> number of images, of every split that the dataset can have."""
    return {
        split: Counter(r.subset[split] for r in records if split in r.subset)
        for split in dataset.SPEC.splits
    }


def _unusable(sizes: Mapping[str, Counter[str]]) -> str:
    """What to add where splits lack images to train on or to test with."""
    lacking = [split for split, inside in sizes.items() if not (inside["train"] and inside["test"])]
    if not lacking:
        return ""
    splits = "1 split" if len(lacking) == 1 else f"{len(lacking)} splits"
    return f", but {splits} cannot be used: {', '.join(lacking)} (no train or no test images)"


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
    said = f"{configfile}: {len(plan.experiments)} experiments in {len(plan.batches)} jobs"
    return "\nnote  ".join((said, *plan.notes))


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
