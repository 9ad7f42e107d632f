"""CPU time and peak memory of one training step of every method, with the suite's tricks and
computed plainly, at ViT-B/16 shapes with random weights; README.md beside it shows the result."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import argparse
import json
import multiprocessing
import platform
import re
import resource
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import naive
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pedbench import registry
from pedbench.config import plain, protocol_of, read_protocol, resolve
from pedbench.contracts import TINY, Attribute, Batch, PedbenchError, Task
from pedbench.engine import as_output, make_optimiser
from pedbench.nn.backbone import Backbone, load_backbone, shape_only
from pedbench.world.attributes import ATTRIBUTES

HERE = Path(__file__).parent
# as many as PETA has
PHRASES = [Attribute(n, "whole", f"in {n}", f"without {n}") for n in
           ("red trousers", "white trousers", "black boots")]  # fmt: skip
TASK = Task("par", (*ATTRIBUTES, *PHRASES), (0.3,) * 35)


@dataclass(frozen=True)
class Case:
    """A method in one setting. Targets: plain time / time with the tricks, and GB at the peak."""

    method: str
    batch: int = 4
    params: Mapping[str, Any] = field(default_factory=dict)  # where not the paper's
    ratio: float | None = None
    uncached_ratio: float | None = None  # image features computed at every step
    memory: float | None = None

    @property
    def name(self) -> str:
        return f"{self.method}, {self.params['head']}" if "head" in self.params else self.method


SOFTMAX, PAIR = {"head": "softmax"}, {"head": "pair"}
CASES = [
    Case("promptpar", params={"mm_init": "clip_last_block"}, ratio=1.8, memory=2.0),
    Case("coop", 16, SOFTMAX, ratio=5.0, uncached_ratio=1.3),
    Case("cocoop", 4, SOFTMAX, ratio=4.5, uncached_ratio=3.0, memory=3.0),
    Case("maple", 4, SOFTMAX, ratio=1.6),
    Case("ivlp", 4, SOFTMAX),
    Case("coop", 16, PAIR),
    Case("cocoop", 4, PAIR),
    Case("maple", 4, PAIR),
    Case("ivlp", 4, PAIR),
    Case("vtb", params={"tower": "clip", "text_encoder": "clip"}),
    Case("resnet50", params={"weights": "random"}),
]

HELP = """\
Each measurement runs in a process of its own, on one thread. A step is forward, backward and
optimiser; time is the least CPU time of --repeats steps, memory the process's peak (maximum
resident set). Only compare figures of one run: machines and their load differ.

  plain      as released code computes: 77 tokens a text, one row per text, prompts as ordinary
             tokens, nn.MultiheadAttention, one image after the other, nothing cached
  uncached   with every trick but cached image features, as under random crops
  suite      as the suite trains
  TRICK      the suite without that one trick, for the methods of --ablate

tricks:
""" + "\n".join(f"  {name:<16} {text}" for name, text in naive.TRICKS.items())
EXAMPLES = """
examples:
  python benchmarks/steps.py                               everything: 15-20 minutes
  python benchmarks/steps.py --methods coop                measure CoOp again, keep the others
  python benchmarks/steps.py --backbone random:tiny_clip --out try.json   seconds, to try it
  python benchmarks/steps.py --markdown                    steps.json into README.md
"""


def main() -> None:
    methods = registry.methods()
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=HELP + "\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", nargs="+", choices=methods, default=methods, metavar="NAME",
        help="default: all")  # fmt: skip
    add("--ablate", nargs="*", choices=methods, metavar="NAME",
        default=[case.method for case in CASES if case.ratio],
        help="methods to leave out single tricks of; default: those with a target")  # fmt: skip
    add("--repeats", type=int, default=3, help="steps per measurement (default: 3)")
    add("--batch", type=int, help="images per step; default: as in the reference figures, 4 or 16")
    add("--backbone", default="random:ViT-B-16", help="default: random:ViT-B-16")
    add("--out", type=Path, default=HERE / "steps.json", help="default: benchmarks/steps.json")
    add("--markdown", action="store_true",
        help="measure nothing: write the tables of --out into README.md beside it")  # fmt: skip
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    try:
        if options.markdown:
            fill_readme(json.loads(options.out.read_text()))
        else:
            measure_all(options)
    except (PedbenchError, OSError, json.JSONDecodeError) as error:
        raise SystemExit(f"steps.py: {error}") from error


def measure_all(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(options.backbone)
    jobs = [
        (replace(case, batch=options.batch or case.batch), form, without)
        for case in cases(options.methods)
        for form, without in forms(case, case.method in options.ablate and case.params != PAIR)
    ]
    report = kept(options.out, {case.name for case, *_ in jobs})
    rows, run = report["measurements"], about_run(options)
    report["runs"].append(run)
    bar = tqdm(jobs, unit="process")
    for case, form, without in bar:
        bar.set_description(f"{case.name}: {form}")
        row = in_process(measure, backbone, case, without, options.repeats)
        if row:
            rows.append({"case": case.name, "form": form, "batch": case.batch, **row})
            if "error" in row:
                bar.write(f"{case.name}: {form}: {row['error']}")
        run["load"] = max(run["load"], round(os.getloadavg()[0], 1))
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    run["finished"] = True
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    wrong = list(disagreements(rows))
    print(tables(report))
    if wrong:
        raise SystemExit(f"the loss is not the suite's in: {'; '.join(wrong)}")


def kept(file: Path, again: set[str]) -> dict[str, Any]:
    """What ``file`` holds of cases that are not measured again."""
    report = json.loads(file.read_text()) if file.exists() else {"runs": [], "measurements": []}
    rows = [row for row in report["measurements"] if row["case"] not in again]
    return {"runs": report["runs"] if rows else [], "measurements": rows}


def cases(methods: list[str]) -> list[Case]:
    """Those of `CASES`, then every other method as it is, then the long pairs of texts."""
    known = {case.method for case in CASES}
    others = [Case(name) for name in registry.methods() if name not in known]
    chosen = [case for case in (*CASES, *others) if case.method in methods]
    return sorted(chosen, key=lambda case: case.params == PAIR)


def forms(case: Case, ablate: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name of a form and the tricks it does without."""
    yield "suite", ()
    yield "plain", plain_form(case)
    yield "uncached", ("cached_images",)
    if ablate:
        for trick in naive.TRICKS:
            if trick in (*plain_form(case), "late_backward") and trick != "cached_images":
                yield trick, (trick,)


