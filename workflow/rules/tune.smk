# Equal tuning budgets: one job per method or variant of the plan, then the preset of all of them.
# A section is `method` or `method/variant`.


rule tune:
    input:
        multiext(f"{RESULTS}/tuned/{PRESET}", ".json", ".yaml"),


rule preset:
    input:
        plan=f"{RESULTS}/plan.json",
        records=records_of_tuning,
    output:
        json=f"{RESULTS}/tuned/{PRESET}.json",
        yaml=f"{RESULTS}/tuned/{PRESET}.yaml",
    log:
        f"{RESULTS}/logs/preset.log",
    conda:
        "../envs/pedbench.yaml"
    params:
        trials=PLAN.config.get("trials"),
    shell:
        "pedbench preset --plan {input.plan} --trials {params.trials} --out {output.json}"
        " {input.records} > {log} 2>&1"


rule trials:
    input:
        config=lambda wildcards: f"{to_tune()[wildcards.section].folder}/config.json",
        manifest=[source.manifest for source in PLAN.sources.values()],
        prepared=lambda wildcards: ancient(PLAN.prepared(to_tune()[wildcards.section])),
        weights=lambda wildcards: PLAN.weights[to_tune()[wildcards.section].backbone],
        method=lambda wildcards: f"methods/{to_tune()[wildcards.section].method}.py",
    output:
        f"{RESULTS}/tuned/{{section}}.json",
    log:
        f"{RESULTS}/logs/tune/{{section}}.log",
    wildcard_constraints:
        section=f"(?!{PRESET}).+",
    conda:
        "../envs/pedbench.yaml"
    threads: PLAN.config["threads_per_job"]
    resources:
        gpu=min(1, GPUS),
    params:
        trials=PLAN.config.get("trials"),
        seeds=PLAN.config["seeds"],
        prepared=lambda wildcards: PLAN.store(to_tune()[wildcards.section]),
        threads=PLAN.config["threads_per_job"],
    shell:
        "pedbench tune --settings {input.config} --manifest {input.manifest}"
        " --prepared {params.prepared} --weights {input.weights} --trials {params.trials} --seeds {params.seeds}"
        " --threads {params.threads} --out {output} > {log} 2>&1"
