"""How often the tests of pedbench.stats tell equal methods apart, and different ones.

    python benchmarks/calibration.py    # the figures of docs/statistics.md, 10 minutes

Methods of one distribution are simulated again and again; a test at 5 % should find a difference
in at most about 5 % of the repetitions. tests/unit/test_calibration.py runs a part of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.stats import norm
from scipy.stats import t as student

from pedbench.evaluation import Recognition
from pedbench.stats import Sample, ranks
from pedbench.stats.bootstrap import Floats, difference, draw, exceeds, units_of
from pedbench.stats.permutation import OfSums, permutation
from pedbench.tasks import par, reid

RATIOS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])  # positives of each attribute
Found = dict[str, float]  # p-value of each test


def predictions(
    rng: Generator, labels: np.ndarray, hard: Floats, skill: float, seed_sd: float, seeds: int
) -> dict[int, Floats]:
    """`par.image_terms` of every seed of a new method. ``hard (M, A)`` is what makes an image
    difficult for all; ``seed_sd`` is the effect of a seed on the logits of an attribute. One seed
    is a method that trains nothing: its scores are as good, without the luck of a seed."""
    own, terms = rng.normal(size=labels.shape), {}
    for seed in range(seeds):
        luck = rng.normal(size=labels.shape[1] if seeds > 1 else labels.shape)
        noise = rng.normal(size=labels.shape) + 2 * seed_sd * luck
        logits = skill * (2 * labels - 1) + hard + (own + noise) / 2
        terms[seed] = par.image_terms(logits > 0, labels)
    return terms


def within_place(
    rng: Generator,
    gain: float = 0.0,
    seed_sd: float = 0.2,
    seeds: tuple[int, int] = (3, 3),
    images: int = 300,
    resamples: int = 400,
) -> Found:
    """Two methods on one test subset, mA; ``gain`` is the relative skill that b has more."""
    labels = (rng.random((images, len(RATIOS))) < RATIOS).astype(int)
    hard, units = rng.normal(size=labels.shape), units_of(np.arange(images), "image")
    skills = {("a", ""): 1.0, ("b", ""): 1 + gain}
    terms = {
        method: predictions(rng, labels, hard, skill, seed_sd, count)
        for (method, skill), count in zip(skills.items(), seeds, strict=True)
    }
    return p_values(terms, Recognition.of_sums, "mA", units, resamples, rng)


def over_queries(
    rng: Generator,
    gain: float = 0.0,
    seed_sd: float = 0.2,
    persons: int = 60,
    queries: int = 4,
    resamples: int = 400,
) -> Found:
    """Two methods of three seeds on the queries of one gallery, mAP. Queries of a person are alike,
    and a method suits some persons; ``gain`` is what b adds to the AP's logit."""
    who = np.repeat(np.arange(persons), queries)
    hard = rng.normal(size=persons)[who] + rng.normal(size=len(who))
    terms: dict[tuple[str, str], dict[int, Floats]] = {}
    for name, skill in (("a", 0.0), ("b", gain)):
        own = skill + hard + rng.normal(size=persons)[who] / 2
        terms[name, ""] = {}
        for seed in range(3):
            luck = rng.normal(size=len(who)) / 2 + seed_sd * rng.normal()
            ap = 1 / (1 + np.exp(-own - luck))
            first = np.maximum(1, np.round(1 / ap)).astype(np.int32)
            ranked = reid.Rankings(first, first, ap, ap, np.empty((len(who), 0), np.int32))
            terms[name, ""][seed] = reid.query_terms(ranked)
    return p_values(terms, reid.of_sums, "mAP", units_of(who, "identity"), resamples, rng)


def p_values(
    terms: dict[tuple[str, str], dict[int, Floats]],
    of_sums: OfSums,
    metric: str,
    units: np.ndarray,
    resamples: int,
    rng: Generator,
) -> Found:
    """Of method a against b."""
    weights = np.concatenate(list(draw(units, resamples, rng)))
    a, b = (sample(of, of_sums, metric, weights) for of in terms.values())
    single = [method for method, of in terms.items() if len(of) == 1]
    test = difference(a, b)
    swapped = permutation(terms, of_sums, ("a", ""), units, resamples, rng, single)
    return {
        "bootstrap, images and seeds": float(test.p),
        "bootstrap, images alone": float(2 * norm.sf(abs(test.value) / test.se_images)),
        "permutation": swapped["b", ""][metric],
    }


def sample(terms: dict[int, Floats], of_sums: OfSums, metric: str, weights: Floats) -> Sample:
    values = {seed: of_sums(weights @ t)[metric] for seed, t in terms.items()}
    value, drawn = ({s: v[part] for s, v in values.items()} for part in (0, slice(1, None)))
    return Sample(value, drawn, trained=len(values) > 1)


