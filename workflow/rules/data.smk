# Inputs of all runs: the plan as a file, datasets as manifests, weights with their checksum.


rule plan:
    output:
        f"{RESULTS}/plan.json",
    log:
        f"{RESULTS}/logs/plan.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        config=json.dumps(PLAN.config, sort_keys=True),
        digest=PLAN.digest,
    shell:
        "pedbench plan --json {params.config:q} --out {output} > {log} 2>&1"


rule manifest:
    input:
        lambda wildcards: PLAN.sources[wildcards.dataset].inputs,
    output:
        f"{RESULTS}/manifests/{{dataset}}.parquet",
    log:
        f"{RESULTS}/logs/manifest/{{dataset}}.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        root=lambda wildcards: PLAN.sources[wildcards.dataset].root,
        options=lambda wildcards: json.dumps(PLAN.sources[wildcards.dataset].given),
    shell:
        "pedbench manifest {wildcards.dataset} --root {params.root:q}"
        " --options {params.options:q} --out {output} > {log} 2>&1"


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
    shell:
        "pedbench prepare --manifest {input} --size {wildcards.height} {wildcards.width}"
        " --resize {wildcards.resize} --threads {threads} --out {output.index} > {log} 2>&1"


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
        "pedbench weights {wildcards.backbone} {params.file} --out {output} > {log} 2>&1"
