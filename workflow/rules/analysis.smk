# From all runs to tables: one job each. Only cost, selection and pictures import torch.


rule score:
    input:
        plan=f"{RESULTS}/plan.json",
        manifests=[source.manifest for source in PLAN.sources.values()],
        runs=markers_of_runs,
    output:
        f"{RESULTS}/scored.json",
    log:
        f"{RESULTS}/logs/score.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("score"),
    shell:
        "pedbench score --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule collect:
    input:
        plan=f"{RESULTS}/plan.json",
        scores=f"{RESULTS}/scored.json",
    output:
        f"{RESULTS}/long.parquet",
    log:
        f"{RESULTS}/logs/collect.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("collect"),
    shell:
        "pedbench collect --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule stats:
    input:
        plan=f"{RESULTS}/plan.json",
        long=f"{RESULTS}/long.parquet",
    output:
        directory(f"{RESULTS}/stats"),
    log:
        f"{RESULTS}/logs/stats.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("stats"),
    shell:
        "pedbench stats --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule cost:
    input:
        plan=f"{RESULTS}/plan.json",
        manifests=[source.manifest for source in PLAN.sources.values()],
        weights=all_weights,
        prepared=all_prepared(e for e in PLAN.experiments if e.in_tables),
        runs=markers_of_runs,
    output:
        f"{RESULTS}/cost.csv",
    log:
        f"{RESULTS}/logs/cost.log",
    conda:
        "../envs/pedbench.yaml"
    threads: cores_of_cost()
    resources:
        **looking("cost", "gpu_mem_mb"),
        gpu=min(1, GPUS),
    params:
        backbones=f"{RESULTS}/weights",
        prepared=f"{RESULTS}/prepared",
        threads=PLAN.config["threads_per_job"],
    shell:
        "pedbench cost --plan {input.plan:q} --backbones {params.backbones:q}"
        " --prepared {params.prepared:q} --threads {params.threads:q} --out {output:q} > {log:q} 2>&1"


rule selection:
    input:
        plan=f"{RESULTS}/plan.json",
        long=f"{RESULTS}/long.parquet",  # which therefore cannot hold what is audited
        weights=all_weights,
        prepared=all_prepared(e for e in PLAN.experiments if e.keep_epochs),
        runs=[b.marker for b in PLAN.batches if b.experiment.keep_epochs],
    output:
        f"{RESULTS}/selection.csv",
    log:
        f"{RESULTS}/logs/selection.log",
    conda:
        "../envs/pedbench.yaml"
    threads: PLAN.config["threads_per_job"]
    resources:
        **looking("selection", "gpu_mem_mb"),
        gpu=min(1, GPUS),
    params:
        backbones=f"{RESULTS}/weights",
        prepared=f"{RESULTS}/prepared",
        threads=PLAN.config["threads_per_job"],
    shell:
        "pedbench selection --plan {input.plan:q} --long {input.long:q} --backbones {params.backbones:q}"
        " --prepared {params.prepared:q} --threads {params.threads:q} --out {output:q} > {log:q} 2>&1"


rule figures:
    input:
        plan=f"{RESULTS}/plan.json",
        long=f"{RESULTS}/long.parquet",
        cost=f"{RESULTS}/cost.csv",
        selection=f"{RESULTS}/selection.csv",
        stats=f"{RESULTS}/stats",
        published=published_numbers,
    output:
        pictures_for_report(f"{RESULTS}/figures"),
    log:
        f"{RESULTS}/logs/figures.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("figures"),
    shell:
        "pedbench figures --plan {input.plan:q} --long {input.long:q} --stats {input.stats:q}"
        " --cost {input.cost:q} --selection {input.selection:q}"
        " --out {output:q} > {log:q} 2>&1"


rule pictures:
    input:
        plan=f"{RESULTS}/plan.json",
        scores=f"{RESULTS}/scored.json",
        long=f"{RESULTS}/long.parquet",
        weights=all_weights,
    output:
        pictures_for_report(f"{RESULTS}/pictures"),
    log:
        f"{RESULTS}/logs/pictures.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("pictures", "gpu_mem_mb"),
        gpu=min(1, GPUS),
    params:
        backbones=f"{RESULTS}/weights",
    shell:
        "pedbench pictures --plan {input.plan:q} --long {input.long:q} --backbones {params.backbones:q}"
        " --out {output:q} > {log:q} 2>&1"


rule track:
    input:
        plan=f"{RESULTS}/plan.json",
        long=f"{RESULTS}/long.parquet",
    output:
        f"{RESULTS}/mlflow.json",
    log:
        f"{RESULTS}/logs/track.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("track"),
    params:
        store=shown(os.environ.get("MLFLOW_TRACKING_URI", "")),  # Snakemake keeps it
    shell:
        "pedbench track --plan {input.plan:q} --out {output:q} > {log:q} 2>&1"


rule tables:
    input:
        plan=f"{RESULTS}/plan.json",
        manifests=[source.manifest for source in PLAN.sources.values()],
        long=f"{RESULTS}/long.parquet",
        stats=f"{RESULTS}/stats",
        cost=f"{RESULTS}/cost.csv",
        selection=f"{RESULTS}/selection.csv",
        figures=f"{RESULTS}/figures",
        pictures=f"{RESULTS}/pictures",
        track=f"{RESULTS}/mlflow.json",
        texts=inputs_of_tables,
        published=published_numbers,
    output:
        tables_for_report(f"{RESULTS}/tables"),
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("tables"),
    shell:
        "pedbench tables --plan {input.plan:q} --long {input.long:q} --stats {input.stats:q}"
        " --cost {input.cost:q} --selection {input.selection:q}"
        " --figures {input.figures:q} {input.pictures:q} --out {output:q} > {log:q} 2>&1"
