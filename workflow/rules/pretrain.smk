# The tiny CLIP from scratch. Upstream of the tables only if the config says `pretrain: true`.


rule pretrain:
    input:
        "config/pretrain.yaml",
    output:
        f"{RESULTS}/pretrain/tiny_clip.safetensors",
    log:
        f"{RESULTS}/logs/pretrain.log",
    conda:
        "../envs/pedbench.yaml"
    threads: 2
    resources:
        **looking("pretrain"),
    params:
        out=subpath(output[0], parent=True),
    shell:
        "pedbench pretrain --recipe {input:q} --out {params.out:q} > {log:q} 2>&1"
