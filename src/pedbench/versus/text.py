"""A comparison for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pedbench.files import printable
from pedbench.results import Run, headline
from pedbench.versus.compare import Row, Versus

UNITS = {"image": "images", "identity": "persons"}
TESTED = {"par": "images", "reid": "queries"}
ABSENT = "–"


def as_text(found: Versus, by_seed: bool = False) -> str:
    """For a terminal: both sides, the differences, a sentence on them, what to know beside it."""
    a, b, tests = found.a, found.b, found.tests
    head = ["place", "metric", "A", "B", "A - B", f"{1 - found.alpha:.0%} interval", "p"]
    rows = [[*head, "p (Holm)", "seeds", "n"]]
    rows += [
        [
            *(
                t["place"],
                t["metric"],
                number(t["a"]),
                number(t["b"]),
                number(t["difference"], "+"),
            ),
            f"[{number(t['ci_low'], '+')}, {number(t['ci_high'], '+')}]",
            *(probability(t["p"]), probability(t["p_holm"]), str(t["seeds"])),
            f"{t['n']} {UNITS[t['unit']]}",
        ]
        for t in tests
    ]
    lines = [["place", "metric", "seed A", "seed B", "A", "B", "A - B"]]
    lines += [
        [
            *(str(s[key]) for key in ("place", "metric", "seed_a", "seed_b")),
            *(number(s["a"]), number(s["b"]), number(s["difference"], "+")),
        ]
        for s in found.seeds
    ]
    places = dict.fromkeys(test["place"] for test in tests)
    protocols = dict.fromkeys(meaning(a.runs[place][0]) for place in places)
    tested = dict.fromkeys(TESTED[a.runs[place][0].task] for place in places)
    families = dict.fromkeys(str(test["family"]) for test in tests)
    explained = [
        f"In percent, on test {' and '.join(tested)}, mean over paired seeds. "
        f"{' '.join(protocols)}",
        f"p and interval: paired bootstrap of {found.resamples} resamples, and the variance "
        "between seeds.",
        f"p (Holm): corrected for the {' or '.join(families)} metrics of a place; below "
        f"{found.alpha:g} it is called a difference. More in docs/statistics.md.",
    ]
    if any(t["seeds"] == 1 for t in tests):
        explained.append("One seed: the test is about these trained weights, not the methods.")
    parts = [
        aligned([["A", a.name, str(a.root)], ["B", b.name, str(b.root)]], left=3),
        aligned(rows, left=2),
        "\n".join(in_words(found)),
        "\n".join(found.notes),
        aligned(lines, left=2) if by_seed else "",
        "\n".join(explained),
    ]
    return printable("\n\n".join(part for part in parts if part) + "\n")


def meaning(run: Run) -> str:
    """Under which protocol scores are what they are."""
    if run.task == "reid":
        return f"Protocol {run.protocol_label}: queries against the gallery."
    return (
        f"Protocol {run.protocol_label}, threshold {run.protocol['threshold']}, F1 is "
        f"{headline(run.protocol)}."
    )


def in_words(found: Versus) -> list[str]:
    """What is above what, and where nothing can be said."""
    a, b = found.a.name, found.b.name
    starts = {
        "above": f"{a} is above {b}",
        "below": f"{a} is below {b}",
        "open": "No significant difference",
        "same": f"{a} and {b} are the same",
    }
    sentences = []
    for verdict, start in starts.items():
        metrics: dict[str, list[str]] = {}
        for test in found.tests:
            if verdict_of(test) == verdict:
                metrics.setdefault(test["place"], []).append(test["metric"])
        places: dict[str, list[str]] = {}
        for place, of_place in metrics.items():
            places.setdefault(" and ".join(of_place), []).append(place)
        if places:
            where = [f"in {names} on {', '.join(on)}" for names, on in places.items()]
            sentences.append(f"{start} {'; '.join(where)}.")
    return sentences


def verdict_of(test: Row) -> str:
    if test["difference"] == test["ci_low"] == test["ci_high"] == 0:
        return "same"
    if not test["significant"]:
        return "open"
    return "above" if test["difference"] > 0 else "below"


def number(value: float, sign: str = "") -> str:
    return ABSENT if np.isnan(value) else f"{value:{sign}.2f}"


def probability(p: float) -> str:
    return ABSENT if np.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, the first ``left`` of them flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<"] * left + [">"] * (len(widths) - left)
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return "\n".join(form.format(*row).rstrip() for row in rows)
