"""How much memory a piece of work took at its peak."""

from __future__ import annotations

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path

import torch


class Memory:
    """Peak memory in MB (10^6 bytes) above the level at construction: of torch's allocator on a
    GPU, else of the process (resident set), which Linux alone lets us ask for; elsewhere None."""

    STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()
        self.level = self.highest()

    def restart(self) -> None:
        """Forget the peak so far."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.CLEAR.exists():
            with suppress(AttributeError):  # another C library than glibc
                ctypes.CDLL(None).malloc_trim(0)  # gives what is free back to the system
            with suppress(OSError):  # not allowed here: the peak is that of the whole process
                self.CLEAR.write_text("5")  # the peak (VmHWM) becomes the present (proc(5))

    def peak(self) -> float | None:
        """Since the last restart."""
        highest = self.highest()
        if highest is None or self.level is None:
            return None
        return float(f"{(highest - self.level) / 1e6:.4g}")

    def highest(self) -> int | None:
        """The same in bytes, with the level."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = self.STATUS.read_text() if self.CLEAR.exists() else ""
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status)
        return 1024 * int(kilobytes[1]) if kilobytes else None
