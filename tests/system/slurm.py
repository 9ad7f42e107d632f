"""A real Slurm on this machine, for tests: one node with fake GPUs, everything below one folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools import need

PARTITION = "gpu"  # to be asked for: the default one lets no job start
GPUS = 4
CPUS = 16  # pretended, for steps that ask for many threads
REQUEUE_SECONDS = 5  # a requeued job waits this long; Slurm's default are 120
CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=1
KillWait=10
MinJobAge=300
MessageTimeout=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=128000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=none Nodes={host} Default=YES State=DOWN
PartitionName={partition} Nodes={host} MaxTime=1440 State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """What is below ``folder`` and the name of its node."""

    folder: Path
    node: str

    @property
    def environment(self) -> dict[str, str]:
        """What its commands need to find it."""
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def run(self, *command: str) -> str:
        """Standard output of a Slurm command."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def queue(self, *states: str) -> list[str]:
        """Ids of the jobs that wait or run; of those in ``states`` only, where some are given."""
        wanted = [f"--states={','.join(states)}"] if states else []
        return self.run("squeue", "--noheader", "--format=%i", *wanted).split()


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start munge, the controller and the node, as root; stop them at the end, with their jobs."""
    for name in ("state", "spool", "devices", "bin"):
        (folder / name).mkdir(parents=True)
    # Snakemake's plugin starts srun without SLURM_CONF.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {need("srun")} "$@"\n')
    srun.chmod(0o755)
    devices = [folder / "devices" / f"gpu{index}" for index in range(GPUS)]
    for device in devices:  # like /dev/null: Slurm sets CUDA_VISIBLE_DEVICES for devices only
        os.mknod(device, 0o20666, os.makedev(1, 3))
    node = socket.gethostname().split(".")[0]
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    values = {
        "host": node,
        "folder": folder,
        "cpus": CPUS,
        "gpus": GPUS,
        "partition": PARTITION,
        **ports,
    }
    (folder / "slurm.conf").write_text(CONF.format(**values, requeue=REQUEUE_SECONDS))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/devices/gpu[0-{GPUS - 1}]\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    slurm = Slurm(folder, node)
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    names |= {"seed-file": "seed"}
    munge = ["munged", "--foreground", "--force", "--num-threads=2"]
    munge += [f"--{option}={folder}/munge.{name}" for option, name in names.items()]
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", node]):
            with (folder / f"{command[0]}.out").open("w") as out:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **slurm.environment},
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            _await(lambda: (folder / "munge.socket").exists(), "munge's socket", folder)
        _await(lambda: _idle(slurm), "an idle node", folder)
        yield slurm
    finally:
        with suppress(subprocess.CalledProcessError):  # a daemon did not start
            slurm.run("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _end_rest(folder)


def _end_rest(folder: Path) -> None:
    """Processes of jobs that outlived them, which Slurm ends only where it has cgroups."""
    mark = f"SLURM_CONF={folder}/slurm.conf\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended
            if mark in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def _idle(slurm: Slurm) -> bool:
    try:
        return slurm.run("sinfo", "--noheader", "--format=%T", f"--partition={PARTITION}") == "idle"
    except subprocess.CalledProcessError:  # the controller does not answer yet
        return False


def _await(done: Callable[[], bool], what: str, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"waited {seconds:.0f} s for {what}\n{logs}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
