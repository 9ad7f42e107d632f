# Snakemake's report as a file of the DAG, and what it shows of tables and pictures.


rule report:
    input:
        tables=f"{RESULTS}/tables",
        texts=sorted(str(path) for path in Path("workflow/report").iterdir()),
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../envs/pedbench.yaml"
    resources:
        **looking("report"),
    params:
        config=lambda wildcards: json.dumps(PLAN.config, sort_keys=True),
    shell:
        "pedbench report --json {params.config:q} --out {output:q} > {log:q} 2>&1"
