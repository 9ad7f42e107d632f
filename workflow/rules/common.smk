# Functions that the rules call while the DAG is built.


def markers_of_runs(wildcards):
    """All training jobs. What was deleted since it was made is forced to come back: of itself
    Snakemake asks for no output whose successors exist."""
    if workflow.is_main_process:
        workflow.dag.forcefiles |= lost(PLAN)
    return [batch.marker for batch in PLAN.batches]


def all_weights(wildcards):
    return list(PLAN.weights.values())


def option_of_weights(wildcards):
    """Of the step that takes their checksum: their file, where the plan names one."""
    file = PLAN.weights_file(wildcards.backbone)
    return ["--file", file] if file else []


def experiment_of(wildcards):
    names = wildcards.dataset, wildcards.split, wildcards.method, wildcards.variant
    return PLAN.experiment(*names)


def weights_of(wildcards):
    """The record of the weights that the experiment runs on."""
    return PLAN.weights[experiment_of(wildcards).backbone]


def prepared_of(wildcards):
    """The marker of the pictures that the experiment reads. They may be deleted when its runs are
    done, and made anew for others without their being repeated."""
    return ancient(PLAN.prepared(experiment_of(wildcards)))


def all_prepared(experiments):
    return [ancient(name) for name in sorted({PLAN.prepared(e) for e in experiments})]


def keep_epochs(experiment):
    """The option of a training job whose epochs the step `selection` reads."""
    return ["--keep-epochs"] if experiment.keep_epochs else []


def inputs_of_tables(wildcards):
    """What says which tables there are, captions, the report of the tuning."""
    presets = [preset for preset in TUNED.values() if preset in PLAN.config["presets"]]
    records = [f"{PRESETS}/{preset}.json" for preset in presets]
    return [DEFINITIONS, "config/protocols/paper.yaml", *records]


def published_numbers(wildcards):
    return sorted(map(str, Path("resources/published").glob("*.csv")))


def records_of_tuning(wildcards):
    """A record for each section; like `markers_of_runs`."""
    records = [f"{RESULTS}/tuned/{section}.json" for section in to_tune()]
    if workflow.is_main_process:
        gone = {record for record in records if not Path(record).exists()}
        workflow.dag.forcefiles |= gone | lost(PLAN)
    return records


def to_tune():
    """Section of the preset -> the experiment that is tuned."""
    try:
        return tuned(PLAN)
    except PedbenchError as error:
        raise WorkflowError(str(error)) from None


def reported(kind, output, wildcards):
    """Title or category of a table or picture in the report."""
    return config["report"]["entries"][f"{output[0]}/{wildcards.name}"][kind]


def pictures_for_report(folder):
    """``folder``, with its pictures and their captions in the report."""
    return report(
        directory(folder),
        patterns=["{name}.png"],
        caption="../report/picture.rst",
        category="2 Figures",
        subcategory=lambda wildcards, output: reported("category", output, wildcards),
        labels=lambda wildcards, output: {
            "Figure": reported("title", output, wildcards)
        },
    )


def tables_for_report(folder):
    """``folder``, with its tables in the report, but not the page that has them all."""
    return report(
        directory(folder),
        patterns=["{name,(?!index[.]html$).+}.html"],
        caption="../report/table.rst",
        category=lambda wildcards: (
            "3 Tables of papers" if Path(wildcards.name).parent.name else "1 Tables"
        ),
        labels=lambda wildcards, output: {
            "Table": reported("title", output, wildcards)
        },
    )


def cores_of_cost():
    """Nothing of ours may run beside what measures time; on a cluster others may (docs/cost.md)."""
    here = workflow.resource_settings.cores if SHARED else None
    return here or PLAN.config["threads_per_job"]


def claim_results():
    """Until this process ends no other Snakemake, of whatever checkout, makes these results."""
    alone = ExitStack()
    atexit.register(alone.close)
    folder = Path(RESULTS)
    try:
        alone.enter_context(only_writer(folder / ".lock", "runs Snakemake", folder))
    except PedbenchError as error:
        raise WorkflowError(str(error)) from None


def gpus_of(rule):
    """GPUs of each of its jobs: what a profile says, else one where this machine has any."""
    said = workflow.resource_settings.overwrite_resources.get(rule, {})
    return int(said["gpu"].value) if "gpu" in said else min(1, GPUS)


def asking(ask, *more):
    """The resources of a rule, all of them told by ``ask(wildcards, attempt)``."""

    def part(name):
        return lambda wildcards, attempt: getattr(ask(wildcards, attempt), name)

    return {name: part(name) for name in ("runtime", "mem_mb", *more)}


def training(rule):
    """What jobs that train ask for: seeds in ``train``, trials in ``trials``, by one process."""

    @cache
    def ask(names, count, attempt):
        gpus = gpus_of(rule) if rule == "train" else min(1, gpus_of(rule))
        return of_training(PLAN, PLAN.experiment(*names), count, attempt, gpus)

    def seeds(wildcards, attempt):
        return ask(tuple(wildcards[:4]), wildcards.seeds.count("-") + 1, attempt)

    def trials(wildcards, attempt):
        experiment = to_tune()[wildcards.section]
        names = tuple(experiment.key.split("/"))
        return ask(names, PLAN.config["trials"] * len(experiment.seeds), attempt)

    return asking({"train": seeds, "trials": trials}[rule], "gpu_mem_mb")


def reading(rule):
    """What jobs that read a dataset's pictures ask for."""
    return asking(
        lambda wildcards, attempt: of_dataset(PLAN, rule, wildcards.dataset, attempt)
    )


def looking(rule, *more):
    """What a job asks for that looks at all runs, or at none."""
    ask = cache(lambda attempt: of_step(PLAN, rule, attempt, gpus_of(rule)))
    return asking(lambda wildcards, attempt: ask(attempt), *more)


def announce():
    """Say what is about to run, or would."""
    todo = list(workflow.dag.needrun_jobs(exclude_finished=False))
    markers = [str(job.output[0]) for job in todo if job.rule.name == "train"]
    tuning = [
        to_tune()[job.wildcards.section] for job in todo if job.rule.name == "trials"
    ]
    cores = workflow.resource_settings.cores or 1
    if todo:
        told = describe(PLAN, cores, markers, tuning, gpus_of("train"))
        print(told, file=sys.stderr)


def announce_dry_run():
    if workflow.dryrun and workflow.dag is not None:
        announce()
