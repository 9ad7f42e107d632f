"""Pictures of people, drawn from soft-edged ellipses and tapered boxes.

Body coordinates: y runs from 0 (top of the head) to 1 (soles), x from the body's middle to the
right, in the same unit. Every random number of a picture is drawn before anything is painted, so
pictures do not depend on how many are painted at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pedbench.world.attributes import INDEX, sample_labels
from pedbench.world.domains import Domain

PATCH = 8  # pixels; side of the squares in which ``render`` reports visible parts
PARTS = (
    *("hat", "hair", "black hair", "grey hair", "long hair", "scalp", "face", "glasses", "beard"),
    *("neck", "shirt", "stripes", "jacket", "short sleeve", "long sleeve", "bare arm", "hand"),
    *("trousers", "shorts", "skirt", "bare leg", "shoe", "backpack", "strap", "handbag", "box"),
    *("phone", "dark lower"),
)
_PART = {name: i for i, name in enumerate(PARTS)}
_NOTHING = len(PARTS)  # owner of background pixels and of parts that have no name
_MIN_PIXELS = 3  # a part is visible in a patch from this many pixels of a 64 high picture on

# Ten colours that a person keeps from picture to picture.
_LOOKS = ("skin", "hair", "shirt", "print", "jacket", "lower", "shoe", "bag", "hat", "muffler")
_TRAITS = ("build", "height", "phase", "period")
_SHOT = (  # per-picture random numbers, all uniform in [0, 1)
    *("view", "yaw", "x", "scale", "tilt", "elevation", "gait", "swing", "hand", "contrast"),
    *("gamma", "light", "noise", "blur", "occluded", "occlusion", "where", "shade", "horizon"),
    *("post", "post_width", "post_shade", "drop"),
)
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma


@dataclass(frozen=True)
class People:
    """``labels (n, 32)`` int8, ``looks (n, 10, 3)`` RGB in [0, 1], ``traits (n, 4)``; float32."""

    labels: np.ndarray
    looks: np.ndarray
    traits: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def _pick(
    colours: list[tuple[float, float, float]], n: int, rng: np.random.Generator
) -> np.ndarray:
    return np.array(colours)[rng.integers(len(colours), size=n)]


def sample_people(n: int, rng: np.random.Generator) -> People:
    """``n`` identities: correlated labels and an appearance that agrees with them."""
    labels = sample_labels(n, rng)

    def has(name: str) -> np.ndarray:
        return labels[:, INDEX[name], None] == 1

    looks = np.empty((n, len(_LOOKS), 3))
    tone = rng.random((n, 1))
    looks[:, 0] = (1 - tone) * np.array([0.93, 0.76, 0.65]) + tone * np.array([0.52, 0.35, 0.26])
    light = _pick([(0.45, 0.28, 0.14), (0.78, 0.60, 0.30), (0.55, 0.25, 0.12)], n, rng)
    hair = np.where(has("elderly"), np.array([0.80, 0.80, 0.80]), light)
    looks[:, 1] = np.where(has("black hair"), np.array([0.07, 0.06, 0.06]), hair)

    other = [(0.45, 0.45, 0.45), (0.25, 0.55, 0.28), (0.85, 0.72, 0.25), (0.50, 0.28, 0.55)]
    other += [(0.52, 0.36, 0.22), (0.90, 0.55, 0.60), (0.85, 0.48, 0.15), (0.30, 0.60, 0.60)]
    shirt = _pick(other, n, rng)
    named = {"red": (0.76, 0.10, 0.13), "blue": (0.15, 0.27, 0.72)}
    named |= {"white": (0.95, 0.95, 0.93), "black": (0.09, 0.09, 0.10)}
    for colour, rgb in named.items():
        shirt = np.where(has(f"{colour} shirt"), np.array(rgb), shirt)
    looks[:, 2] = shirt
    bright = shirt @ _GREY[:, None] > 0.45
    looks[:, 3] = np.where(bright, shirt * 0.25, 1 - 0.3 * (1 - shirt))
    looks[:, 4] = _pick(
        [(0.20, 0.22, 0.26), (0.42, 0.34, 0.24), (0.28, 0.34, 0.24), (0.5, 0.5, 0.52)], n, rng
    )
    lower = _pick(
        [(0.55, 0.53, 0.50), (0.72, 0.63, 0.48), (0.42, 0.32, 0.24), (0.40, 0.44, 0.32)], n, rng
    )
    lower = np.where(has("blue trousers"), np.array([0.20, 0.31, 0.58]), lower)
    lower = np.where(has("black trousers"), np.array([0.09, 0.09, 0.11]), lower)
    bold = _pick([(0.70, 0.25, 0.35), (0.25, 0.28, 0.45), (0.15, 0.15, 0.16)], n, rng)
    looks[:, 5] = np.where(has("skirt"), bold, lower)
    shoe = _pick([(0.14, 0.12, 0.12), (0.32, 0.20, 0.12)], n, rng)
    shoe = np.where(has("boots"), np.array([0.40, 0.25, 0.13]), shoe)
    looks[:, 6] = np.where(has("sneakers"), np.array([0.94, 0.94, 0.95]), shoe)
    vivid = [(0.70, 0.15, 0.15), (0.15, 0.30, 0.60), (0.12, 0.12, 0.13), (0.55, 0.40, 0.20)]
    looks[:, 7] = _pick(vivid, n, rng)
    looks[:, 8] = _pick([*vivid, (0.85, 0.82, 0.75)], n, rng)
    looks[:, 9] = _pick([*vivid, (0.80, 0.65, 0.20)], n, rng)
    looks += rng.normal(0, 0.035, looks.shape)

    woman, child, old = has("female")[:, 0], has("child")[:, 0], has("elderly")[:, 0]
    traits = np.empty((n, len(_TRAITS)))
    traits[:, 0] = rng.normal(1.0, 0.06, n).clip(0.86, 1.18) * np.where(woman, 0.92, 1.0)
    tall = np.where(child, 0.70, np.where(woman, 0.95, 0.985) - 0.03 * old)
    traits[:, 1] = tall * rng.normal(1.0, 0.015, n).clip(0.96, 1.03)
    traits[:, 2] = rng.random(n) * 2 * np.pi
    traits[:, 3] = rng.uniform(0.085, 0.115, n)
    return People(labels, looks.clip(0, 1).astype(np.float32), traits.astype(np.float32))


def render(
    people: People,
    who: np.ndarray,
    cameras: np.ndarray,
    domain: Domain,
    rng: np.random.Generator,
    size: tuple[int, int] = (64, 32),
    chunk: int = 96,
) -> tuple[np.ndarray, np.ndarray]:
    """Picture ``m`` shows person ``who[m]`` through ``domain.cameras[cameras[m]]``.

    Returns ``images (M, H, W, 3)`` uint8 and ``parts (M, len(PARTS), H // 8, W // 8)`` bool:
    which parts can be seen in each patch. ``size`` is (H, W), multiples of 8.
    """
    total, (height, width) = len(who), size
    shots = rng.random((total, len(_SHOT)), dtype=np.float32)
    texture = rng.random((total, 3, 9, 5), dtype=np.float32)
    images = np.empty((total, height, width, 3), dtype=np.uint8)
    parts = np.empty((total, len(PARTS), height // PATCH, width // PATCH), dtype=bool)
    for start in range(0, total, chunk):
        part = slice(start, start + chunk)
        scene = _Scene(people, who[part], cameras[part], domain, shots[part], size)
        scene.paint_background(texture[part])
        scene.paint_person()
        scene.paint_occluder()
        parts[part] = scene.visible_parts()
        noise = rng.standard_normal((len(who[part]), 3, height, width), dtype=np.float32)
        images[part] = scene.expose(noise)
    return images, parts


Array = np.ndarray
Number = float | Array  # one for all pictures, or one each: shape (n,)
Show = Array | None  # in which pictures, bool (n,); None: in all
Part = str | Array | None  # a name of PARTS, numbers (n,), or nothing that has a name
Print = Callable[[Array, Array, Any], tuple[Array, Array]]


class _Scene:
    """A chunk of pictures in the making: ``image (n, 3, H, W)``, ``owner (n, H, W)``."""

    def __init__(
        self,
        people: People,
        who: np.ndarray,
        cameras: np.ndarray,
        domain: Domain,
        shots: np.ndarray,
        size: tuple[int, int],
    ) -> None:
        self.n, (self.height, self.width) = len(who), size
        self.labels = people.labels[who] == 1
        self.look = dict(zip(_LOOKS, people.looks[who].transpose(1, 0, 2), strict=True))
        self.trait = dict(zip(_TRAITS, people.traits[who].T, strict=True))
        self.shot = dict(zip(_SHOT, shots.T, strict=True))
        self.seen_by = [domain.cameras[c] for c in cameras]
        self.image = np.empty((self.n, 3, *size), dtype=np.float32)
        self.owner = np.full((self.n, *size), _NOTHING, dtype=np.int8)
        self._place()

    def has(self, name: str) -> np.ndarray:
        return self.labels[:, INDEX[name]]

    def camera(self, name: str) -> np.ndarray:
        return np.array([getattr(c, name) for c in self.seen_by], dtype=np.float32)

    def drawn(self, name: str, by: str) -> np.ndarray:
        """The camera's range ``name`` at this picture's random number ``by``."""
        low, high = self.camera(name).T
        return low + (high - low) * self.shot[by]

    def _place(self) -> None:
        """Body coordinates ``x (n, H, W)``, ``y (n, H, 1)`` of the pixels, and the pose."""
        shot, child = self.shot, self.has("child")
        back, side = self.camera("back"), self.camera("side")
        self.behind = shot["view"] < back
        self.aside = ~self.behind & (shot["view"] < back + side)
        self.turn = np.where(self.aside, np.where(shot["yaw"] < 0.5, -1.0, 1.0), shot["yaw"] - 0.5)
        self.turn = np.where(self.behind, 0.0, self.turn).astype(np.float32)
        self.hand = np.where(shot["hand"] < 0.5, -1.0, 1.0).astype(np.float32)
        self.gait = (0.4 + 0.6 * shot["gait"]) * np.where(shot["swing"] < 0.5, -1, 1)

        tall = self.trait["height"] * self.drawn("scale", "scale")
        sole = 0.985 - 0.3 * (0.985 - tall).clip(0) - 0.02 * shot["drop"]
        row = (np.arange(self.height, dtype=np.float32) + 0.5) / self.height
        y = 1 + (row[None, :, None] - sole[:, None, None]) / tall[:, None, None]
        bend = (self.drawn("elevation", "elevation") - 0.30 * child)[:, None, None]
        inside = y.clip(0, 1)
        self.y = y + bend * inside * (1 - inside)
        column = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / self.height
        stretch = tall * np.where(child, 1.12, 1.0)
        x = column[None, None, :] - 0.06 * (shot["x"] - 0.5)[:, None, None]
        lean = self.drawn("tilt", "tilt") + np.where(self.has("elderly"), 0.10 * self.hand, 0)
        self.x = x / stretch[:, None, None] + lean[:, None, None] * (self.y - 0.5)
        self.pixel = (1 / (self.height * tall)).astype(np.float32)[:, None, None]

    # --- painting ---------------------------------------------------------------------------

    def _fill(
        self,
        show: Show,
        part: Part,
        colour: Array,
        span: tuple[float, float],
        distance: Callable[..., tuple[Array, Array]],
        numbers: tuple[Number, ...],
        print_: Print | None = None,
    ) -> None:
        """Paint from height ``span[0]`` to ``span[1]`` where the first result of
        ``distance(x, y, *numbers)`` (body units) is negative; the second, 0 in the middle and 1
        at the rim, darkens. ``print_`` gives the share of a second colour, and that colour."""
        on = slice(None) if show is None else np.flatnonzero(show)
        y = self.y[on]
        if not len(y):
            return
        hit = np.flatnonzero(((y > span[0] - 0.03) & (y < span[1] + 0.03)).any(axis=(0, 2)))
        if not len(hit):
            return
        rows = slice(hit[0], hit[-1] + 1)
        args = [np.broadcast_to(v, self.n)[on][:, None, None].astype(np.float32) for v in numbers]
        x, y = self.x[on, rows], y[:, rows]
        signed, rim = distance(x, y, *args)
        alpha = (0.5 - signed / self.pixel[on]).clip(0, 1)
        paint = np.broadcast_to(colour, (self.n, 3))[on][:, :, None, None].astype(np.float32)
        if print_ is not None:
            share, second = print_(x, y, on)
            paint = paint + share[:, None] * (second[:, :, None, None] - paint)
        paint = paint * (1 - 0.28 * np.minimum(rim, 1))[:, None]
        canvas = self.image[on, :, rows]
        self.image[on, :, rows] = canvas + alpha[:, None] * (paint - canvas)
        name = part if isinstance(part, np.ndarray) else np.array(_PART.get(part or "", _NOTHING))
        owner = np.broadcast_to(name, self.n)[on][:, None, None]
        self.owner[on, rows] = np.where(alpha > 0.5, owner, self.owner[on, rows])

    def box(
        self,
        show: Show,
        part: Part,
        colour: np.ndarray,
        y0: Number,
        y1: Number,
        x0: Number,
        x1: Number,
        w0: Number,
        w1: Number,
        print_: Print | None = None,
    ) -> None:
        """A tapered box: from height y0 to y1, its middle goes x0 to x1, half width w0 to w1."""

        def distance(x: Array, y: Array, *numbers: Array) -> tuple[Array, Array]:
            y0, y1, x0, x1, w0, w1 = numbers
            t = ((y - y0) / (y1 - y0)).clip(0, 1)
            wide = w0 + (w1 - w0) * t
            off = np.abs(x - (x0 + (x1 - x0) * t))
            return np.maximum(off - wide, np.maximum(y0 - y, y - y1)), (off / wide) ** 2

        span = (float(np.min(y0)), float(np.max(y1)))
        self._fill(show, part, colour, span, distance, (y0, y1, x0, x1, w0, w1), print_)

    def ellipse(
        self,
        show: Show,
        part: Part,
        colour: np.ndarray,
        x: Number,
        y: Number,
        rx: Number,
        ry: Number,
    ) -> None:
        def distance(px: Array, py: Array, *numbers: Array) -> tuple[Array, Array]:
            x, y, rx, ry = numbers
            r2 = ((px - x) / rx) ** 2 + ((py - y) / ry) ** 2
            return (np.sqrt(r2) - 1) * np.minimum(rx, ry), r2

        span = (float(np.min(y - ry)), float(np.max(y + ry)))
        self._fill(show, part, colour, span, distance, (x, y, rx, ry))

    def paint_background(self, texture: np.ndarray) -> None:
        """Wall, ground, a post, and smooth clutter from ``texture (n, 3, 9, 5)``."""
        shot, (h, w) = self.shot, (self.height, self.width)
        clutter = _enlarge(texture - 0.5, h, w)
        clutter = 0.7 * clutter.mean(axis=1, keepdims=True) + 0.3 * clutter
        base = self.camera("backdrop") * (0.85 + 0.3 * shot["shade"][:, None])
        row = np.arange(h, dtype=np.float32)[None, :, None] / h
        ground = ((row - 0.55 - 0.3 * shot["horizon"][:, None, None]) * 24).clip(0, 1)
        column = np.arange(w, dtype=np.float32)[None, None, :] / w
        edge = np.abs(column - shot["post"][:, None, None])
        post = (0.5 + (0.02 + 0.12 * shot["post_width"][:, None, None] - edge) * w).clip(0, 1)
        post = post * (1 - ground) * (shot["post_shade"][:, None, None] - 0.5)
        strength = self.camera("clutter")[:, None, None]
        plain = (1 - 0.18 * ground) + 2 * strength * post
        self.image[:] = base[:, :, None, None] * plain[:, None]
        self.image += 2 * strength[:, None] * clutter

    def paint_person(self) -> None:
        self._paint_behind()
        self._paint_lower()
        self._paint_upper()
        self._paint_head()
        self._paint_carried()

    def _paint_behind(self) -> None:
        front = ~self.behind
        bag, hair = self.look["bag"], self.look["hair"]
        self.box(self.has("backpack") & front, "backpack", bag, 0.30, 0.54, 0, 0, 0.165, 0.175)
        long = self.has("long hair") & front
        self.box(long, "long hair", hair, 0.08, 0.42, 0, 0, 0.125, 0.150)

    def _paint_lower(self) -> None:
        skin, lower, shoe = self.look["skin"], self.look["lower"], self.look["shoe"]
        trousers, shorts, skirt = (self.has(k) for k in ("trousers", "shorts", "skirt"))
        boots, sneakers, sandals = (self.has(k) for k in ("boots", "sneakers", "sandals"))
        dark = lower @ _GREY < 0.2
        cloth = np.where(trousers & dark, _PART["dark lower"], _PART["trousers"])
        cloth = np.where(shorts, _PART["shorts"], cloth)
        hem = np.where(shorts, 0.72, 0.94)
        for leg in (-1.0, 1.0):
            stride = 0.055 + 0.018 * self.gait * leg
            foot = leg * (stride + 0.012)
            lift = 0.025 * (leg * self.gait).clip(0)
            shade = 1.0 - 0.15 * (leg * self.gait < 0)[:, None]
            hip = 0.052 * leg
            bare = ~trousers
            self.box(bare, "bare leg", skin * shade, 0.58, 0.955 - lift, hip, foot, 0.040, 0.027)
            self.box(
                ~skirt,
                cloth,
                lower * shade,
                0.56,
                hem - lift,
                hip,
                foot * hem / 0.94,
                0.058,
                np.where(shorts, 0.062, 0.040),
            )
            top = np.where(sneakers | sandals, 0.935, 0.945) - lift
            self.box(boots, "shoe", shoe, 0.82 - lift, 0.97 - lift, foot, foot, 0.056, 0.052)
            sole = foot + leg * 0.014 + 0.03 * self.turn
            ground = np.where(sandals[:, None], skin, shoe)
            self.box(None, "shoe", ground, top, 1.0 - lift, sole, sole, 0.048, 0.066)
            grip = np.where(sneakers[:, None], np.float32(0.25), shoe * 0.5)
            tread = sneakers | sandals
            self.box(tread, "shoe", grip, 0.985 - lift, 1.0 - lift, sole, sole, 0.066, 0.066)
            self.box(sandals, "shoe", shoe * 0.5, 0.95 - lift, 0.965 - lift, sole, sole, 0.06, 0.06)
        self.box(skirt, "skirt", lower, 0.55, 0.77, 0, 0, 0.095, 0.155)

    def _pattern(self, x: np.ndarray, y: np.ndarray, on: Any) -> tuple[np.ndarray, np.ndarray]:
        """Stripes, plaid and logo of the shirt as shares of its second colour."""
        phase, period = (self.trait[k][on][:, None, None] for k in ("phase", "period"))
        stripes, plaid, logo = (
            self.has(k)[on][:, None, None] for k in ("stripes", "plaid", "logo")
        )
        across = np.sin(2 * np.pi * y / period + phase)
        share = stripes * (0.5 + 2.5 * across).clip(0, 1)
        down = np.sin(2 * np.pi * x / period + phase)
        mesh = 0.4 * (0.5 + 2.5 * down).clip(0, 1) + 0.4 * (0.5 + 2.5 * across).clip(0, 1)
        share = share + plaid * mesh
        front = logo & ~self.behind[on][:, None, None]
        spot = ((x - 0.05 * self.turn[on][:, None, None]) / 0.055) ** 2 + ((y - 0.41) / 0.05) ** 2
        return share + front * (3 - 3 * spot).clip(0, 1), self.look["print"][on]

    def _paint_upper(self) -> None:
        skin, shirt, jacket = self.look["skin"], self.look["shirt"], self.look["jacket"]
        coat, short, woman = self.has("jacket"), self.has("short sleeves"), self.has("female")
        build = self.trait["build"] * np.where(self.aside, 0.80, 1.0)
        shoulder, waist = 0.128 * build, np.where(woman, 0.092, 0.110) * build
        striped = np.where(self.has("stripes"), _PART["stripes"], _PART["shirt"])
        sleeve = np.where(coat[:, None], jacket, shirt * 0.9)
        cloth = np.where(short, _PART["short sleeve"], _PART["long sleeve"])
        pattern = self._pattern

        self.box(None, "neck", skin * 0.85, 0.24, 0.31, 0, 0, 0.042, 0.050)
        self.box(None, striped, shirt, 0.285, 0.585, 0, 0, shoulder, waist, pattern)
        self.box(None, None, shirt * 0.45, 0.572, 0.585, 0, 0, waist, waist)
        for edge in (-1.0, 1.0):
            lapel = coat & ~self.behind
            self.box(
                lapel,
                "jacket",
                jacket,
                0.285,
                0.63,
                edge * 0.088 * build,
                edge * 0.092 * build,
                0.050 * build,
                0.050 * build,
            )
        self.box(coat & self.behind, "jacket", jacket, 0.285, 0.63, 0, 0, shoulder, 1.12 * waist)

        loaded = self.has("box")
        for arm in (-1.0, 1.0):
            raised = self.has("phone") & (arm == self.hand)
            swing = 0.02 * arm * self.gait
            joint = arm * (shoulder + 0.006)
            elbow = arm * (shoulder + np.where(loaded, 0.045, 0.035)) + 0.2 * swing
            wrist = arm * np.where(raised, 0.125, shoulder + np.where(loaded, -0.03, 0.045))
            wrist = wrist + swing
            low = np.where(loaded, 0.50, 0.575)
            for up, y0, y1, x0, x1 in (
                (raised, 0.20, 0.44, wrist, elbow),
                (~raised, 0.43, low, elbow, wrist),
            ):
                self.box(up & short, "bare arm", skin, y0, y1, x0, x1, 0.030, 0.030)
                self.box(up & ~short, "long sleeve", sleeve, y0, y1, x0, x1, 0.036, 0.036)
            self.box(None, cloth, sleeve, 0.295, 0.45, joint, elbow, 0.040, 0.040)
            palm = np.where(raised, 0.19, low + 0.015)
            self.ellipse(None, "hand", skin, wrist, palm, 0.033, 0.030)

        muffler = self.look["muffler"]
        self.box(self.has("muffler"), None, muffler, 0.255, 0.325, 0, 0, 0.080, 0.092)
        tail = self.has("muffler") & ~self.behind
        self.box(tail, None, muffler * 0.85, 0.31, 0.46, 0.045, 0.055, 0.030, 0.034)

    def _paint_head(self) -> None:
        skin, hair, hat = self.look["skin"], self.look["hair"], self.look["hat"]
        bald, facing, turn = self.has("bald"), ~self.behind, self.turn
        shade = np.where(self.has("elderly"), _PART["grey hair"], _PART["hair"])
        shade = np.where(self.has("black hair"), _PART["black hair"], shade)
        face = 0.022 * turn
        self.ellipse(bald, "scalp", skin, 0, 0.145, 0.104, 0.130)
        self.ellipse(~bald, shade, hair, 0, 0.130, 0.118, 0.128)
        look = facing & ~self.aside
        for where, rx in ((look, 0.092), (facing & self.aside, 0.078)):
            self.ellipse(where, "face", skin, 1.6 * face, 0.178, rx, 0.102)
        self.box(facing & ~bald, shade, hair, 0.05, 0.098, 0, 0, 0.075, 0.102)
        beard = self.has("beard") & facing
        self.ellipse(beard, "beard", hair * 0.8, 1.8 * face, 0.236, 0.075, 0.048)
        mouth = np.array([0.60, 0.25, 0.25])
        self.box(facing, None, mouth, 0.226, 0.238, 2.2 * face, 2.2 * face, 0.03, 0.03)
        glasses = self.has("glasses") & facing
        for eye in (-1.0, 1.0):
            at = 2.4 * face + eye * 0.042 * (1 - 0.4 * np.abs(turn) * self.aside)
            self.ellipse(facing, None, np.array([0.12, 0.10, 0.10]), at, 0.166, 0.014, 0.014)
            self.ellipse(glasses, "glasses", np.array([0.05, 0.05, 0.06]), at, 0.166, 0.040, 0.032)
            self.ellipse(glasses, "glasses", np.array([0.45, 0.55, 0.62]), at, 0.166, 0.018, 0.013)
        self.box(
            glasses, "glasses", np.array([0.05, 0.05, 0.06]), 0.152, 0.166, face, face, 0.098, 0.098
        )
        long = self.has("long hair")
        self.box(long & self.behind, "long hair", hair, 0.08, 0.42, 0, 0, 0.115, 0.140)
        for lock in (-1.0, 1.0):
            self.box(
                long & facing,
                "long hair",
                hair,
                0.10,
                0.40,
                lock * 0.098,
                lock * 0.118,
                0.022,
                0.032,
            )
        wears = self.has("hat")
        self.box(wears, "hat", hat, 0.0, 0.085, 0, 0, 0.080, 0.112)
        self.box(wears, "hat", hat * 0.7, 0.080, 0.108, 2 * face, 2 * face, 0.150, 0.150)

    def _paint_carried(self) -> None:
        bag, skin, hand, behind = self.look["bag"], self.look["skin"], self.hand, self.behind
        pack, facing = self.has("backpack"), ~self.behind
        self.box(pack & behind, "backpack", bag, 0.30, 0.55, 0, 0, 0.105, 0.115)
        self.box(pack & behind, "backpack", bag * 0.6, 0.44, 0.52, 0, 0, 0.075, 0.075)
        for strap in (-1.0, 1.0):
            at = 0.074 * strap
            self.box(pack & facing, "strap", bag * 0.8, 0.285, 0.52, at, at * 1.15, 0.024, 0.024)
        slung = self.has("shoulder bag")
        self.box(slung, None, bag * 0.7, 0.285, 0.54, -0.09 * hand, 0.12 * hand, 0.022, 0.022)
        self.box(slung, None, bag, 0.50, 0.63, 0.135 * hand, 0.135 * hand, 0.060, 0.066)

        carried, at = self.has("handbag"), -0.178 * hand
        self.box(carried, "handbag", bag * 0.6, 0.585, 0.65, at, at, 0.034, 0.050)
        self.box(carried, "handbag", bag, 0.64, 0.745, at, at, 0.060, 0.074)
        self.box(carried, "handbag", bag * 0.5, 0.665, 0.68, at, at, 0.062, 0.064)

        box = self.has("box") & facing
        self.box(box, "box", np.array([0.76, 0.58, 0.36]), 0.42, 0.585, 0, 0, 0.135, 0.135)
        self.box(box, "box", np.array([0.90, 0.80, 0.62]), 0.42, 0.585, 0, 0, 0.018, 0.018)
        for side in (-1.0, 1.0):
            self.ellipse(box, "hand", skin, side * 0.125, 0.52, 0.03, 0.034)
        ear = self.has("phone")
        at = 0.120 * hand
        self.box(ear, "phone", np.array([0.06, 0.06, 0.08]), 0.125, 0.215, at, at, 0.030, 0.030)
        self.box(ear, "phone", np.array([0.65, 0.80, 0.92]), 0.145, 0.195, at, at, 0.014, 0.014)

    def paint_occluder(self) -> None:
        """Hide a share of the picture from below, from the left or from the right."""
        shot, (h, w) = self.shot, (self.height, self.width)
        share = self.drawn("occlusion", "occlusion") * (shot["occluded"] < self.camera("occluded"))
        place = shot["where"]
        below = np.where(place < 0.5, share, 0)[:, None, None]
        left = np.where((place >= 0.5) & (place < 0.75), share, 0)[:, None, None]
        right = np.where(place >= 0.75, share, 0)[:, None, None]
        row = (np.arange(h, dtype=np.float32) + 0.5)[None, :, None] / h
        column = (np.arange(w, dtype=np.float32) + 0.5)[None, None, :] / w
        hidden = (row > 1 - below) | (column < left) | (column > 1 - right)
        colour = self.camera("backdrop") * (0.4 + 0.5 * shot["post_shade"][:, None])
        self.image = np.where(hidden[:, None], colour[:, :, None, None], self.image)
        self.owner = np.where(hidden, np.int8(_NOTHING), self.owner)

    # --- what the camera makes of it --------------------------------------------------------

    def visible_parts(self) -> np.ndarray:
        """``(n, len(PARTS), H // 8, W // 8)``: parts with a few pixels in the patch."""
        rows, columns = self.height // PATCH, self.width // PATCH
        tiles = self.owner.reshape(self.n, rows, PATCH, columns, PATCH).transpose(0, 1, 3, 2, 4)
        tiles = tiles.reshape(self.n * rows * columns, PATCH * PATCH).astype(np.int64)
        bins = len(PARTS) + 1
        flat = tiles + bins * np.arange(len(tiles))[:, None]
        counts = np.bincount(flat.ravel(), minlength=bins * len(tiles))
        counts = counts.reshape(self.n, rows, columns, bins)[..., :-1]
        return (counts >= _MIN_PIXELS).transpose(0, 3, 1, 2)

    def expose(self, noise: np.ndarray) -> np.ndarray:
        """Light, colour, blur and sensor: uint8 of shape ``(n, H, W, 3)``."""

        def each(values: np.ndarray) -> np.ndarray:
            return values.astype(np.float32).reshape(self.n, -1, 1, 1)

        across = np.linspace(-0.5, 0.5, self.width, dtype=np.float32)
        image = self.image * (1 + each(self.drawn("side_light", "light")) * across)
        image = image * each(self.camera("cast"))
        image = 0.5 + (image - 0.5) * each(self.drawn("contrast", "contrast"))
        image = image.clip(0, 1) ** each(self.drawn("gamma", "gamma"))
        luma = np.einsum("nchw,c->nhw", image, _GREY)[:, None]
        image = np.where(each(self.camera("grey")) > 0, luma, image)
        image = np.where(each(self.camera("inverted")) > 0, 1 - image, image)
        # A 3-tap kernel with outer weight k has variance 2k.
        k = each((self.drawn("blur", "blur") ** 2 / 2).clip(0, 1 / 3))
        for _ in range(max(1, (self.height // 64) ** 2)):
            for axis in (2, 3):
                image = _smooth(image, k, axis)
        noise = np.where(each(self.camera("grey")) > 0, noise[:, :1], noise)
        image = image + each(self.drawn("noise", "noise")) * noise
        return np.rint(255 * image.clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)


def _smooth(image: np.ndarray, k: np.ndarray, axis: int) -> np.ndarray:
    length = image.shape[axis]
    before = image.take(np.arange(-1, length - 1).clip(0), axis)
    after = image.take(np.arange(1, length + 1).clip(0, length - 1), axis)
    return image + k * (before + after - 2 * image)


def _enlarge(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation of ``(n, c, h, w)`` to ``(n, c, height, width)``."""
    for axis, size in ((2, height), (3, width)):
        at = np.linspace(0, coarse.shape[axis] - 1, size, dtype=np.float32)
        low = at.astype(int).clip(0, coarse.shape[axis] - 2)
        share = (at - low).reshape((-1, 1) if axis == 2 else (-1,))
        first = coarse.take(low, axis)
        coarse = first + share * (coarse.take(low + 1, axis) - first)
    return coarse
