"""One training in several processes of this machine, started together and ended together.

Needs no torch. Each process learns its place from the variables that torchrun sets, so that a
training may also be started by torchrun.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from pedbench.contracts import PedbenchError
from pedbench.stopping import CODE, GOT

MEETING = "PEDBENCH_MEETING"  # where the processes find each other, as torch.distributed names it
GRACE = 60.0  # seconds in which the others may end by themselves when one has failed
SAID = 8000  # characters of a message that are kept, the last: a pipe takes no long one at once
PR_SET_PDEATHSIG = 1  # of Linux's prctl

Work = Callable[..., tuple[int, str]]  # gives an exit status and what there is to say


def is_launched() -> bool:
    """Whether this process is one that `launch` or torchrun started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_one_of(count: int) -> bool:
    """Whether this process is one of ``count`` that `launch` or torchrun started.

    Raises PedbenchError where the environment says that it is one of another number.
    """
    if is_launched() and processes() != count:
        raise PedbenchError(
            f"--processes {count}: the environment has WORLD_SIZE={os.environ['WORLD_SIZE']}, as "
            "if another launcher had started this; unset RANK and WORLD_SIZE, or let torchrun "
            "start as many"
        )
    return is_launched()


def processes() -> int:
    """How many share the work of this one, itself included."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not is_launched() or os.environ["RANK"] == "0"


def launch(count: int, work: Work, *arguments: Any) -> int:
    """Run ``work(*arguments)`` in ``count`` processes; all of it must be picklable.

    Returns 0 when each came to its end with 0. As soon as one fails the others are ended, and what
    the first one had to say goes to standard error; its exit status is returned, or 128 and the
    number of the signal that killed it. The signals of `GOT` are passed on.
    """
    context = get_context("spawn")
    reports = context.SimpleQueue()
    with TemporaryDirectory(prefix="pedbench-") as folder:
        world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, MEETING: f"file://{folder}/store"}
        places = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
        members = [
            context.Process(target=_member, args=(place, reports, work, arguments))
            for place in places
        ]
        with _passing_on(members) as passed:
            try:
                for member in members:
                    member.start()
                first = _first_failure(members)
                if first is None:
                    return 0
                code, message = _outcome(first, members.index(first), passed)
                if not reports.empty() and (first.exitcode or 0) > 0:
                    code, message = reports.get()
            except KeyboardInterrupt:
                _insist(members, SpawnProcess.terminate)  # they save and leave
                raise
            finally:
                _end(members)
    print(message, file=sys.stderr)
    return code


def _member(place: dict[str, Any], reports: Any, work: Work, arguments: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in place.items()})
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nobody else is to listen
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # also where the parent is killed
    try:
        code, message = work(*arguments)
    except BaseException:
        code, message = 1, traceback.format_exc()
    if code:
        reports.put((code, message[-SAID:]))
        sys.stdout.flush()
        os._exit(code)  # threads of a broken connection would hold it up


@contextmanager
def _passing_on(members: Sequence[SpawnProcess]) -> Iterator[set[int]]:
    """The signals that came, each of which went to all members."""
    passed: set[int] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.add(number)
        for member in members:
            if member.pid is not None and member.is_alive():
                os.kill(member.pid, number)

    before = {number: signal.signal(number, pass_on) for number in GOT}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_failure(members: Sequence[SpawnProcess]) -> SpawnProcess | None:
    """Wait for it; None when there is none. Of several at once a killed one: it has no message, and
    those of the others would only say that it is gone."""
    waiting = {member.sentinel: member for member in members}
    while waiting:
        ended = [waiting.pop(sentinel) for sentinel in connection.wait(list(waiting))]  # type: ignore[arg-type]
        for member in ended:
            member.join()  # its sentinel may be faster than its exit status
        failed = [member for member in ended if member.exitcode]
        if failed:
            return min(failed, key=lambda member: member.exitcode or 0)
    return None


def _outcome(member: SpawnProcess, index: int, passed: set[int]) -> tuple[int, str]:
    code = member.exitcode or 0
    if code > 0:
        return code, f"pedbench: process {index} ended with exit status {code}"
    name = signal.Signals(-code).name
    if -code in passed:  # it had only begun
        return CODE, f"pedbench: stopped, since it got {name}; the same command goes on from here"
    hint = "; was there too little memory?" if name == "SIGKILL" else ""
    return 128 - code, f"pedbench: process {index} of the training was ended by {name}{hint}"


def _end(members: Sequence[SpawnProcess]) -> None:
    """Let them end, then make them."""
    started = [member for member in members if member.pid is not None]
    for seconds, how in ((GRACE, SpawnProcess.terminate), (10.0, SpawnProcess.kill)):
        deadline = time.monotonic() + seconds
        for member in started:
            member.join(max(0.0, deadline - time.monotonic()))
        _insist(started, how)
    for member in started:
        member.join()


def _insist(members: Sequence[SpawnProcess], how: Callable[[SpawnProcess], None]) -> None:
    for member in members:
        if member.pid is not None and member.is_alive():
            how(member)
