# make tables | report | ui | smoke | test | test-system | test-slurm | install | pretrain | tune | clean
PYTHON ?= python3
CORES ?= all
VENV := .venv
READY := $(VENV)/ready
SLURM := slurm-wlm munge
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: tables report ui smoke pretrain tune install test test-system test-slurm check clean

tables: install
	snakemake --cores $(CORES) results/tables

report: install
	snakemake --cores $(CORES) results/report.html

ui: install
	pedbench ui

smoke: install
	snakemake --cores $(CORES) results/smoke/tables --configfile config/smoke.yaml

pretrain: install
	snakemake --cores $(CORES) pretrain

tune: install
	snakemake --cores $(CORES) tune --configfile config/tune.yaml
	snakemake --cores $(CORES) tune --configfile config/tune_reid.yaml

install: $(READY)

$(READY): requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Formatting, types, workflow, then the tests, the miniature benchmark among them.
check: install
	ruff check
	ruff format --check
	pyright
	snakefmt --check Snakefile workflow
	snakemake --lint

test: check
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not system"

# Long checks; tools that are absent skip by name, with PEDBENCH_REQUIRE_TOOLS=1 they fail.
test-system: install
	OMP_NUM_THREADS=1 pytest -m system

# Of these, the benchmark on a real Slurm, which is started for it on this machine (root, Debian).
test-slurm: install
	command -v slurmctld > /dev/null || { apt-get -qq update && apt-get -qq install --yes --no-install-recommends $(SLURM) > /dev/null; }
	OMP_NUM_THREADS=1 PEDBENCH_REQUIRE_TOOLS=1 pytest -m system tests/system/test_slurm.py

clean:
	rm -rf results .snakemake
