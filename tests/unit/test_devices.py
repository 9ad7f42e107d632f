from __future__ import annotations

import errno
import os

import pytest

from pedbench import devices, files
from pedbench.contracts import PedbenchError
from pedbench.devices import own_gpu, visible_gpus


@pytest.mark.parametrize(
    ("visible", "found"),
    [("", ()), ("-1", ()), ("0", ("0",)), ("0, 2", ("0", "2")), ("GPU-ab", ("GPU-ab",))],
)
def test_visible_devices_come_from_the_environment(monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == found


def test_visible_devices_come_from_the_driver(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: A'\n")
    tool.chmod(0o755)
    assert visible_gpus() == ("0", "1")


def test_parallel_jobs_take_different_devices(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with own_gpu(tmp_path) as first:
        assert first == os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert (tmp_path / f"pedbench-gpu-{os.getuid()}-3.lock").is_file()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")  # as another process sees it
        with own_gpu(tmp_path) as second:
            assert second == os.environ["CUDA_VISIBLE_DEVICES"] == "5"
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
            with own_gpu(tmp_path) as third:
                assert third is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with own_gpu(tmp_path) as again:
        assert again == "3"


def test_without_locks_a_job_still_finds_a_device(monkeypatch, tmp_path):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(files.fcntl, "flock", flock)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with own_gpu(tmp_path) as device:
        assert device == "3"


def test_nothing_to_share(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with own_gpu(tmp_path) as device:
        assert device is None and not list(tmp_path.iterdir())
    monkeypatch.setattr(devices, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with own_gpu(tmp_path) as device:
        assert device is None


def test_several_processes_take_as_many_devices(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with own_gpu(tmp_path) as one:
        assert one == "0"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")  # as another process sees it
        with own_gpu(tmp_path, count=2) as two:
            assert two == os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
        with own_gpu(tmp_path, count=3) as three:  # one is held: none is reserved
            assert three is None and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
            with own_gpu(tmp_path) as other:
                assert other == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    few = pytest.raises(PedbenchError, match="--processes 3: .* 2 can be seen")
    with few, own_gpu(tmp_path, count=3):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on CPUs any number
    with own_gpu(tmp_path, count=3) as none:
        assert none is None
