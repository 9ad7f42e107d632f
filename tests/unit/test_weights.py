"""Checkpoints without torch: the same digests, the same files, the same messages."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pedbench import cli
from pedbench.contracts import BACKBONES, OPENAI, TINY
from pedbench.files import digest, read_json
from pedbench.paths import resource
from pedbench.weights import LAYOUTS, PICKLED, REPOSITORIES, TENSORS, cached, weights_sha256

SHIPPED = resource(f"{TINY}/{TINY}.safetensors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Forbid())
"""


def without_torch(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process that cannot import torch."""
    return subprocess.run(
        [sys.executable, "-c", FORBID + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_tables_agree_with_open_clip_and_with_the_models():
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    from open_clip.pretrained import get_pretrained_cfg

    from pedbench.nn.backbone import shape_only

    assert (TENSORS, PICKLED) == (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    assert REPOSITORIES.keys() == OPENAI.keys() and LAYOUTS.keys() == set(BACKBONES)
    for name, model in OPENAI.items():
        assert REPOSITORIES[name] == get_pretrained_cfg(model, "openai")["hf_hub"].rstrip("/")
    for name in BACKBONES:
        state = shape_only(name).clip_state()
        assert LAYOUTS[name] == digest({key: list(t.shape) for key, t in state.items()})


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_record_is_that_of_the_loaded_model(tmp_path, monkeypatch, given, dtype):
    from pedbench.nn.backbone import load_backbone

    file = tmp_path / "own.safetensors" if given else None
    if file:
        tensors = load_file(SHIPPED)
        save_file({k: np.asarray(2 * v, dtype) for k, v in tensors.items()}, file)
    elif dtype == np.float16:
        return  # the shipped file is what it is
    loaded = load_backbone(TINY, file)
    monkeypatch.setattr("pedbench.nn.backbone.load_backbone", None)  # must not be needed
    chosen = ["--file", str(file)] if file else []
    assert cli.main(["weights", TINY, *chosen, "--out", str(tmp_path / "w.json")]) == 0
    sha256, named = loaded.weights_sha256, str(file) if file else None
    assert read_json(tmp_path / "w.json") == {"backbone": TINY, "file": named, "sha256": sha256}


def test_other_tensors_are_left_to_torch_which_says_what_is_wrong(tmp_path, capsys):
    tensors = load_file(SHIPPED)
    tensors.pop("logit_scale")
    file = tmp_path / "own.safetensors"
    save_file(tensors, file)
    assert weights_sha256(TINY, file) is None  # the model keeps its own scale
    assert cli.main(["weights", TINY, "--file", str(file), "--out", str(tmp_path / "w.json")]) == 0
    save_file({"x": np.zeros(3, np.float32)}, file)
    assert cli.main(["weights", TINY, "--file", str(file), "--out", str(tmp_path / "w.json")]) == 1
    assert "do not fit the model" in capsys.readouterr().err
    absent = str(tmp_path / "absent")
    assert cli.main(["weights", TINY, "--file", absent, "--out", str(tmp_path / "w.json")]) == 1
    assert "there is no file" in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's answers for one large file, whose first download breaks off in the middle."""

    data = bytes(range(256)) * 2**17  # more than the client writes at once, 10 MB
    asked: list[str]
    damage = False

    def do_HEAD(self) -> None:
        self.answer(len(self.data), 0)

    def do_GET(self) -> None:
        if not self.path.endswith(TENSORS):  # other questions of the client
            self.answer(0, 0)
            return
        span = self.headers.get("Range", "")
        type(self).asked.append(span)
        start = int(re.findall(r"\d+", span)[0]) if span else 0
        self.answer(len(self.data) - start, start)
        sent = b"x" * len(self.data) if self.damage else self.data[start:]
        self.wfile.write(sent if len(self.asked) > 1 else sent[: len(sent) // 2])

    def answer(self, length: int, start: int) -> None:
        sha256 = hashlib.sha256(self.data).hexdigest()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", f'"{sha256}"')
        self.send_header("X-Linked-Size", str(len(self.data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    Hub.asked, Hub.damage = [], False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetch(hub: str, cache: Path) -> subprocess.CompletedProcess[str]:
    code = f"""
from pathlib import Path
from pedbench.contracts import PedbenchError
from pedbench.weights import checkpoint
try:
    print(checkpoint("RN50", Path({str(cache)!r})))
except PedbenchError as error:
    print(error)
"""
    return without_torch(code, HF_ENDPOINT=hub, HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0")


def test_a_broken_download_goes_on_and_is_found_again(hub, tmp_path):
    for _ in range(3):  # the client may go on by itself, or leave it to the next call
        done = fetch(hub, tmp_path)
        assert done.returncode == 0, done.stderr
        if "could not be downloaded" not in done.stdout:
            break
        assert "run the same command again" in done.stdout
    path = Path(done.stdout.strip())
    assert path.read_bytes() == Hub.data
    assert [bool(span) for span in Hub.asked] == [False, True], Hub.asked  # not from its start
    assert cached("RN50", tmp_path) == path
    gone = fetch("http://127.0.0.1:9", tmp_path)  # nobody is asked for what is there
    assert gone.stdout == done.stdout


def test_a_damaged_download_is_refused_and_deleted(hub, tmp_path):
    Hub.asked, Hub.damage = ["earlier"], True
    done = fetch(hub, tmp_path)
    assert "was damaged on its way" in done.stdout, done.stderr
    assert cached("RN50", tmp_path) is None


def test_without_a_connection_it_says_at_once_what_to_do(tmp_path):
    done = fetch("http://127.0.0.1:9", tmp_path)
    assert "cannot be reached" in done.stdout and "checkpoints: {RN50: " in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["list"],
        ["list", "--params", "lora"],
        ["cite"],
        ["status"],
        ["weights", TINY, "--out", "{out}"],
        ["plan", "--json", '{"protocol": "embedded", "backbone": "tiny_clip", '
         '"presets": ["tiny_clip"], "datasets": ["synthetic_a/standard"], '
         '"methods": ["lora"], "seeds": [0]}', "--out", "{out}"],
    ],
)  # fmt: skip
def test_a_login_node_needs_no_torch(command, tmp_path):
    words = [word.replace("{out}", str(tmp_path / "out.json")) for word in command]
    code = f"""
from pedbench.cli import main
try:
    code = main({words!r})
except SystemExit as end:
    code = end.code
raise SystemExit(code)
"""
    done = without_torch(code)
    assert done.returncode == 0, done.stderr
