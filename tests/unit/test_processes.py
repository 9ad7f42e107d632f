"""Several processes: the training of one, by two that share each batch.

The two are started once. Each notes what it showed and where it ended in a folder of its own, which
the tests compare with what one process does here.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import members
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import MODEL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pedbench import launch as launching
from pedbench.checkpoint import Checkpoints
from pedbench.config import Protocol, protocol_of, read_protocol, resolve
from pedbench.contracts import Output, PedbenchError
from pedbench.data import Images
from pedbench.engine import Diverged, Fit
from pedbench.launch import launch
from pedbench.manifest import Manifest, read_manifest, write_manifest
from pedbench.nn.backbone import Backbone
from pedbench.predict import predict
from pedbench.registry import load_method, load_params
from pedbench.runs import RunConfig
from pedbench.stopping import CODE, Stopped, watching
from pedbench.together import Team, meet
from pedbench.train import Part, make_task, training_set

COUNT = 2
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # in float32, after all steps of a case
# Adam divides by the size of a gradient: it makes the rounding of tiny ones as large as any
COMMON = {
    "epochs": 1, "batch_size": 16, "optimiser": "sgd", "warmup_epochs": 0, "checkpoint_steps": 1,
    "flip": True, "crop_padding": 3, "eval_batch_size": 16, "head_init": "random",
}  # fmt: skip
LORA = ("lora", {"lr": 1e-2, "head_lr": 1e-2})
FULL = ("full_finetune", {"lr": 1e-3, "head_lr": 1e-2})
PROMPTS = ("promptpar", {"lr": 1e-2, "mm_init": "clip_last_block", "mm_layers": 1})
RANKS = {"init_r": 4, "target_r": 2, "tinit": 0.2, "tfinal": 0.3, "deltaT": 20}
# name -> split, method and its parameters, changes of the protocol; 48 images are for training
CASES: dict[str, tuple[str, tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "lora": ("standard", LORA, {"head_init": "linear_probe", "probe_epochs": 1}),
    "uneven": ("standard", LORA, {"batch_size": 15, "accumulate": 2}),
    "promptpar": ("standard", PROMPTS, {}),
    "persons": ("reid", FULL, {"random_erasing": 0.5, "erasing_fill": "pixel"}),
    "clip_reid": (
        "reid",
        ("clip_reid", {"prompt_epochs": 1, "lr": 1e-3, "sie": "cls"}),
        {"epochs": 1},
    ),
    "penalty": ("standard", ("peft_tuner", {"tuner": "AdaLora", "options": RANKS}), {}),
    "kept features": ("standard", ("linear_probe", {"lr": 1e-2}), {"crop_padding": 0}),
}
SAME = {"kept features"}  # to the bit
NORMS = {
    "one value": (nn.BatchNorm1d, (7, 5)),
    "long": (nn.BatchNorm1d, (5, 4, 6)),
    "maps": (nn.BatchNorm2d, (3, 4, 6, 5)),
}
EVALUATED = (5, 16, 64)  # images at a time; of the last, one process has none


class Noting(Fit):
    """Notes of each step the batch, what this process shows of it, and how that looks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shown: list[dict[str, Any]] = []

    def _views(self, protocol: Protocol, chosen: Tensor, mine: Tensor, seed: int) -> Tensor:
        pictures = super()._views(protocol, chosen, mine, seed)
        looks = [sha256(picture.numpy().tobytes()).hexdigest() for picture in pictures]
        self.shown.append({"chosen": chosen.tolist(), "mine": mine.tolist(), "looks": looks})
        return pictures


