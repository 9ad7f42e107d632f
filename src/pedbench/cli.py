"""The ``pedbench`` command: what the DAG's rules call, and what a person calls by hand.

Stages are imported inside their command, so ``--help`` and ``list`` start without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pedbench import __version__
from pedbench.contracts import BACKBONES, IMAGE_SIZES, PedbenchError
from pedbench.launch import is_first, is_one_of, launch
from pedbench.stopping import CODE, Stopped, requeue, watching

EXAMPLES = """\
examples:
  snakemake --cores all results/tables    run the benchmark (see README.md)
  pedbench list                           methods, datasets and variants at hand
  pedbench status                         how far config/config.yaml is
  pedbench cite                           BibTeX of all that config/config.yaml compares
  pedbench new-method my_adapter          a new method from a working template
  pedbench predict --run results/runs/synthetic_a/standard/linear_probe/default/seed0 photos/
  pedbench doctor                         what is installed, found and missing
  pedbench doctor --dataset peta --root /data/PETA    whether a dataset is complete
"""


FILES = {  # options of several steps, each a path
    "plan": "written by 'pedbench plan'",
    "settings": "the variant's config.json",
    "manifest": "written by 'pedbench manifest'",
    "weights": "written by 'pedbench weights'",
    "backbones": "folder of what 'pedbench weights' wrote",
    "prepared": "written by 'pedbench prepare'; where absent, picture files are decoded",
    "long": "written by 'pedbench collect'",
    "stats": "folder written by 'pedbench stats'",
    "cost": "written by 'pedbench cost'",
    "selection": "written by 'pedbench selection'",
    "out": "what is written",
}


SPEC = "the settings themselves, JSON, each with its origin; they are written to --settings first"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 1 for a mistake the user can mend."""
    arguments = vars(parser().parse_args(argv))
    code, message = attempt(arguments.pop("command"), arguments)
    if message:
        print(message, file=sys.stderr)
    return code


