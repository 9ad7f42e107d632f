# pedbench: from a config to tables. The DAG only; every rule calls the `pedbench` command.
#
#   snakemake --cores all results/tables
#
# The config is named by profiles/default (another one: --configfile config/smoke.yaml).

import atexit
import json
import os
import re
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from pedbench.addresses import shown
from pedbench.config import read_yaml
from pedbench.contracts import PedbenchError
from pedbench.devices import visible_gpus
from pedbench.estimate import describe
from pedbench.files import only_writer
from pedbench.plan import check_results_folder, config_source, lost, make_plan
from pedbench.registry import check_titles
from pedbench.resources import of_dataset, of_step, of_training
from pedbench.runs import refusal
from pedbench.tables.definitions import DEFINITIONS, read_definitions
from pedbench.tune import PRESETS, TUNED, preset_of, tuned

min_version("9.0")

try:
    source = config_source(workflow.configfiles, workflow.config_settings.config)
    for file in workflow.configfiles:
        read_yaml(file)  # refuses a key that stands twice; Snakemake keeps the last
    PLAN = make_plan(config, source)
    check_results_folder(PLAN.results)
    check_titles(sorted({e.method for e in PLAN.experiments}))
    read_definitions()  # of the tables: a mistake is known before anything runs
    if "tune" in sys.argv[1:]:
        tuned(PLAN)  # refused in one sentence; in an input function with a traceback
except PedbenchError as error:
    raise WorkflowError(str(error)) from None

RESULTS = PLAN.results
PRESET = preset_of(PLAN)  # that `tune` would make
RUN = f"{RESULTS}/runs/{{dataset}}/{{split}}/{{method}}/{{variant}}"
if "--report" in sys.argv:  # what the templates in workflow/report/ read
    from pedbench.report import texts

    config["report"] = texts(PLAN)
GPUS = len(visible_gpus())
SHARED = workflow.is_main_process and workflow.nodes is None  # one machine for all jobs
# Jobs inherit both. Only a scheduler's job that is the workflow's own may go back into its queue.
if SHARED:
    os.environ.pop("PEDBENCH_REQUEUE", None)
elif workflow.is_main_process:
    minutes = os.environ.get("PEDBENCH_MAX_MINUTES") or "1440"
    os.environ.update(PEDBENCH_REQUEUE="1", PEDBENCH_MAX_MINUTES=minutes)
# A limit that is given with --resources stands.
if SHARED and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)


report: "workflow/report/workflow.rst"


wildcard_constraints:
    dataset="|".join(PLAN.sources),
    split="|".join({e.split for e in PLAN.experiments}),
    method="|".join({e.method for e in PLAN.experiments}),
    variant="|".join({re.escape(e.variant) for e in PLAN.experiments}),
    seeds=r"\d+(-\d+)*",
    backbone="|".join(PLAN.backbones),


# On a cluster these stay on the login node: seconds, and the network.
localrules:
    all,
    plan,
    weights,
    tune,


rule all:
    input:
        f"{RESULTS}/tables",


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tune.smk"


if workflow.is_main_process:
    atexit.register(announce_dry_run)  # no hook of Snakemake's is called in a dry run


onstart:
    if workflow.is_main_process:
        claim_results()
    announce()
    # of its timers one more never ends with every finished job: snakemake issue 3804
    workflow.scheduler.job_rate_limiter = None


onsuccess:
    asked = {job.rule.name for job in workflow.dag.jobs}
    for experiment in PLAN.experiments if asked & {"train", "score"} else ():
        if reason := refusal(Path(experiment.folder)):
            print(
                f"pedbench: {experiment.key} was not run: {reason}", file=sys.stderr
            )
    if "report" in asked:
        print(f"pedbench: the report is {RESULTS}/report.html", file=sys.stderr)
    if "tables" in asked:
        print(f"pedbench: the tables are in {RESULTS}/tables", file=sys.stderr)


onerror:
    print(
        "pedbench: finished runs are kept; mend what the log says and run the same command again",
        file=sys.stderr,
    )