def plain_form(case: Case) -> tuple[str, ...]:
    """What released code does without."""
    needed = ("split_attention",) if case.method in naive.NEED_SPLIT else ()
    return tuple(trick for trick in naive.PLAIN if trick not in needed)


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result in a fork of this process, whose peak memory is then its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            sender.send(function(*arguments))
        except Exception as error:  # of any method; the others go on
            sender.send({"error": f"{type(error).__name__}: {error}"})

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = {"error": "the process was killed, for want of memory most likely"}
    process.join()
    return result


class Step:
    """Forward and backward pass of one training step; a forward pass where nothing trains.

    ``used``: the tricks of which the model has a use and that are left out.
    """

    def __init__(self, backbone: Backbone, case: Case, counter: Counter[str]) -> None:
        preset = "tiny_clip" if TINY in backbone.name else "reference"
        spec = resolve(case.method, "default", read_protocol("paper", (preset,)))
        params = plain(spec["params"]) | case.params
        self.method = registry.load_method(case.method)(registry.load_params(case.method, params))
        self.protocol = protocol_of(spec)
        torch.manual_seed(0)
        self.model: Any = self.method.build(backbone, TASK).eval()
        self.x = torch.randn(case.batch, 3, *backbone.image_size)
        self.labels = torch.randint(0, 2, (case.batch, len(TASK.attributes)))
        self.run, self.softmax = self.model, case.params == SOFTMAX
        single = self.x[:1]
        self.cacheable = hasattr(self.model, "stem") and not self.model.stem(single).requires_grad
        with torch.no_grad():
            self.model(single)
        self.used = {trick for trick in naive.TRICKS if counter[trick]}
        self.used |= {"cached_images"} if self.cacheable else set()

    def cache(self) -> None:
        """Compute the features of the images, as the engine does before the first step."""
        with torch.no_grad():
            self.x, self.run = self.model.stem(self.x), self.model.head

    def __call__(self) -> Tensor:
        torch.manual_seed(1)  # of stochastic depth: all forms leave out the same
        output = as_output(self.run(self.x))
        if self.softmax:
            terms = {"ce": F.cross_entropy(output.logits, self.labels.argmax(1))}
        else:
            terms = self.method.loss(output, Batch(self.x, self.labels), TASK)
        loss = torch.stack([*terms.values()]).sum()
        if self.method.trains:
            loss.backward()
        return loss


def measure(
    backbone: Backbone, case: Case, without: tuple[str, ...], repeats: int
) -> dict[str, Any] | None:
    """None if the model has no use for what is left out."""
    with naive.without(backbone, *without) as counter:
        step = Step(backbone, case, counter)
        missing = [trick for trick in without if trick in step.used]
        if without and missing != [*without] and without != plain_form(case):
            return None
        if step.cacheable and "cached_images" not in without:
            step.cache()
        step.model.train()
        groups = step.method.param_groups(step.model) if step.method.trains else []
        # the rate is the engine's business; with 0 every step is the same
        optimiser = make_optimiser(groups, step.protocol) if groups else None
        cpu, wall, loss = [], [], 0.0
        for _ in range(repeats):
            start = time.process_time(), time.perf_counter()
            loss = step().item()
            if optimiser is not None:
                optimiser.step()
                optimiser.zero_grad()
            cpu.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
    return {
        "cpu_s": round(min(cpu), 4),
        "wall_s": round(min(wall), 4),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "gflop": round(work(backbone.name, case, without) / 1e9, 1),
        "loss": loss,
        "without": missing,
    }


