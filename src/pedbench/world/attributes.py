"""The 32 binary attributes of the synthetic world and how they depend on each other."""

from __future__ import annotations

import numpy as np

from pedbench.contracts import Attribute


def _worn(name: str, region: str, article: str = "a ", verb: str = "wearing") -> Attribute:
    return Attribute(name, region, f"{verb} {article}{name}", f"without {article}{name}")  # type: ignore[arg-type]


ATTRIBUTES: tuple[Attribute, ...] = (
    _worn("hat", "head"),
    _worn("glasses", "head", article=""),
    Attribute("long hair", "head", "with long hair", "with short hair"),
    Attribute("bald", "head", "with a bald head", "with hair"),
    _worn("black hair", "head", article="", verb="with"),
    _worn("beard", "head", verb="with"),
    _worn("muffler", "head"),
    Attribute("short sleeves", "upper", "with short sleeves", "with long sleeves"),
    _worn("jacket", "upper"),
    _worn("stripes", "upper", article="", verb="with"),
    _worn("plaid", "upper", article="", verb="with"),
    _worn("logo", "upper", verb="with"),
    _worn("red shirt", "upper", verb="in"),
    _worn("blue shirt", "upper", verb="in"),
    _worn("white shirt", "upper", verb="in"),
    _worn("black shirt", "upper", verb="in"),
    _worn("trousers", "lower", article=""),
    _worn("shorts", "lower", article=""),
    _worn("skirt", "lower"),
    _worn("blue trousers", "lower", article="", verb="in"),
    _worn("black trousers", "lower", article="", verb="in"),
    _worn("boots", "feet", article=""),
    _worn("sneakers", "feet", article=""),
    _worn("sandals", "feet", article=""),
    _worn("backpack", "whole", verb="with"),
    _worn("shoulder bag", "whole", verb="with"),
    _worn("handbag", "whole", verb="with"),
    _worn("box", "whole", verb="carrying"),
    _worn("phone", "whole", verb="holding"),
    Attribute("female", "whole", "who is female", "who is male"),
    Attribute("child", "whole", "who is a child", "who is an adult"),
    Attribute("elderly", "whole", "who is old", "who is young"),
)
NAMES = tuple(attribute.name for attribute in ATTRIBUTES)
INDEX = {name: i for i, name in enumerate(NAMES)}

# Pre-training captions never name these: only adaptation to a dataset can teach them.
UNNAMED = ("muffler", "plaid", "logo", "shoulder bag", "boots", "sneakers", "sandals")
COLOURED = tuple(
    name for name in NAMES if name.split()[-1] in ("shirt", "trousers") and " " in name
)


def _draw(p: np.ndarray | float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Bernoulli(p) for n people, stratified: small worlds too come close to the frequencies."""
    return (rng.permutation(n) + rng.random(n)) / n < p


def _choose(options: dict[str, np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """One option name, or "", per person; values are probabilities of shape (n,)."""
    bounds = np.cumsum(np.stack([np.broadcast_to(p, n) for p in options.values()]), axis=0)
    u = (rng.permutation(n) + rng.random(n)) / n
    return np.array([*options, ""])[(u >= bounds).sum(axis=0)]


def sample_labels(n: int, rng: np.random.Generator) -> np.ndarray:
    """Attributes of ``n`` people, int8 of shape ``(n, 32)``: long-tailed and correlated."""

    def when(condition: np.ndarray, yes: float | np.ndarray, no: float | np.ndarray) -> np.ndarray:
        return np.where(condition, yes, no)

    has: dict[str, np.ndarray] = {}
    female = has["female"] = _draw(0.44, n, rng)
    age = _choose({"child": np.array(0.06), "elderly": np.array(0.10)}, n, rng)
    child, elderly = has["child"], has["elderly"] = age == "child", age == "elderly"
    adult_man = ~female & ~child

    bald = has["bald"] = _draw(when(adult_man, when(elderly, 0.25, 0.06), 0.0), n, rng)
    long = has["long hair"] = _draw(when(female, when(elderly, 0.35, 0.72), 0.04), n, rng) & ~bald
    has["black hair"] = _draw(when(elderly | bald, 0.0, 0.52), n, rng)
    has["beard"] = _draw(when(adult_man, 0.22, 0.0), n, rng)
    has["hat"] = _draw(when(bald | elderly, 0.35, when(long, 0.12, 0.18)), n, rng)
    has["glasses"] = _draw(when(child, 0.08, when(elderly, 0.45, 0.22)), n, rng)

    short = has["short sleeves"] = _draw(when(elderly, 0.2, 0.42), n, rng)
    jacket = has["jacket"] = _draw(when(short, 0.0, 0.42), n, rng)
    has["muffler"] = _draw(when(short, 0.02, when(jacket, 0.25, 0.10)), n, rng)
    pattern = {
        "stripes": when(female, 0.20, 0.13),
        "plaid": when(female, 0.06, 0.15),
        "logo": when(child, 0.30, when(jacket, 0.04, 0.15)),
    }
    worn = _choose(pattern, n, rng)
    colours = {
        "red shirt": when(female, 0.20, 0.09),
        "blue shirt": when(female, 0.10, 0.22),
        "white shirt": np.array(0.20),
        "black shirt": when(child, 0.06, 0.22),
    }
    shirt = _choose(colours, n, rng)

    skirt = when(female, when(elderly, 0.30, 0.45), 0.0)
    shorts = when(short, when(child, 0.75, 0.58), 0.10) * when(female, 0.5, 1.0)
    lower = _choose({"skirt": skirt, "shorts": shorts, "trousers": 1 - skirt - shorts}, n, rng)
    has |= {name: worn == name for name in pattern} | {name: shirt == name for name in colours}
    has |= {name: lower == name for name in ("skirt", "shorts", "trousers")}
    hue = _choose({"blue": np.array(0.36), "black": np.array(0.40)}, n, rng)
    has["blue trousers"] = has["trousers"] & (hue == "blue")
    has["black trousers"] = has["trousers"] & (hue == "black")

    feet = {
        "boots": when(short, 0.02, when(female, 0.28, 0.13)),
        "sneakers": when(child, 0.6, when(elderly, 0.15, 0.38)),
        "sandals": when(short, when(female, 0.28, 0.16), 0.01),
    }
    shoe = _choose(feet, n, rng)
    bags = {
        "backpack": when(child, 0.35, when(elderly, 0.05, 0.20)),
        "shoulder bag": when(female, 0.20, 0.11),
        "handbag": when(child, 0.02, when(female, 0.28, 0.04)),
    }
    bag = _choose(bags, n, rng)
    load = _choose(
        {"box": when(bag == "", 0.06, 0.01), "phone": when(age == "", 0.11, 0.03)}, n, rng
    )
    has |= {name: shoe == name for name in feet} | {name: bag == name for name in bags}
    has |= {name: load == name for name in ("box", "phone")}
    return np.stack([has[name] for name in NAMES], axis=1).astype(np.int8)
