#!/usr/bin/env bash
# Run by Snakemake in the repository's root once the environment is there.
set -euo pipefail
pip install --requirement requirements.lock
pip install --no-deps --editable .