def attempt(command: Callable[..., int | None], arguments: Mapping[str, Any]) -> tuple[int, str]:
    """The exit status of one command, and what to say where it failed."""
    try:
        return command(**arguments) or 0, ""
    except PedbenchError as error:
        from pedbench.files import printable  # the message may quote an imported bundle

        code = CODE if isinstance(error, Stopped) else 1
        return code, f"pedbench: {printable(str(error))}"
    except OSError as error:
        from pedbench.files import explain_os_error

        place = Path(error.filename) if error.filename else Path.cwd()
        return 1, f"pedbench: {explain_os_error(place, error)}"
    except KeyboardInterrupt:
        return 130, "pedbench: interrupted; run the same command again to go on"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="pedbench",
        description="Benchmark of parameter-efficient fine-tuning of CLIP on pedestrians.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pedbench {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands")
    steps: dict[str, str] = {}

    def add(name: str, command: Callable[..., Any], about: str, **listed: Any):
        one = commands.add_parser(name, description=about[0].upper() + about[1:] + ".", **listed)
        one.set_defaults(command=command)
        return one

    def user(name: str, command: Callable[..., Any], about: str) -> argparse.ArgumentParser:
        return add(name, command, about, help=about)

    def step(name: str, command: Callable[..., Any], about: str, takes: str = ""):
        steps[name] = about
        one = add(name, command, about)
        for file in takes.split():
            name = file.strip("[]")
            one.add_argument(f"--{name}", required=name == file, type=Path, help=FILES[name])
        return one

    def folder(one: argparse.ArgumentParser, name: str, about: str) -> None:
        default = {"default": Path(name), "help": f"{about} (default: %(default)s)"}
        one.add_argument(f"--{name}", type=Path, **default)

    one = user("list", list_plugins, "show the methods, their variants, and the datasets at hand")
    one.add_argument("--params", metavar="METHOD", help="explain every hyperparameter of a method")

    one = user("cite", cite, "print the BibTeX of the suite and what a plan or a table compares")
    what = one.add_mutually_exclusive_group()
    what.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/config.yaml"),
        help="the methods and datasets of this plan (default: %(default)s)",
    )
    what.add_argument("--table", type=Path, help="those of a CSV in results/tables instead")
    one.epilog = (
        "Save it with 'pedbench cite > compared.bib'. The entries are the constants BIBTEX of the "
        "files in methods/ and datasets/; a file without one is named in a comment."
    )

    one = user("status", status, "show how far a plan is, without starting anything")
    what = one.add_mutually_exclusive_group()
    what.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/config.yaml"),
        help="the plan (default: %(default)s)",
    )
    what.add_argument("--results", type=Path, help="the plan that this folder was made by instead")
    one.add_argument("--json", dest="as_json", action="store_true", help="every run, for programs")
    one.epilog = (
        "For example, while 'snakemake ... --configfile config/paper.yaml' is running elsewhere: "
        "'pedbench status --configfile config/paper.yaml'. It reads the files of the results "
        "folder, and Slurm's queue where there is one; a login node is enough for it. A run is "
        "called running while its log does not say that it ended and the process that holds its "
        "folder may live: of one killed on another host only the time of its last file tells."
    )

    one = user("docs", docs, "write docs/methods.md and the docs' tables of results")
    what = one.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail if it would change")
    what.add_argument(
        "--results",
        type=Path,
        help="first keep the numbers of this finished plan in resources/embedded_results.csv",
    )

    one = user("predict", predict, "label pictures with a trained adapter, as CSV")
    one.add_argument("pictures", nargs="+", type=Path, help="picture files or folders of them")
    one.add_argument("--run", required=True, type=Path, help="a seed folder below results/runs")
    one.add_argument("--out", type=Path, help="CSV file (default: standard output)")
    one.add_argument("--weights", type=Path, help="backbone checkpoint, if not found by name")

    one = user("rerank", rerank, "score a run of re-identification with re-ranking as well")
    one.add_argument("--run", required=True, type=Path, help="a seed folder below results/runs")
    one.add_argument("--subset", choices=("val", "test"), default="test", help="(default: test)")
    for name, value, about in (("k1", 20, "neighbours"), ("k2", 6, "neighbours of expansion")):
        text = f"{about} (default: %(default)s, the paper's)"
        one.add_argument(f"--{name}", type=int, default=value, help=text)
    one.add_argument(
        "--weight",
        type=float,
        default=0.3,
        help="of the original distance; 1 leaves the ranking as it is (default: %(default)s)",
    )
    one.epilog = (
        "Re-ranking (Zhong et al., CVPR 2017) brings gallery images forward that have their "
        "nearest neighbours in common with the query. It reads the features that the run kept "
        "and trains nothing. It looks at the other queries too, so a number with it is compared "
        "only with numbers with it: the suite's tables never contain one. Choose k1, k2 and the "
        "weight with --subset val, where the split has it."
    )

    one = user("compare", compare, "test two variants against each other, ours or imported")
    for name, metavar in (("first", "A"), ("second", "B")):
        one.add_argument(name, metavar=metavar, help="method[/variant] or import:method[/variant]")
    one.add_argument(
        "--place", dest="places", nargs="+", default=(), help="dataset/split (default: all common)"
    )
    one.add_argument("--metrics", nargs="+", default=(), help="(default: the plan's)")
    one.add_argument("--seeds", action="store_true", help="list the values of every seed as well")
    folder(one, "results", "folder of our results")
    folder(one, "imported", "folder of the imports")

    one = user("export", export, "write a finished plan into one file to share, without images")
    folder(one, "results", "folder of a finished plan")
    one.add_argument("--out", required=True, type=Path, help="a zip file")
    one.add_argument(
        "--methods", nargs="+", default=(), help="method (all its variants) or method/variant"
    )
    one.add_argument("--adapters", action="store_true", help="with the trained tensors")

    one = user("import", import_, "check and unpack what another 'pedbench export' wrote")
    one.add_argument("file", type=Path)
    one.add_argument("--as", dest="name", required=True, help="name of the import, e.g. their_lab")
    folder(one, "imported", "folder of the imports")

    one = user("new-method", new_method, "write methods/NAME.py from a working template")
    one.add_argument("name", help="lower-case letters, digits and underscores")
    one = user("new-dataset", new_dataset, "write datasets/NAME.py, which reads images + a CSV")
    one.add_argument("name", help="lower-case letters, digits and underscores")

    one = user("ui", ui, "show the runs in MLflow's pages, in the browser")
    folder(one, "results", "folder whose runs are shown")
    one.add_argument("--port", type=int, default=5050, help="(default: %(default)s)")

    one = user("doctor", doctor, "check the installation and a plan, or a dataset's folder")
    one.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/config.yaml"),
        help="the plan, or where the dataset's folder and options stand (default: %(default)s)",
    )
    one.add_argument("--dataset", metavar="NAME", help="check this dataset's folder instead")
    one.add_argument("--root", type=Path, help="the folder (default: as in a run of the plan)")
    one.add_argument("--decode", action="store_true", help="decode every image to its last pixel")
    one.add_argument(
        "--any-counts", action="store_true", help="accept other numbers of images than published"
    )

    one = step("plan", plan, "check a plan and write what it asks for", takes="out")
    one.add_argument("--json", dest="config", required=True, type=json.loads, help="the plan")

    one = step(
        "manifest", manifest, "check a dataset's images and labels and list them", takes="out"
    )
    one.add_argument("dataset")
    one.add_argument("--root", required=True, type=Path, help="the dataset's folder")
    one.add_argument("--options", type=json.loads, default={}, help="for generated data, JSON")

    one = step(
        "prepare",
        prepare,
        "decode and resize a dataset's pictures into one file; goes on where it was stopped",
        takes="manifest out",
    )
    one.add_argument(
        "--size", required=True, type=int, nargs=2, metavar=("H", "W"), help="height and width"
    )
    one.add_argument("--resize", required=True, help="as in a protocol, e.g. pad_square")
    one.add_argument("--threads", type=int, default=1)

    one = step(
        "weights",
        weights,
        "find (or download) a backbone's weights and take their sha256",
        takes="out",
    )
    one.add_argument("backbone")
    one.add_argument("--file", type=Path, help="a checkpoint file to use instead")

    one = step(
        "train",
        train,
        "fit and predict the seeds of one variant; finished ones are kept",
        takes="settings manifest weights [prepared]",
    )
    one.add_argument("--spec", type=json.loads, help=SPEC)
    one.add_argument("--seeds", required=True, type=int, nargs="+")
    one.add_argument("--threads", type=int, default=1, help="CPU threads; part of the result")
    one.add_argument(
        "--processes",
        type=int,
        default=1,
        help="processes that share each batch, each with a GPU where there are any; part of the "
        "result; 0 is 1 (default: %(default)s)",
    )
    one.add_argument("--keep-epochs", action="store_true", help="for the step 'selection'")
    one.add_argument("--out", type=Path, help="marker written when all seeds are done")

    one = step(
        "tune",
        tune,
        "run the trials of one method (users: make tune)",
        takes="settings manifest weights [prepared] out",
    )
    one.add_argument("--spec", type=json.loads, help=SPEC)
    one.add_argument("--trials", required=True, type=int, help="the start is the first of them")
    one.add_argument("--seeds", required=True, type=int, nargs="+")
    one.add_argument("--threads", type=int, default=1)

    one = step(
        "preset", preset, "write the preset that all trials give (users: make tune)", takes="plan"
    )
    one.add_argument("records", nargs="+", type=Path, help="written by 'pedbench tune'")
    one.add_argument("--trials", required=True, type=int)
    one.add_argument("--out", required=True, type=Path, help="the record; the YAML goes beside it")

    step("score", score, "metrics of every run from its kept predictions", takes="plan out")

    step("collect", collect, "all scores as one tidy Parquet table", takes="plan out")

    step(
        "stats",
        stats,
        "intervals, tests, ranks and effect sizes from kept predictions",
        takes="plan out",
    )

    one = step(
        "cost",
        cost,
        "what every variant costs: parameters, operations, speed, memory",
        takes="plan backbones [prepared] out",
    )
    one.add_argument("--threads", type=int, default=1, help="as in training")

    one = step(
        "selection",
        selection,
        "how much choosing epochs by test scores flatters a method",
        takes="plan long backbones [prepared] out",
    )
    one.add_argument("--threads", type=int, default=1, help="as in training")

    step(
        "figures",
        figures,
        "every plot the plan has data for, PDF + PNG, with captions",
        takes="plan long stats cost selection out",
    )

    step(
        "pictures",
        pictures,
        "test pictures with what the models make of them, PDF + PNG",
        takes="plan long backbones out",
    )

    one = step(
        "tables",
        tables,
        "the tables of config/tables.yaml as CSV, Markdown, LaTeX, HTML",
        takes="plan long stats cost selection out",
    )
    one.add_argument("--figures", required=True, nargs="+", type=Path, help="folders of pictures")

    step("track", track, "mirror the run folders into MLflow", takes="plan out")

    one = step(
        "report",
        report,
        "let Snakemake report what it made, as one page (make report)",
        takes="out",
    )
    one.add_argument("--json", dest="config", required=True, type=json.loads, help="the plan")

    one = step("pretrain", pretrain, "rebuild the tiny CLIP (users: make pretrain)")
    one.add_argument("--recipe", type=Path, default=Path("config/pretrain.yaml"))
    one.add_argument("--out", type=Path, default=Path("results/pretrain"))

    called = "\n".join(f"  {name:21} {about}" for name, about in steps.items())
    top.epilog = f"steps of the workflow, called by its rules:\n{called}\n\n{EXAMPLES}"
    return top


