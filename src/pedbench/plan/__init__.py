"""From a config to the runs it asks for: experiments, seeds, job batches, sweeps, comparison.

Everything is checked here, before any job starts, and every message names the key to mend.
``model`` is what comes out, ``make`` how; ``kept`` compares it with the results folder.
"""

from pedbench.plan.checks import check_results_folder
from pedbench.plan.data import root_of
from pedbench.plan.entries import task_of
from pedbench.plan.kept import lost, runs_of
from pedbench.plan.make import config_source, make_plan, write_plan
from pedbench.plan.model import PER_SUBSET, PROTOCOL_OF, TASKS, Batch, Comparison, Experiment, Plan

__all__ = [
    "PER_SUBSET",
    "PROTOCOL_OF",
    "TASKS",
    "Batch",
    "Comparison",
    "Experiment",
    "Plan",
    "check_results_folder",
    "config_source",
    "lost",
    "make_plan",
    "root_of",
    "runs_of",
    "task_of",
    "write_plan",
]