class Bench:
    """Trains on the noise pictures of ``manifest``."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest, self.folder, self.accelerator = manifest, folder, Accelerator(cpu=True)
        self.backbone = Backbone.from_config(MODEL, name="random", seed=1)

    def fit(self, case: str, name: str = "", lr: float | None = None, **change: Any) -> Noting:
        split, (method, params), settings = CASES[case]
        kind, presets = ("embedded_reid", "tiny_clip_reid"), ("embedded", "tiny_clip")
        found = kind if split == "reid" else presets
        spec = resolve("full_finetune", "default", read_protocol(found[0], found[1:]))
        protocol = dataclasses.replace(protocol_of(spec), **{**COMMON, **settings, **change})
        rows = self.manifest.subset(split, "train")
        config = RunConfig("noise", split, method, "default", "random", protocol, params)
        task = make_task(config, rows, cameras=3)
        instance = load_method(method)(load_params(method, params if lr is None else {"lr": lr}))
        torch.manual_seed(0)
        model = instance.build(copy.deepcopy(self.backbone), task)
        part = Part(rows, Images.decoded(rows, (64, 32), "stretch"))
        data = training_set(part, split, self.backbone.mean, self.backbone.std)
        name = name or case
        checkpoints = Checkpoints(self.folder / name, "run")
        common = (7, self.accelerator, checkpoints, self.folder / f"{name}.jsonl", None, name)
        return Noting(instance, model, task, data, protocol, *common)

    def predictions(self, size: int) -> np.ndarray:
        fit = self.fit("lora")
        protocol = dataclasses.replace(fit.protocol, eval_batch_size=size)
        return predict(fit.model, fit.data.images, self.backbone, protocol, self.accelerator)


def normed(kind: type[Any], shape: tuple[int, ...], team: Team) -> dict[str, Tensor]:
    """What comes out of a batch-norm and back through it, and what it keeps."""
    generator = torch.Generator().manual_seed(3)
    whole = 2 + 3 * torch.randn(shape, generator=generator)
    weights = torch.randn(shape, generator=generator)
    mine = team.shares(len(whole))[team.rank]
    x = whole[mine.start : mine.stop].requires_grad_()
    model = nn.Sequential(kind(shape[1]))
    team.share_statistics(model)
    y = model(x)
    (y * y * weights[mine.start : mine.stop]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    team.add(gradients)
    assert x.grad is not None and len(gradients) == 2
    with torch.no_grad():
        evaluated = model.eval()(whole)
    found = {"y": y.detach(), "x": x.grad, "weight": gradients[0], "bias": gradients[1]}
    return {**found, **model.state_dict(), "evaluated": evaluated}


def stop_in_the_second(bench: Bench, rank: int) -> str:
    """What is said when the second process alone is told to leave, after the probe."""
    fit = bench.fit("lora", "stopped")
    step = fit._step

    def told(*arguments: Any) -> dict[str, float]:
        if rank == 1 and (fit.state.stage, fit.state.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(*arguments)

    fit._step = told  # type: ignore[method-assign]
    with watching(), pytest.raises(Stopped) as stopped:
        fit.run()
    assert stopped.value.to_requeue
    return str(stopped.value)


def noting_writes(folder: Path, found: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that notes what is made, changed or deleted below ``folder``."""
    changing = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in changing) and str(arguments[0]).startswith(str(folder)):
            found.append(f"{event} {arguments[0]}")

    return hook


def member(manifest: Path, folder: Path) -> tuple[int, str]:
    """What each of the two does. It ends with a mistake of the second, while the first waits."""
    torch.set_num_threads(1)
    meet()
    written, writes = folder / "written", []
    sys.addaudithook(noting_writes(written, writes))
    bench = Bench(read_manifest(manifest), written)
    rank = bench.accelerator.process_index
    own = folder / str(rank)
    own.mkdir()
    notes: dict[str, Any] = {"shown": {}}
    for case in CASES:
        fit = bench.fit(case)
        save_file(fit.run(), own / f"{case}.safetensors")
        notes["shown"][case] = fit.shown
    for name, (kind, shape) in NORMS.items():
        save_file(normed(kind, shape, Team(COUNT, rank)), own / f"{name}.safetensors")
    for size in EVALUATED:
        np.save(own / f"{size}.npy", bench.predictions(size))
    notes["stopped"] = stop_in_the_second(bench, rank)
    resumed = bench.fit("lora", "stopped")
    with watching():  # as a process that knows nothing of that signal
        save_file(resumed.run(), own / "resumed.safetensors")
    notes["left"] = len(resumed.shown)
    with pytest.raises(Diverged) as diverged:
        bench.fit("lora", "diverged", lr=1e30, clip_norm=0.0).run()
    notes |= {"diverged": str(diverged.value), "writes": writes}
    (own / "notes.json").write_text(json.dumps(notes))
    if rank == 1:
        raise PedbenchError("a picture is gone")
    bench.accelerator.wait_for_everyone()
    return 0, ""


@dataclasses.dataclass
class Both:
    """What the two processes left, and the process that is compared with them."""

    folder: Path
    alone: Bench
    said: str
    code: int

    def tensors(self, name: str, rank: int = 0) -> dict[str, Tensor]:
        return load_file(self.folder / str(rank) / f"{name}.safetensors")

    def notes(self, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / str(rank) / "notes.json").read_text())


def attempted(manifest: Path, folder: Path) -> tuple[int, str]:
    from pedbench.cli import attempt

    code = 0

    def command() -> int:
        nonlocal code
        code, _ = member(manifest, folder)
        return code

    return attempt(command, {})


@pytest.fixture(scope="module")
def both(manifest, tmp_path_factory) -> Both:
    folder = tmp_path_factory.mktemp("processes")
    write_manifest(manifest, folder / "noise.parquet")
    with pytest.MonkeyPatch.context() as patch:
        heard: list[str] = []
        patch.setattr(launching, "print", lambda text, file: heard.append(text), raising=False)
        code = launch(COUNT, attempted, folder / "noise.parquet", folder)
    (folder / "alone").mkdir()
    return Both(folder, Bench(manifest, folder / "alone"), "".join(heard), code)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(case, both):
    fit = both.alone.fit(case)
    one, two = fit.run(), both.tensors(case)
    assert equal(two, both.tensors(case, rank=1))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    assert equal(one, two) or case not in SAME
    both_logs = (both.folder / "written" / f"{case}.jsonl", both.folder / f"alone/{case}.jsonl")
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in both_logs]
    for ours, expected in zip(*lines, strict=True):
        numbers = {key for key, value in expected.items() if not isinstance(value, str)}
        assert ours.keys() == expected.keys()
        assert {k: ours[k] for k in numbers} == pytest.approx(
            {k: expected[k] for k in numbers}, rel=1e-5
        )
    # every image of a batch in one of the two, as it looks to one process
    shown = (both.notes(0)["shown"][case], both.notes(1)["shown"][case])
    for first, second, whole in zip(*shown, fit.shown, strict=True):
        assert first["chosen"] == second["chosen"] == whole["chosen"]
        looks = dict(zip(whole["mine"], whole["looks"], strict=True))
        assert sorted([*first["mine"], *second["mine"]]) == sorted(looks)
        for process in (first, second):
            assert process["looks"] == [looks[i] for i in process["mine"]]