def list_plugins(params: str | None) -> None:
    from pedbench import registry
    from pedbench.config import files_of, read_variants

    if params is not None:
        for key, field in registry.read_params(params).items():
            print(f"{key} = {field.default!r}  ({field.annotation})\n    {field.doc}")
        return
    variants = read_variants()
    width = max(map(len, (*registry.methods(), *registry.datasets())))
    print("methods (methods/NAME.py; variants in config/variants.yaml)")
    for name in registry.methods():
        print(f"  {name:{width}} {registry.summary('method', name)}")
        print(f"  {'':{width}} tasks: {', '.join(registry.class_attribute(name, 'tasks'))}")
        if variants.get(name):
            print(f"  {'':{width}} variants: {', '.join(variants[name])}")
    print("datasets (datasets/NAME.py), their splits by task")
    for name in registry.datasets():
        print(f"  {name:{width}} {registry.summary('dataset', name)}")
        spec = registry.load_dataset(name).SPEC
        for task in dict.fromkeys(map(spec.task_of, spec.splits)):
            splits = ", ".join(split for split in spec.splits if spec.task_of(split) == task)
            print(f"  {'':{width}} {task}: {splits}")
    for kind in ("protocol", "preset"):
        print(f"{kind}s (config/{kind}s/NAME.yaml)")
        print(f"  {', '.join(files_of(kind))}")


