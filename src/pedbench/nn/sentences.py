"""Attributes put into words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pedbench.contracts import Attribute, PedbenchError

# parts of names in annotation files that are no words: body parts, known misspellings, joints
_MEANING: dict[str, str] = {
    **{"hs": "head", "ub": "upper", "lb": "lower", "up": "upper", "down": "lower"},
    **{"attach": "attachment", "Carryby": "carry by", "Femal": "female", "Pusing": "pushing"},
    **{"Tshiirt": "tshirt", "&": "and", "-": "to"},
}
_PART = re.compile(r"(?:up|down)(?=[a-z])(?!per)|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|&|(?<=\d)-(?=\d)")


def attribute_sentences(
    attributes: Sequence[Attribute], template: str, absence: bool = True
) -> list[str]:
    """The ``A`` sentences of presence, then, with ``absence``, the ``A`` of absence. In
    ``template`` ``{}`` stands for the attribute's phrase, ``{name}`` for its bare name.

    Raises PedbenchError for a template with neither or several of them.
    """
    if template.count("{}") + template.count("{name}") != 1:
        raise PedbenchError(
            f"template '{template}' must contain {{}} once, for the attribute's phrase, or "
            "{name}, for its bare name"
        )
    present, absent = [a.phrase for a in attributes], [a.negative for a in attributes]
    if "{name}" in template:
        present = [bare_name(a.name) for a in attributes]
        absent = [f"no {name}" for name in present]
    texts = [*present, *absent] if absence else present
    return [template.format(text, name=text) for text in texts]


def bare_name(name: str) -> str:
    """The words in an attribute's name: "upper body v neck" of upperBodyVNeck, "head bald head" of
    hs-BaldHead, "age 18 to 60" of Age18-60."""
    parts: list[str] = _PART.findall(name)
    return " ".join(_MEANING.get(part, part.lower()) for part in parts)
