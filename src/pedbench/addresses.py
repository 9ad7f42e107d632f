"""Addresses that may hold a login: how they are shown, and texts of others that may repeat them."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN")  # of the environment
LOGIN = re.compile(r"(?<=://)([^/]*|(?!/).*)@")  # the second: a password that is not quoted


def shown(address: str) -> str:
    """``address`` without login, query and fragment, which may hold a password."""
    return re.split(r"[?#]", LOGIN.sub("", address))[0]


def without_secrets(text: str, address: str) -> str:
    """``text`` without what `shown` leaves out of ``address``, and without the secrets of the
    environment, each as written and as meant."""
    login = LOGIN.search(address)
    parts = [login[0], login[0][:-1].partition(":")[2]] if login else []
    query = LOGIN.sub("", address).partition("?")[2]
    parts += [query, *(pair.partition("=")[2] for pair in query.split("&"))]
    parts += [os.environ.get(name, "") for name in SECRETS]
    for part in sorted({*parts, *map(unquote, parts)} - {""}, key=len, reverse=True):
        text = text.replace(part, "***")
    return text