def cite(configfile: Path, table: Path | None) -> None:
    from pedbench.cite import bibliography, in_config, in_table

    print(bibliography(*(in_table(table) if table else in_config(configfile))), end="")


def status(configfile: Path, results: Path | None, as_json: bool) -> None:
    from pedbench.config import read_yaml
    from pedbench.files import canonical_json, printable
    from pedbench.plan import make_plan
    from pedbench.results import PLAN
    from pedbench.status import status as look

    if results is None:
        document = make_plan(read_yaml(configfile.resolve()), str(configfile)).as_json()
    else:
        document = _read_plan(results / PLAN)
    found = look(document)
    text = canonical_json(found.as_json()) if as_json else f"{found.as_text()}\n"
    print(printable(text), end="")


def docs(check: bool, results: Path | None) -> None:
    from pedbench.describe import check_pages, copy_pictures, copy_results, write_pages

    if check:
        return check_pages()
    pictures: list[Path] = []
    if results is not None:
        copy_results(results)
        pictures = copy_pictures(results)
    written = [f"wrote {file}" for file in (*pictures, *write_pages())]
    print("\n".join(written) or "all pages are up to date")


def predict(run: Path, pictures: list[Path], out: Path | None, weights: Path | None) -> None:
    from pedbench.files import printable
    from pedbench.label import label_pictures

    table = label_pictures(run, pictures, weights).to_csv(index=False, float_format="%.4f")
    if out is None:
        print(printable(table), end="")  # the run may be imported
    else:
        out.write_text(table, encoding="utf-8")


def rerank(run: Path, subset: str, k1: int, k2: int, weight: float) -> None:
    from pedbench.reranked import reranked

    print(reranked(run, subset, k1, k2, weight), end="")


