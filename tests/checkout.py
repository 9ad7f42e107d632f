"""A checkout of the sources in a folder of its own, and Snakemake as a user runs it there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pedbench.config import ROOT

SOURCES = ("Snakefile", "workflow", "profiles", "config", "methods", "datasets", "src", "resources")


@dataclass(frozen=True)
class Checkout:
    """A copy of the sources without any result."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> Checkout:
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, root / name, symlinks=True, ignore=ignore)
            else:
                root.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / name)
        return cls(root)

    @property
    def environment(self) -> dict[str, str]:
        """Of its commands."""
        tools = Path(sys.executable).parent
        own = {"PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Standard output and error come together in ``stdout``."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def start(self, log: Path, *command: str) -> subprocess.Popen[str]:
        """Without waiting for its end; what it prints is added to ``log``. It leads a process
        group and can be interrupted, as what a terminal starts."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in the background
        with log.open("a") as stream:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=self.environment,
                text=True,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def snakemake(self, *arguments: str, cores: int = 2) -> str:
        """What it printed; fails the test, showing it, if Snakemake fails."""
        done = self.run("snakemake", "--cores", str(cores), *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout
