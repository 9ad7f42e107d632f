"""Domains: the cameras of the pre-training world and of the two target datasets.

All knobs of difficulty are here. A range ``(low, high)`` is drawn uniformly per picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pedbench.world.attributes import NAMES

Range = tuple[float, float]


@dataclass(frozen=True)
class Camera:
    """How one camera sees. Lengths are shares of the picture's height, angles radians."""

    grey: bool = False
    inverted: bool = False  # as in white-hot thermal pictures
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # gain of red, green, blue
    backdrop: tuple[float, float, float] = (0.55, 0.55, 0.53)
    clutter: float = 0.10  # contrast of what stands behind the person
    contrast: Range = (0.85, 1.0)
    gamma: Range = (0.9, 1.1)
    side_light: Range = (-0.2, 0.2)  # brightness difference between left and right
    noise: Range = (0.003, 0.02)  # standard deviation
    blur: Range = (0.0, 0.4)  # standard deviation in pixels of a picture 64 high
    occlusion: Range = (0.0, 0.05)  # hidden share of the picture, from below or from a side
    occluded: float = 0.3  # share of pictures with an occluder
    scale: Range = (0.94, 1.04)  # height of a tall adult
    tilt: Range = (-0.04, 0.04)  # horizontal drift per height
    elevation: Range = (-0.10, 0.05)  # negative: seen from above, larger head
    back: float = 0.05  # share of people seen from behind
    side: float = 0.10  # share of people seen from the side


@dataclass(frozen=True)
class Domain:
    """A set of cameras and the attributes that a dataset of this domain annotates."""

    name: str
    cameras: tuple[Camera, ...]
    attributes: tuple[str, ...] = NAMES


def _all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in NAMES if name not in names)


PRETRAIN = Domain(
    "pretrain",
    (
        Camera(),
        Camera(cast=(1.08, 1.0, 0.9), backdrop=(0.62, 0.58, 0.52), elevation=(-0.2, 0.0)),
        Camera(cast=(0.92, 1.0, 1.08), backdrop=(0.45, 0.49, 0.52), contrast=(0.8, 0.95)),
        Camera(backdrop=(0.38, 0.40, 0.38), gamma=(1.0, 1.3)),
        Camera(backdrop=(0.70, 0.70, 0.70), gamma=(0.75, 1.0), clutter=0.15),
        Camera(cast=(0.97, 1.05, 0.95), side_light=(-0.35, 0.35), tilt=(-0.08, 0.08)),
    ),
)

_HARD: dict[str, Any] = {
    "contrast": (0.55, 1.0),
    "gamma": (0.7, 1.5),
    "noise": (0.015, 0.05),
    "blur": (0.2, 0.8),
    "occlusion": (0.05, 0.22),
    "scale": (0.84, 1.02),
    "side_light": (-0.4, 0.4),
    "clutter": 0.18,
    "back": 0.08,
}
TARGET_A = Domain(
    "synthetic_a",
    (
        Camera(**_HARD, backdrop=(0.50, 0.52, 0.50)),
        Camera(**_HARD, cast=(0.8, 0.95, 1.1), backdrop=(0.40, 0.42, 0.46), elevation=(-0.3, -0.1)),
        Camera(**_HARD, grey=True, backdrop=(0.58, 0.58, 0.58), tilt=(-0.12, 0.0)),
        Camera(**_HARD, inverted=True, backdrop=(0.55, 0.52, 0.50)),
        Camera(**_HARD, inverted=True, cast=(1.1, 1.0, 0.8), backdrop=(0.45, 0.45, 0.42)),
        Camera(**_HARD, grey=True, inverted=True, backdrop=(0.5, 0.5, 0.5), elevation=(-0.3, 0.0)),
    ),
    _all_but("beard", "red shirt", "white shirt", "blue trousers"),
)

_MILD: dict[str, Any] = {
    "contrast": (0.6, 1.0),
    "gamma": (0.8, 1.35),
    "noise": (0.01, 0.035),
    "blur": (0.1, 0.6),
    "occlusion": (0.05, 0.18),
    "scale": (0.88, 1.02),
    "clutter": 0.14,
    "back": 0.08,
}
TARGET_B = Domain(
    "synthetic_b",
    (
        Camera(**_MILD, backdrop=(0.56, 0.54, 0.50)),
        Camera(**_MILD, cast=(1.15, 1.0, 0.8), backdrop=(0.48, 0.44, 0.40)),
        Camera(**_MILD, cast=(0.85, 1.0, 1.1), backdrop=(0.66, 0.68, 0.70), elevation=(-0.3, -0.1)),
        Camera(**_MILD, grey=True, backdrop=(0.42, 0.42, 0.42)),
        Camera(**_MILD, grey=True, backdrop=(0.62, 0.62, 0.62), tilt=(0.0, 0.12)),
    ),
    _all_but(
        *("bald", "black hair", "stripes", "trousers", "black trousers", "box", "child", "elderly")
    ),
)

_ANY_SIDE: dict[str, Any] = {**_HARD, "back": 0.3, "side": 0.25}  # as people pass by
TARGET_REID = Domain(
    "synthetic_reid",
    (
        Camera(**_ANY_SIDE, backdrop=(0.56, 0.54, 0.50)),
        Camera(**_ANY_SIDE, cast=(1.2, 1.0, 0.75), backdrop=(0.48, 0.44, 0.40)),
        Camera(
            **_ANY_SIDE, cast=(0.8, 1.0, 1.15), backdrop=(0.66, 0.68, 0.7), elevation=(-0.3, -0.1)
        ),
        Camera(**_ANY_SIDE, cast=(0.85, 1.12, 0.85), backdrop=(0.35, 0.38, 0.34)),
        Camera(**_ANY_SIDE, grey=True, backdrop=(0.42, 0.42, 0.42), tilt=(0.0, 0.12)),
        Camera(**_ANY_SIDE, inverted=True, backdrop=(0.55, 0.52, 0.50)),
    ),
)
TARGET_REID_B = Domain("synthetic_reid_b", TARGET_B.cameras)
