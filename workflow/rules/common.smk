# Functions that the rules call while the DAG is built.


def markers_of_runs(wildcards):
    """All training jobs. What was deleted since it was made is forced to come back: of itself
    Snakemake asks for no output whose successors exist."""
    if workflow.is_main_process:
        workflow.dag.forcefiles |= lost(PLAN)
    return [batch.marker for batch in PLAN.batches]


def to_tune():
    """Section of the preset -> the experiment that is tuned."""
    try:
        return tuned(PLAN)
    except PedbenchError as error:
        raise WorkflowError(str(error)) from None
