"""Attributes put into words."""

from __future__ import annotations

from collections.abc import Sequence

from pedbench.contracts import Attribute, PedbenchError


def attribute_sentences(
    attributes: Sequence[Attribute], template: str, absence: bool = True
) -> list[str]:
    """The ``A`` sentences of presence, then, with ``absence``, the ``A`` of absence.

    Raises PedbenchError for a template without {}.
    """
    if template.count("{}") != 1:
        raise PedbenchError(f"template '{template}' must contain {{}} once, for the attribute")
    phrases = [a.phrase for a in attributes]
    phrases += [a.negative for a in attributes] if absence else []
    return [template.format(phrase) for phrase in phrases]
