"""GPUs of this machine: counting them without torch, and sharing them between parallel jobs."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def visible_gpus() -> tuple[str, ...]:
    """Devices that jobs may use here, as CUDA names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(d.strip() for d in visible.split(",") if d.strip() not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(
        str(i) for i in range(sum(s.startswith("GPU ") for s in listed.stdout.split("\n")))
    )


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's model."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.is_file() else "")
    return model[1] if model else platform.processor() or platform.machine()


@contextmanager
def own_gpu(locks: Path | None = None) -> Iterator[str | None]:
    """Restrict this process to a GPU that no other job of this user on this machine holds.

    To be entered before CUDA is initialised. Does nothing where there is nothing to share: with
    fewer than two visible devices, or under a launcher that assigns them itself.
    """
    devices = visible_gpus()
    if len(devices) < 2 or "LOCAL_RANK" in os.environ:
        yield None
        return
    folder, user = locks or Path(tempfile.gettempdir()), os.getuid()
    for device in devices:
        with (folder / f"pedbench-gpu-{user}-{device}.lock").open("w") as file:
            if _locked(file):
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                yield device
                return
    yield None


def _locked(file: IO[str]) -> bool:
    """Take the lock of ``file`` unless another process holds it; closing the file frees it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
