# One job fits and predicts the seeds of one dataset, split, method and variant. It declares only
# its marker: Snakemake deletes the declared outputs of a failed job, and finished seeds are kept.


rule resolve:
    output:
        f"{RUN}/config.json",
    log:
        f"{RESULTS}/logs/resolve/{{dataset}}/{{split}}/{{method}}/{{variant}}.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        spec=lambda wildcards: json.dumps(
            PLAN.experiment(**wildcards).spec, sort_keys=True
        ),
    shell:
        "pedbench resolve --spec {params.spec:q} --out {output} > {log} 2>&1"


rule train:
    input:
        config=f"{RUN}/config.json",
        manifest=f"{RESULTS}/manifests/{{dataset}}.parquet",
        prepared=prepared_of,
        weights=weights_of,
        method="methods/{method}.py",
    output:
        f"{RUN}/seeds{{seeds}}.done.json",
    log:
        f"{RESULTS}/logs/train/{{dataset}}/{{split}}/{{method}}/{{variant}}/{{seeds}}.log",
    conda:
        "../envs/pedbench.yaml"
    threads: PLAN.config["threads_per_job"]
    resources:
        gpu=min(1, GPUS),
    params:
        seeds=lambda wildcards: wildcards.seeds.replace("-", " "),
        threads=PLAN.config["threads_per_job"],
        prepared=lambda wildcards: PLAN.store(
            PLAN.experiment(
                wildcards.dataset, wildcards.split, wildcards.method, wildcards.variant
            )
        ),
        keep=lambda wildcards: keep_epochs(
            wildcards.dataset, wildcards.split, wildcards.method, wildcards.variant
        ),
    shell:
        "pedbench train --settings {input.config} --manifest {input.manifest}"
        " --prepared {params.prepared} --weights {input.weights} --seeds {params.seeds}"
        " --threads {params.threads} {params.keep} --out {output} > {log} 2>&1"
