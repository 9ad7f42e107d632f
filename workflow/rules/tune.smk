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
        "pedbench preset --plan {input.plan:q} --trials {params.trials:q} --out {output.json:q}"
        " {input.records:q} > {log:q} 2>&1"


rule trials:
    input:
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
        **training("trials"),
        gpu=min(1, GPUS),
    params:
        settings=lambda wildcards: f"{to_tune()[wildcards.section].folder}/config.json",
        spec=lambda wildcards: json.dumps(
            to_tune()[wildcards.section].spec, sort_keys=True
        ),
        trials=PLAN.config.get("trials"),
        seeds=PLAN.config["seeds"],
        prepared=lambda wildcards: PLAN.store(to_tune()[wildcards.section]),
        threads=PLAN.config["threads_per_job"],
    shell:
        "pedbench tune --settings {params.settings:q} --spec {params.spec:q} --manifest {input.manifest:q}"
        " --prepared {params.prepared:q} --weights {input.weights:q} --trials {params.trials:q} --seeds {params.seeds:q}"
        " --threads {params.threads:q} --out {output:q} > {log:q} 2>&1"
