"""Writing results so that a reader never sees half a file, and reading them back."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pedbench.contracts import PedbenchError

CAPTIONS = "captions.json"  # of a folder of pictures: name -> title, caption, category
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems without locks say
HOLDER = re.compile(r"host (\S+), process (\d+)")  # in a lock's file, while the lock is held
PATIENCE = 120  # seconds for which a lock may outlive a dead node: NFS frees it when a lease ends
JOBS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "JOB_ID")  # of Slurm, LSF, PBS, SGE


def canonical_json(value: Any) -> str:
    """The one text of ``value``: sorted keys, no NaN, newline at the end."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def printable(text: str) -> str:
    """``text`` of others for a terminal: what is not printable, but line breaks, is escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, flush it to disk, then rename it.

    A killed or interrupted job leaves either the old file or the new one. Raises PedbenchError
    when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise PedbenchError(explain_os_error(path, error)) from error
    finally:
        with suppress(OSError):  # gone already, if all went well
            temporary.unlink()


def drop_temporaries(folder: Path) -> None:
    """Delete what a killed `write_atomic` left in ``folder``, into which nobody else writes."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def only_writer(lock: Path, what: str, folder: Path) -> Iterator[None]:
    """Be the only process that ``what`` ("trains", say) in ``folder``, as the lock of the file
    ``lock``, which stays, tells. The system frees it when a process ends, however it ends.

    Raises PedbenchError naming the holder when there is one, after ``PATIENCE`` where it is on
    another host. Where the file system knows no locks nobody is kept out, with a warning.
    """
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("a+b", buffering=0))
            if not _took_in_time(file, lock, what, folder):
                print(
                    f"pedbench: warning: the file system of {lock} has no locks; see to it that "
                    f"no second process {what} in {folder}",
                    file=sys.stderr,
                )
            file.truncate(0)
            file.write(_myself().encode())
        except BlockingIOError:
            raise PedbenchError(
                f"{folder}: another process {what} there "
                f"({holder_of(lock) or 'it does not say which'}); wait for it or end it, then "
                "run the same command again"
            ) from None
        except OSError as error:
            raise PedbenchError(explain_os_error(lock, error)) from error
        try:
            yield
        finally:
            with suppress(OSError):  # what is left is only text
                file.truncate(0)


def holder_of(lock: Path) -> str:
    """Who has the lock, as its file says: nobody, or one that was killed, may have it by now."""
    return lock.read_text(encoding="utf-8", errors="replace").strip() if lock.is_file() else ""


def _took_in_time(file: IO[bytes], lock: Path, what: str, folder: Path) -> bool:
    """`take`, but a holder on another host may be dead already."""
    for waited in range(PATIENCE):
        try:
            return take(file)
        except BlockingIOError:
            holder = HOLDER.match(holder_of(lock))
            if holder is None or holder[1] == socket.gethostname():
                raise
        if waited == 0:
            print(
                f"pedbench: warning: a process of {holder[1]} {what} in {folder}; waiting up to "
                f"{PATIENCE} s for the end of its lock",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(1)
    return take(file)


def take(file: IO[Any]) -> bool:
    """Lock ``file`` until it is closed; False where its file system cannot. Raises BlockingIOError
    when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        return False
    return True


def _myself() -> str:
    """Host, process and, on a cluster, job."""
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    job = next(filter(None, map(os.environ.get, JOBS)), None)
    place = f"host {socket.gethostname()}, process {os.getpid()}"
    return f"{place}{f', job {job}' if job else ''}, since {now}\n"


def empty_folder(path: Path) -> None:
    """Delete what is below ``path``, which need not exist. Raises PedbenchError when it cannot."""
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    except OSError as error:
        raise PedbenchError(explain_os_error(path, error)) from error


def explain_os_error(path: Path, error: OSError) -> str:
    """One paragraph for a failed write: what could not be written, why, and the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path}: the disk (or your quota) is full. Finished runs are untouched; free some "
            "space or set 'results' in the config to another disk, then run the same command again."
        )
    return (
        f"{path}: cannot be written ({error.strerror or error}). Check that the folder exists, is "
        "a folder and is writable, or set 'results' in the config to one that is."
    )


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, canonical_json(value))


def read_json(path: Path) -> Any:
    """Raises PedbenchError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise PedbenchError(
            f"{path}: not valid JSON ({error}); delete it and run again, it will be made anew"
        ) from error


def read_captions(folder: Path) -> dict[str, dict[str, str]]:
    """What a folder of pictures says of each; empty where it says nothing."""
    path = folder / CAPTIONS
    return read_json(path) if path.is_file() else {}
