# Inputs of all runs: the plan as a file, datasets as manifests, weights with their checksum.


rule plan:
    output:
        f"{RESULTS}/plan.json",
    log:
        f"{RESULTS}/logs/plan.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        config=lambda wildcards: json.dumps(PLAN.config, sort_keys=True),
        digest=PLAN.digest,
    shell:
        "pedbench plan --json {params.config:q} --out {output:q} > {log:q} 2>&1"


rule manifest:
    input:
        lambda wildcards: PLAN.sources[wildcards.dataset].inputs,
    output:
        f"{RESULTS}/manifests/{{dataset}}.parquet",
    log:
        f"{RESULTS}/logs/manifest/{{dataset}}.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **reading("manifest"),
    params:
        root=lambda wildcards: PLAN.sources[wildcards.dataset].root,
        options=lambda wildcards: json.dumps(PLAN.sources[wildcards.dataset].given),
    shell:
        "pedbench manifest {wildcards.dataset:q} --root {params.root:q}"
        " --options {params.options:q} --out {output:q} > {log:q} 2>&1"


rule prepare:
    input:
        f"{RESULTS}/manifests/{{dataset}}.parquet",
    output:
        index=f"{RESULTS}/prepared/{{dataset}}/{{resize}}_{{height}}x{{width}}.json",
        data=f"{RESULTS}/prepared/{{dataset}}/{{resize}}_{{height}}x{{width}}.bin",
        done=touch(
            f"{RESULTS}/manifests/{{dataset}}/{{resize}}_{{height}}x{{width}}.done"
        ),
    log:
        f"{RESULTS}/logs/prepare/{{dataset}}/{{resize}}_{{height}}x{{width}}.log",
    wildcard_constraints:
        resize="[a-z_]+",
        height=r"\d+",
        width=r"\d+",
    conda:
        "../envs/pedbench.yaml"
    threads: 8
    resources:
        **reading("prepare"),
    shell:
        "pedbench prepare --manifest {input:q} --size {wildcards.height:q} {wildcards.width:q}"
        " --resize {wildcards.resize:q} --threads {threads} --out {output.index:q} > {log:q} 2>&1"


rule weights:
    input:
        lambda wildcards: PLAN.weights_inputs(wildcards.backbone),
    output:
        f"{RESULTS}/weights/{{backbone}}.json",
    log:
        f"{RESULTS}/logs/weights/{{backbone}}.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        file=option_of_weights,
    shell:
        "pedbench weights {wildcards.backbone:q} {params.file:q} --out {output:q} > {log:q} 2>&1"
