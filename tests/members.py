"""What processes do in the tests of `pedbench.launch`; without torch, so that they start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pedbench.contracts import PedbenchError


def place(folder: Path) -> tuple[int, str]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    values = " ".join(os.environ[name] for name in names)
    (folder / os.environ["RANK"]).write_text(values)
    return 0, ""


def second_fails(how: str) -> tuple[int, str]:
    """The first one would wait for a minute."""
    if os.environ["RANK"] == "0":
        time.sleep(60)
    if how == "raises":
        raise PedbenchError("this is what happened")
    if how == "says much":
        return 1, "x" * 1_000_000 + "the end"
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return 85, "saved"


def until_told(folder: Path) -> tuple[int, str]:
    """Leaves with what it was told; says by a file that it waits."""
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: told.append(number))
    (folder / os.environ["RANK"]).touch()
    while not told:
        time.sleep(0.02)
    return 85, f"told {signal.Signals(told[0]).name}"