def over_blocks(
    rng: Generator,
    gain: float = 0.0,
    place_sd: float = 0.0,
    methods: int = 6,
    places: int = 3,
    seeds: int = 3,
) -> Found:
    """Methods over places and seeds. Scores are normal with the noise of a seed as unit;
    ``place_sd`` is how much methods differ from place to place around the same mean, ``gain``
    what the last method has more."""
    own = place_sd * rng.normal(size=(places, 1, methods))
    scores = (
        own + rng.normal(size=(places, seeds, methods)) + gain * (np.arange(methods) == methods - 1)
    )
    index = pd.MultiIndex.from_product([range(places), range(seeds)], names=["place", "seed"])
    columns = pd.MultiIndex.from_tuples([(str(m), "") for m in range(methods)])
    table = pd.DataFrame(scores.reshape(-1, methods), index, columns)
    pair = ranks.wilcoxon(table, (str(methods - 1), ""), ("0", ""))
    by_place, pairs = ranks.by_place(table), ranks.nemenyi(table).to_numpy()
    return {
        "Wilcoxon": pair["p"],
        "Wilcoxon, places": pair["p_places"],
        "Friedman": ranks.friedman(table)[1],
        "Friedman, places": ranks.friedman(by_place)[1],
        "Nemenyi, any pair": pairs.min(),
        "Nemenyi, first and last": pairs[0, -1],
    }


SEED_EFFECTS: dict[str, Callable[[Generator, tuple[int, int]], Floats]] = {  # mean 0, deviation 1
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: np.sqrt(12) * (rng.random(shape) - 0.5),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "two modes": lambda rng, shape: rng.choice([-1.0, 1.0], shape),
}


def satterthwaite(size: Floats, images: Floats, between: Floats, seeds: int) -> Floats:
    """What `exceeds` took the place of: *t* with Satterthwaite's degrees of freedom."""
    variance = images**2 + between**2
    return 2 * student.sf(size / np.sqrt(variance), (seeds - 1) * variance**2 / between**4)


def levels(
    ratio: float,
    seeds: int,
    alphas: list[float],
    draws: int = 100_000,
    effects: str = "normal",
    test: Callable[..., Floats] = exceeds,
) -> list[float]:
    """How often ``test`` finds p < each of ``alphas`` between equal methods, where the standard
    error over the images is known and that over the seeds ``ratio`` times as large."""
    rng = np.random.default_rng(0)
    of_seeds = ratio * np.sqrt(seeds) * SEED_EFFECTS[effects](rng, (draws, seeds))
    difference = np.abs(rng.normal(size=draws) + of_seeds.mean(axis=1))
    between = of_seeds.std(axis=1, ddof=1) / np.sqrt(seeds)
    p = test(difference, np.ones(draws), between, seeds)
    return [float((p < alpha).mean()) for alpha in alphas]


def rates(
    simulate: Callable[..., Found], repetitions: int, seed: int, alpha: float = 0.05, **options
) -> Found:
    """How often each test of ``simulate`` found p < ``alpha``."""
    rng = np.random.default_rng(seed)
    found = pd.DataFrame([simulate(rng, **options) for _ in range(repetitions)])
    return (found < alpha).mean().to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=800)
    repetitions = parser.parse_args().repetitions
    alphas = [0.05, 0.05 / 22]
    table = {
        (seeds, ratio): np.divide(levels(ratio, seeds, alphas), alphas)
        for seeds in (3, 5, 10)
        for ratio in (0.2, 0.5, 1.0, 2.0, 5.0)
    }
    print("Seeds, se_seeds / se_images: level as a multiple of 0.05 and 0.05 / 22\n")
    print(pd.DataFrame(table).T.round(1).to_string(header=False), flush=True)
    others: dict[str, dict[str, Any]] = {name: {"effects": name} for name in SEED_EFFECTS}
    others["normal, Satterthwaite"] = {"test": satterthwaite}
    table = {name: np.divide(levels(5, 3, alphas, **o), alphas) for name, o in others.items()}
    print("\nThe same of 3 seeds and a ratio of 5, by the distribution of their effects\n")
    print(pd.DataFrame(table).T.round(1).to_string(header=False), flush=True)
    rows = {}
    for seed_sd in (0.0, 0.2, 0.5, 1.0):
        rows[f"equal, effect of a seed {seed_sd:g}"] = {"seed_sd": seed_sd}
    rows["equal, one side trains nothing"] = {"seeds": (3, 1)}
    rows |= {f"skill + {100 * gain:g} %": {"gain": gain} for gain in (0.1, 0.2, 0.3)}
    show("Within a place", within_place, rows, repetitions)
    rows = {"equal, effect of a seed 0": {"seed_sd": 0.0}, "equal, effect of a seed 0.2": {}}
    show("Queries of 60 persons, mAP", over_queries, rows, repetitions)
    rows = {"equal": {}, "equal on average, differing by place": {"place_sd": 1.0}}
    rows |= {f"last one {gain:g} seed deviations above": {"gain": gain} for gain in (1.0, 2.0)}
    show("Over 3 places x 3 seeds, 6 methods", over_blocks, rows, repetitions)


def show(title: str, simulate: Callable[..., Found], rows: dict[str, dict], repetitions: int):
    table = {name: rates(simulate, repetitions, 0, **options) for name, options in rows.items()}
    print(f"\n{title}, share of p < 0.05 in percent\n")
    print((100 * pd.DataFrame(table).T).round(1).to_string(), flush=True)


if __name__ == "__main__":
    main()
