"""The tables of ``results/tables/``: what each shows is in ``config/tables.yaml``."""