def compare(
    first: str,
    second: str,
    places: list[str],
    metrics: list[str],
    seeds: bool,
    results: Path,
    imported: Path,
) -> None:
    from pedbench.versus import as_text, versus

    print(as_text(versus(first, second, results, imported, places, metrics), seeds), end="")


def export(results: Path, out: Path, methods: list[str], adapters: bool) -> None:
    from pedbench.bundle import describe, export_bundle

    print(describe(out, export_bundle(results, out, methods, adapters)))


def import_(file: Path, name: str, imported: Path) -> None:
    from pedbench.bundle import import_bundle

    new = import_bundle(file, name, imported)
    print(f"{imported / name}: {'unpacked' if new else 'holds this bundle already'}")


def new_method(name: str) -> None:
    from pedbench.scaffold import create

    print(create("method", name))


def new_dataset(name: str) -> None:
    from pedbench.scaffold import create

    print(create("dataset", name))


def ui(results: Path, port: int) -> None:
    from pedbench.tracking import ui as show

    show(results, port)


def doctor(
    configfile: Path, dataset: str | None, root: Path | None, decode: bool, any_counts: bool
) -> int:
    from pedbench.doctor import examine, examine_dataset

    if dataset is not None:
        options = {"check_counts": False} if any_counts else {}
        return examine_dataset(configfile, dataset, root, decode, options)
    if root is not None or decode or any_counts:
        raise PedbenchError("--root, --decode and --any-counts need --dataset NAME")
    return examine(configfile)


def plan(config: dict[str, Any], out: Path) -> None:
    from pedbench.plan import write_plan

    write_plan(config, out)


def manifest(dataset: str, root: Path, options: dict[str, Any], out: Path) -> None:
    from pedbench.contracts import own_options
    from pedbench.intake import build_manifest
    from pedbench.registry import load_dataset

    source = load_dataset(dataset)
    source.generate(root, own_options(options))
    build_manifest(dataset, source, root, options, out)


def prepare(manifest: Path, size: list[int], resize: str, threads: int, out: Path) -> None:
    from pedbench.manifest import read_manifest
    from pedbench.prepared import prepare as prepare_pictures

    prepare_pictures(read_manifest(manifest), (size[0], size[1]), resize, threads, out)


def weights(backbone: str, file: Path | None, out: Path) -> None:
    from pedbench.files import write_json
    from pedbench.weights import checkpoint, weights_sha256

    known = backbone in BACKBONES
    sha256 = weights_sha256(backbone, file or checkpoint(backbone)) if known else None
    if sha256 is None:  # only torch can read it, or what is wrong is told
        sha256 = _digest_by_torch(backbone, file)
    chosen = None if file is None else str(file)
    write_json(out, {"backbone": backbone, "file": chosen, "sha256": sha256})


def _digest_by_torch(backbone: str, file: Path | None) -> str:
    from pedbench.nn.backbone import load_backbone

    loaded = load_backbone(backbone, file)
    if loaded.image_size != IMAGE_SIZES[backbone]:
        raise PedbenchError(
            f"{file}: reads pictures of {loaded.image_size}, but {backbone} is listed with "
            f"{IMAGE_SIZES[backbone]}: name a checkpoint of that size"
        )
    return loaded.weights_sha256


@contextmanager
def job() -> Iterator[None]:
    """What training and tuning have in common: a GPU, a way to leave."""
    from pedbench.devices import own_gpu

    try:
        with watching(), own_gpu():
            yield
    except Stopped as stopped:
        if stopped.to_requeue:
            requeue()
        raise


def _settle(settings: Path, spec: dict[str, Any] | None) -> None:
    """Write ``spec`` where it does not stand yet: jobs of other seeds share the file."""
    from pedbench.files import canonical_json, write_json

    if spec is None:
        return
    with suppress(OSError):  # not there, most likely; else writing will tell
        if settings.read_bytes() == canonical_json(spec).encode():
            return
    write_json(settings, spec)


