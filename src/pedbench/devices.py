"""GPUs of this machine: counting them without torch, and sharing them between parallel jobs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pedbench.contracts import PedbenchError
from pedbench.files import take

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
def own_gpu(locks: Path | None = None, count: int = 1) -> Iterator[str | None]:
    """Restrict this process to a GPU that no other job of this user on this machine holds, or to
    ``count`` of them for its children.

    To be entered before CUDA is initialised. Does nothing where there is nothing to share: with
    fewer than two visible devices, or under a launcher that assigns them itself. A temporary folder
    without locks keeps no GPU from others. Raises PedbenchError where GPUs are visible, but fewer
    than ``count``.
    """
    devices = visible_gpus()
    if 0 < len(devices) < count:
        raise PedbenchError(
            f"--processes {count}: each wants a GPU of its own, and {len(devices)} can be seen "
            "here: ask for more GPUs, or for fewer processes"
        )
    if len(devices) < 2 or "LOCAL_RANK" in os.environ:
        yield None
        return
    folder, user = locks or Path(tempfile.gettempdir()), os.getuid()
    with ExitStack() as held:
        taken: list[str] = []
        for device in devices:
            file = held.enter_context(_own_file(folder / f"pedbench-gpu-{user}-{device}.lock"))
            if len(taken) < count:
                with suppress(BlockingIOError):  # another job has it
                    take(file)
                    taken.append(device)
        if len(taken) < count:
            held.close()
            yield None
            return
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        yield os.environ["CUDA_VISIBLE_DEVICES"]


def _own_file(path: Path) -> IO[str]:
    """``path``, made if need be. Where all users write, somebody may have put a link, or a file of
    theirs, in its place: raises PedbenchError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, flags, 0o600), "r+")
    except OSError as error:
        raise PedbenchError(
            f"{path}: cannot be used to share the GPUs of this machine ({error.strerror}): it is "
            "not this user's; remove it, or set TMPDIR to a folder of your own"
        ) from error
