"""Sentences about people for contrastive pre-training, and the words that all texts may use."""

from __future__ import annotations

import re

import numpy as np

from pedbench.world.attributes import ATTRIBUTES, COLOURED, NAMES, UNNAMED

TEMPLATES = (
    "a photo of a person {}",
    "a photo of a pedestrian {}",
    "a picture of a person {}",
    "an image of a person {}",
    "a person {}",
    "this pedestrian is a person {}",
)
# Besides captions: common context initialisations, prompt templates and carriers of learned words.
CONTEXT = (
    "a photo of a x x x x person pedestrian man woman . , the this that there is are was has have",
    "an image picture photo photograph of in on at with without and or not no wearing carrying",
    "holding contains contain showing shows containing attribute attributes class category people",
    "who which whose body head upper lower feet whole clothes clothing shoes hair street camera",
    "surveillance view from his her their its it he she they all any good bad blurry dark bright",
)

NAMED = tuple(i for i, name in enumerate(NAMES) if name not in UNNAMED)
COLOURLESS = tuple(i for i in NAMED if NAMES[i] not in COLOURED)
_MENTIONS = np.array([0.30, 0.25, 0.20, 0.15, 0.10])  # share of captions with 1 ... 5 mentions


def captions(
    labels: np.ndarray, rng: np.random.Generator, count: int = 4, coloured: int = 1
) -> list[list[str]]:
    """``count`` captions per row of ``labels (n, 32)``; only the last ``coloured`` of each row
    may name the colour of clothes.

    A caption states 1 to 5 named attributes, present ones by ``phrase`` and absent ones by
    ``negative``; what is rare among these people is stated more often.
    """
    share = labels.clip(0).mean(axis=0).clip(0.02, 0.98)
    weight = np.where(labels == 1, 1 / np.sqrt(share), 0.6 / np.sqrt(1 - share))
    weight = np.repeat(weight[:, None], count, axis=1)  # (n, count, 32)
    allowed = np.zeros((count, len(NAMES)), dtype=bool)
    allowed[:, COLOURLESS] = True
    allowed[count - coloured :, NAMED] = True
    weight = np.where(allowed & (labels[:, None] >= 0), weight, 0.0)
    # Exponential keys sample without replacement, in proportion to the weights.
    with np.errstate(divide="ignore"):
        order = np.argsort(rng.exponential(size=weight.shape) / weight, axis=-1)
    mentions = rng.choice(len(_MENTIONS), size=weight.shape[:2], p=_MENTIONS) + 1
    template = rng.integers(len(TEMPLATES), size=weight.shape[:2])
    return [
        [
            TEMPLATES[template[i, k]].format(_state(labels[i], order[i, k, : mentions[i, k]]))
            for k in range(count)
        ]
        for i in range(len(labels))
    ]


def _state(labels: np.ndarray, chosen: np.ndarray) -> str:
    return " and ".join(
        ATTRIBUTES[j].phrase if labels[j] == 1 else ATTRIBUTES[j].negative for j in chosen
    )


def words() -> list[str]:
    """Every word, sorted, of captions, phrases, names, templates and usual context texts."""
    texts = [*TEMPLATES, *CONTEXT]
    texts += [text for a in ATTRIBUTES for text in (a.name, a.phrase, a.negative)]
    return sorted(set(re.findall(r"[a-z]+|[.,]", " ".join(texts))))
