# One job fits and predicts the seeds of one dataset, split, method and variant. It declares only
# its marker: Snakemake deletes the declared outputs of a failed job, and finished seeds are kept.


rule train:
    input:
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
    threads: PLAN.config["threads_per_job"] * max(1, gpus_of("train"))  # a process for each GPU
    resources:
        **training("train"),
        gpu=min(1, GPUS),
    params:
        settings=f"{RUN}/config.json",
        spec=lambda wildcards: json.dumps(experiment_of(wildcards).spec, sort_keys=True),
        seeds=lambda wildcards: wildcards.seeds.split("-"),
        threads=PLAN.config["threads_per_job"],
        prepared=lambda wildcards: PLAN.store(experiment_of(wildcards)),
        keep=lambda wildcards: keep_epochs(experiment_of(wildcards)),
    shell:
        "pedbench train --settings {params.settings:q} --spec {params.spec:q} --manifest {input.manifest:q}"
        " --prepared {params.prepared:q} --weights {input.weights:q} --seeds {params.seeds:q}"
        " --threads {params.threads:q} --processes {resources.gpu:q} {params.keep:q} --out {output:q}"
        " > {log:q} 2>&1"