def test_each_epoch_shows_every_image_once(both):
    shown = [both.notes(rank)["shown"]["lora"] for rank in range(COUNT)]
    images = [step["chosen"][i] for noted in shown for step in noted[:3] for i in step["mine"]]
    assert sorted(images) == list(range(48))


def test_parts_of_a_step_show_what_the_whole_step_shows(both):
    """The losses differ where they compare images: docs/decisions/processes.md."""
    looks = []
    for accumulate in (1, 2):
        fit = both.alone.fit("persons", f"in {accumulate}", accumulate=accumulate)
        fit.run()
        looks.append([step["looks"] for step in fit.shown])
    assert looks[0] == looks[1]


@pytest.mark.parametrize("name", NORMS)
def test_batch_norms_see_the_whole_batch(name, both):
    kind, shape = NORMS[name]
    expected = normed(kind, shape, Team(1, 0))
    ours = [both.tensors(name, rank) for rank in range(COUNT)]
    for key, value in expected.items():
        found = torch.cat([one[key] for one in ours]) if key in "xy" else ours[0][key]
        assert key in "xy" or torch.equal(found, ours[1][key])
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", EVALUATED)
def test_predictions_are_those_of_one_process_to_the_bit(size, both):
    expected = both.alone.predictions(size)
    for rank in range(COUNT):
        assert np.array_equal(np.load(both.folder / f"{rank}/{size}.npy"), expected)


def test_all_leave_at_the_same_step_and_go_on_to_the_same_bits(both):
    for rank in range(COUNT):
        notes = both.notes(rank)
        assert "fit, step 2: stopped, since it got SIGUSR1" in notes["stopped"]
        assert notes["left"] == 1
        assert equal(both.tensors("resumed", rank), both.tensors("lora"))


def test_the_first_process_alone_writes(both):
    assert both.notes(0)["writes"] and not both.notes(1)["writes"]


def test_all_notice_a_loss_that_is_not_finite(both):
    said = {both.notes(rank)["diverged"] for rank in range(COUNT)}
    assert len(said) == 1 and "not finite" in said.pop()


def test_a_mistake_of_one_process_ends_both_and_is_all_that_is_said(both):
    assert both.code == 1 and both.said == "pedbench: a picture is gone"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("raises", 1, "PedbenchError: this is what happened"),
        ("is killed", 137, "process 1 of the training was ended by SIGKILL; was there too little"),
        ("leaves", CODE, "saved"),
        ("says much", 1, "xxxthe end"),
    ],
)
def test_one_that_ends_ends_the_others(how, code, said, capsys, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.1)
    started = time.monotonic()
    assert launch(COUNT, members.second_fails, how) == code
    assert said in capsys.readouterr().err
    assert time.monotonic() - started < 50  # of the minute that the first one would wait


def test_each_process_knows_its_place(tmp_path):
    assert launch(COUNT, members.place, tmp_path) == 0
    assert (tmp_path / "0").read_text() == "0 0 2 2"
    assert (tmp_path / "1").read_text() == "1 1 2 2"


def test_a_world_of_another_size_is_refused(monkeypatch):
    """Some images of clusters export one."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not launching.is_one_of(2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launching.is_one_of(2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(PedbenchError, match="--processes 2: .* WORLD_SIZE=1, .* unset RANK and"):
        launching.is_one_of(2)


def test_signals_are_passed_on(tmp_path, capsys):
    def tell() -> None:
        while len(list(tmp_path.iterdir())) < COUNT:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=tell)
    thread.start()
    assert launch(COUNT, members.until_told, tmp_path) == CODE
    thread.join()
    assert "told SIGUSR1" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) is before


def test_shares_are_consecutive_and_even():
    for size, count in ((1, 5), (2, 5), (3, 7), (4, 3)):
        shares = [Team(size, rank).shares(count)[rank] for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_outputs_without_a_row_per_image_are_refused():
    output = Output(torch.zeros(4, 2), {"texts": torch.zeros(3, 2)})
    team = Team(COUNT, 0)
    team.gather = lambda own, counts: [own, own]  # type: ignore[method-assign]
    with pytest.raises(PedbenchError, match=r"'texts' \(3, 2\) has not one row for each of 4"):
        team.whole(output, 8)