def work(backbone: str, case: Case, without: tuple[str, ...]) -> int:
    """Floating-point operations of a step's matrix products and convolutions, counted on shapes
    alone: unlike times, the same on every machine."""
    with torch.device("meta"):
        shapes = shape_only(backbone.removeprefix("random:"))
        with naive.without(shapes, *without) as counter:
            step = Step(shapes, case, counter)
            if step.cacheable and "cached_images" not in without:
                step.cache()
            step.model.train()
            with FlopCounterMode(display=False) as counted:
                step()
    return counted.get_total_flops()


def about_run(options: argparse.Namespace) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    widths = [name for name in ("avx512f", "avx2") if name in text]
    return {
        "command": shlex.join(["python", "benchmarks/steps.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": " ".join([model[1] if model else platform.processor(), *widths[:1]]),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "backbone": options.backbone,
        "repeats": options.repeats,
        "load": 0.0,
        "finished": False,
    }


def disagreements(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Forms whose loss is not the one the suite computes, apart from rounding."""
    suite = {row["case"]: row["loss"] for row in rows if row["form"] == "suite" and "loss" in row}
    for row in rows:
        if "loss" in row and row["case"] in suite:
            off = abs(row["loss"] / suite[row["case"]] - 1)
            if off > 1e-3:
                yield f"{row['case']} {row['form']} ({off:.1e})"


def fill_readme(report: dict[str, Any]) -> None:
    readme = HERE / "README.md"
    block = re.compile(r"(<!-- generated: steps -->\n).*?(<!-- end -->)", re.DOTALL)
    text = block.sub(
        lambda found: f"{found[1]}\n{tables(report)}\n\n{found[2]}", readme.read_text()
    )
    readme.write_text(text)


def tables(report: dict[str, Any]) -> str:
    rows = {(row["case"], row["form"]): row for row in report["measurements"]}
    names = list(dict.fromkeys(case for case, _ in rows))
    known = {case.name: case for case in CASES}
    costs = [
        ["Method", "Batch", "Plain, s", "Uncached, s", "Suite, s", "Uncached ratio", "Suite ratio",
         "Target", "Plain, GFLOP", "Uncached, GFLOP", "Suite, GFLOP", "Plain, GB", "Suite, GB"],
        ["---", *["---:"] * 6, "---", *["---:"] * 5],
    ]  # fmt: skip
    for name in names:
        found = [rows.get((name, form), {}) for form in ("plain", "uncached", "suite")]
        before, uncached, after = found
        ratios = quotient(before, uncached), quotient(before, after)
        goals = targets(known.get(name, Case(name)), *ratios, after.get("peak_gb"))
        costs.append([
            name, str(after.get("batch", "")),
            *(number(row, "cpu_s", 2) for row in found), *map(times, ratios), goals,
            *(number(row, "gflop", 0) for row in found),
            *(number(row, "peak_gb", 2) for row in (before, after)),
        ])  # fmt: skip
    ablated = [n for n in names if any((n, trick) in rows for trick in naive.TRICKS)]
    single = [["Without", *ablated], ["---", *["---:"] * len(ablated)]]
    for trick in naive.TRICKS:
        cells = []
        for name in ablated:
            form = rows.get((name, "uncached" if trick == "cached_images" else trick), {})
            base = rows.get((name, "suite"), {})
            if trick == "late_backward":  # tracked features cannot be cached
                base = rows.get((name, "uncached"), base)
            factor = quotient(form, base)
            extra = form.get("peak_gb", 0) - base.get("peak_gb", 0)
            cells.append("" if factor is None else f"x {factor:.2f}, {extra:+.1f} GB")
        if any(cells):
            single.append([f"`{trick}`", *cells])
    parts = [markdown(costs)] + ([markdown(single)] if ablated else [])
    facts = [
        f"`{run['command']}`{'' if run['finished'] else ' (stopped before its end)'}, "
        f"{run['date']}: {run['machine']}, {run['cores']} cores, one used "
        f"(load up to {run['load']}), torch {run['torch']}, {run['backbone']}; CPU seconds, least "
        f"of {run['repeats']}."
        for run in report["runs"]
    ]
    return "\n\n".join([*parts, *facts])


def markdown(table: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def quotient(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    return before["cpu_s"] / after["cpu_s"] if "cpu_s" in before and "cpu_s" in after else None


def number(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def targets(case: Case, uncached: float | None, suite: float | None, memory: float | None) -> str:
    """What was aimed at, and which of it was missed."""
    goals = [
        (f"{case.ratio}", case.ratio, suite, 1),
        (f"uncached {case.uncached_ratio}", case.uncached_ratio, uncached, 1),
        (f"{case.memory} GB", case.memory, memory, -1),
    ]
    return ", ".join(
        text if sign * (found - goal) >= 0 else f"**{text} missed**"
        for text, goal, found, sign in goals
        if goal is not None and found is not None
    )


if __name__ == "__main__":
    main()
