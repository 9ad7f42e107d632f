"""The run folder, written: what one seed of one variant reads and leaves behind.

``results/runs/{dataset}/{split}/{method}/{variant}/config.json`` is the resolved variant; every
``seed{n}/`` beside it holds the files of one training, or ``refused.json`` says why there is none.
``train.done.json`` is written last and carries the digest of the run and of every other file, so
that finished work is recognised.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pedbench.config import ROOT, Protocol, plain, protocol_of
from pedbench.contracts import IMAGE_SIZES, PedbenchError
from pedbench.files import (
    digest,
    drop_temporaries,
    file_sha256,
    only_writer,
    read_json,
    write_json,
)
from pedbench.registry import source_path

REFUSED = "refused.json"
PREDICTED = ("val", "test")  # subsets
PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "peft", "timm", "transformers", "accelerate"),
    *("pytorch-metric-learning", "optuna", "numpy", "pillow"),
)


@dataclass(frozen=True)
class RunConfig:
    """A resolved variant. ``protocol`` is what all methods share, ``params`` the method's own."""

    dataset: str
    split: str
    method: str
    variant: str
    backbone: str
    protocol: Protocol
    params: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Raises PedbenchError when the file is missing or lacks a key."""
        raw = read_json(path)
        try:
            names = {k: raw[k] for k in ("dataset", "split", "method", "variant", "backbone")}
            return cls(**names, protocol=protocol_of(raw), params=plain(raw["params"]))
        except (KeyError, TypeError) as error:
            raise PedbenchError(f"{path}: incomplete run config ({error}); delete it") from error

    def store(self, prepared: Path | None) -> Path | None:
        """The index of its prepared pictures below the folder ``prepared``, if there is one."""
        if prepared is None:
            return None
        return prepared / f"{store_of(self.dataset, self.backbone, self.protocol)}.json"


def store_of(dataset: str, backbone: str, protocol: Protocol) -> str:
    """Of the prepared pictures that a run reads: their index below ``results/prepared``, without
    its ending."""
    height, width = protocol.image_size or IMAGE_SIZES[backbone]
    return f"{dataset}/{protocol.resize}_{height}x{width}"


def derive_seed(seed: int, *names: str) -> int:
    """A seed for what ``names`` say it moves: independent streams from one number."""
    text = "/".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def run_digest(
    config: RunConfig,
    seed: int,
    manifest_digest: str,
    weights_sha256: str,
    threads: int,
    processes: int = 1,
) -> str:
    """What decides a run's numbers on one machine; two equal digests are the same run."""
    several = {"processes": processes} if processes > 1 else {}
    return digest(
        {
            "config": asdict(config),
            "seed": seed,
            "manifest": manifest_digest,
            "weights": weights_sha256,
            "method_source": file_sha256(source_path("method", config.method)),
            "threads": threads,
            **several,
        }
    )


@dataclass(frozen=True)
class RunFolder:
    """One seed's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter.safetensors"

    @property
    def done(self) -> Path:
        return self.path / "train.done.json"

    @property
    def epochs(self) -> Path:
        return self.path / "epochs"

    def predictions(self, subset: str) -> Path:
        return self.path / f"predictions.{subset}.parquet"

    def rankings(self, subset: str) -> Path:
        """In re-identification: what every query found."""
        return self.path / f"rankings.{subset}.parquet"

    @property
    def predicted(self) -> tuple[str, ...]:
        """The subsets that the finished run predicted: not every split has one for validation."""
        files = read_json(self.done)["files"]
        return tuple(s for s in PREDICTED if self.predictions(s).name in files)

    def is_finished(self, run: str, epochs: bool = False) -> bool:
        """Whether the run with this digest ended here and its files are what it wrote; with
        ``epochs``, whether every epoch was kept too."""
        if not self.done.is_file():
            return False
        marker = read_json(self.done)
        if marker["digest"] != run or (epochs and not self.keeps_epochs):
            return False
        for name, sha256 in (marker["files"] | (marker["epochs"] if epochs else {})).items():
            file = self.path / name
            if not file.is_file() or file_sha256(file) != sha256:
                raise PedbenchError(
                    f"{file}: changed or missing since the run finished; delete the folder "
                    f"{self.path} and run again to repeat this seed"
                )
        return True

    @property
    def keeps_epochs(self) -> bool:
        """Whether the finished run kept its epochs, and nobody deleted them since."""
        return self.done.is_file() and self.epochs.is_dir() and "epochs" in read_json(self.done)

    @property
    def lock(self) -> Path:
        """Beside the folder, which `start` may drop; names who trains, or did."""
        return self.path.with_name(f".{self.path.name}.lock")

    def alone(self) -> AbstractContextManager[None]:
        """To be held while training here.

        Raises PedbenchError when another process holds it.
        """
        return only_writer(self.lock, "trains", self.path)

    def start(self, run: str, config: dict[str, Any]) -> None:
        """Prepare the folder for this run, dropping what another configuration left in it."""
        if self.config.is_file() and read_json(self.config).get("digest") != run:
            shutil.rmtree(self.path)
        self.done.unlink(missing_ok=True)
        drop_temporaries(self.path)
        write_json(self.config, {**config, "digest": run})

    def finish(self, run: str, epochs: bool = False) -> None:
        """Mark the run as done, with ``epochs`` those it kept too, and drop its checkpoint."""
        names = ["config.json", "adapter.safetensors", "metrics.jsonl", "environment.json"]
        names += [f"{kind}.{s}.parquet" for kind in ("predictions", "rankings") for s in PREDICTED]
        files = {n: file_sha256(self.path / n) for n in names if (self.path / n).is_file()}
        marker: dict[str, Any] = {"digest": run, "files": files}
        if epochs:
            kept = sorted(self.epochs.glob("*.safetensors"))
            marker["epochs"] = {f"epochs/{path.name}": file_sha256(path) for path in kept}
        write_json(self.done, marker)
        shutil.rmtree(self.checkpoint, ignore_errors=True)


def epoch_file(epochs: Path, number: int) -> Path:
    """The tensors after epoch ``number``, from 0, of a method's own."""
    return epochs / f"{number}.safetensors"


def refusal(variant: Path) -> str | None:
    """Why no seed below the folder ``variant`` was run: its method cannot solve the task there."""
    path = variant / REFUSED
    return read_json(path)["reason"] if path.is_file() else None


def environment(
    threads: int, processes: int, device: dict[str, str], weights_sha256: str
) -> dict[str, Any]:
    """Where the numbers come from: commit, versions, machine."""
    lock = ROOT / "requirements.lock"
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "lock_sha256": file_sha256(lock) if lock.is_file() else None,
        "weights_sha256": weights_sha256,
        **device,
        "threads": threads,
        "processes": processes,
    }


def device_of(record: dict[str, Any]) -> str:
    """The device that made a run: its model, or only its kind where the run did not note more; with
    their number where processes shared it."""
    name = record.get("device_name") or record.get("device") or "unknown device"
    processes = record.get("processes", 1)
    return name if processes == 1 else f"{processes} x {name}"


def commit_of(record: dict[str, Any]) -> str:
    """The commit that made a run; as git says it, "-dirty" if files had been changed since."""
    return f"{record.get('commit')}{'-dirty' if record.get('dirty') else ''}"


def _git(*words: str) -> str | None:
    """Output of a git command on the suite's own checkout; None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
