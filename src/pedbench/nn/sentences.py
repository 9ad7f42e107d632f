"""Attributes put into words."""

from __future__ import annotations

from collections.abc import Sequence

from pedbench.contracts import Attribute, PedbenchError


def attribute_pairs(attributes: Sequence[Attribute], template: str) -> tuple[list[str], list[str]]:
    """(presence, absence) sentences, ``A`` each. Raises PedbenchError for a template without {}."""
    if template.count("{}") != 1:
        raise PedbenchError(f"template '{template}' must contain {{}} once, for the attribute")
    return (
        [template.format(a.phrase) for a in attributes],
        [template.format(a.negative) for a in attributes],
    )