def train(
    settings: Path,
    spec: dict[str, Any] | None,
    manifest: Path,
    weights: Path,
    seeds: list[int],
    threads: int,
    processes: int,
    keep_epochs: bool,
    prepared: Path | None,
    out: Path | None,
) -> int | None:
    arguments = locals()
    from pedbench.files import write_json

    _settle(settings, spec)
    if processes > 1 and not is_one_of(processes):
        from pedbench.devices import own_gpu

        with own_gpu(count=processes):
            return launch(processes, attempt, train, {**arguments, "spec": None})
    from pedbench.train import train as fit_and_predict

    with job():
        digests = fit_and_predict(
            settings, manifest, weights, seeds, threads, keep_epochs, prepared
        )
    if out is not None and is_first():
        write_json(out, digests)


def tune(
    settings: Path,
    spec: dict[str, Any] | None,
    manifest: Path,
    weights: Path,
    trials: int,
    seeds: list[int],
    threads: int,
    prepared: Path | None,
    out: Path,
) -> None:
    from pedbench.tune import tune as run_trials

    _settle(settings, spec)
    with job():
        run_trials(settings, manifest, weights, trials, seeds, threads, out, prepared)


def preset(records: list[Path], plan: Path, trials: int, out: Path) -> None:
    from pedbench.tune import write_preset

    write_preset(_read_plan(plan), trials, records, out)


def _read_plan(path: Path) -> dict[str, Any]:
    from pedbench.files import read_json

    return read_json(path)


def _folders(plan: dict[str, Any]) -> list[Path]:
    """The folder of every run."""
    from pedbench.plan import runs_of

    return [folder for _, _, folder in runs_of(plan)]


def _manifests(plan: dict[str, Any]) -> dict[str, Path]:
    """The manifest of every dataset."""
    return {name: Path(source["manifest"]) for name, source in plan["datasets"].items()}


def score(plan: Path, out: Path) -> None:
    from pedbench.score import score_runs

    document = _read_plan(plan)
    score_runs(_folders(document), _manifests(document), out)


def collect(plan: Path, out: Path) -> None:
    from pedbench.collect import collect as collect_scores

    collect_scores(_folders(_read_plan(plan)), out)


def stats(plan: Path, out: Path) -> None:
    from pedbench.plan import runs_of
    from pedbench.stats import write_stats

    document = _read_plan(plan)
    folders = [folder for e, _, folder in runs_of(document) if e["in_tables"]]
    write_stats(folders, _manifests(document), out, **document["comparison"])


def cost(plan: Path, backbones: Path, prepared: Path | None, threads: int, out: Path) -> None:
    from pedbench.cost import write_costs
    from pedbench.devices import own_gpu

    with own_gpu():
        write_costs(_read_plan(plan), backbones, threads, out, prepared)


def selection(
    plan: Path, long: Path, backbones: Path, prepared: Path | None, threads: int, out: Path
) -> None:
    from pedbench.devices import own_gpu
    from pedbench.selection import write_selection

    with own_gpu():
        write_selection(_read_plan(plan), long, backbones, threads, out, prepared)


def figures(plan: Path, long: Path, stats: Path, cost: Path, selection: Path, out: Path) -> None:
    from pedbench.figures import write_figures

    write_figures(_read_plan(plan), long, stats, cost, selection, out)


def pictures(plan: Path, long: Path, backbones: Path, out: Path) -> None:
    from pedbench.devices import own_gpu
    from pedbench.pictures import write_pictures

    with own_gpu():
        write_pictures(_read_plan(plan), long, backbones, out)


def tables(
    plan: Path,
    long: Path,
    stats: Path,
    cost: Path,
    selection: Path,
    figures: list[Path],
    out: Path,
) -> None:
    from pedbench.tables.write import write_tables

    document = _read_plan(plan)
    write_tables(long, stats, figures, document, out, cost=cost, selection=selection)


def track(plan: Path, out: Path) -> None:
    from pedbench.tracking import track as mirror

    counts = mirror(_folders(_read_plan(plan)), out)
    print(f"MLflow: {', '.join(f'{number} {what}' for what, number in counts.items())}")


def report(config: dict[str, Any], out: Path) -> None:
    from pedbench.report import write_report

    write_report(config, out)


def pretrain(recipe: Path, out: Path) -> None:
    from pedbench.config import read_yaml
    from pedbench.pretrain import pretrain as rebuild

    rebuild(read_yaml(recipe.resolve()), out)


if __name__ == "__main__":
    sys.exit(main())
