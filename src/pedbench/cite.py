"""BibTeX of everything that a plan or a table compares, from the files of the plug-ins."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from pedbench import registry
from pedbench.config import check_config, read_yaml
from pedbench.contracts import PedbenchError
from pedbench.registry import Kind

CLIP = """
@inproceedings{radford2021clip,
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel
            and Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela
            and Clark, Jack and Krueger, Gretchen and Sutskever, Ilya},
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  booktitle = {International Conference on Machine Learning (ICML)},
  year = {2021},
}
"""

Compared = tuple[tuple[str, ...], tuple[str, ...]]  # names of the methods, and of the datasets


def in_config(path: Path) -> Compared:
    """What the plan of the config file ``path`` compares. Raises PedbenchError for a bad file."""
    config = check_config(read_yaml(path.resolve()), str(path))
    methods = [
        name for e in config["methods"] for name in ([e] if isinstance(e, str) else e["methods"])
    ]
    first = [
        [entry.partition("/")[0] for entry in names] for names in (methods, config["datasets"])
    ]
    return _unique(first[0]), _unique(first[1])


def in_table(path: Path) -> Compared:
    """What was measured in a CSV of ``results/tables``. Raises PedbenchError if it is none."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        named = [(row["method"], row["dataset"]) for row in rows if row["method"]]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise PedbenchError(
            f"{path}: names no methods and datasets ({reason}); give a CSV of results/tables, for "
            "instance results/tables/standard.csv"
        ) from error
    return _unique(method for method, _ in named), _unique(dataset for _, dataset in named)


def bibliography(methods: Iterable[str], datasets: Iterable[str]) -> str:
    """BibTeX of the suite, of CLIP, which all its backbones are, and of these plug-ins and what
    they are made of.

    An entry that several cite comes once, behind a comment that names them. Of a file that
    states no BibTeX, or something else, a comment says so.
    """
    sources = [("the suite", suite()), ("the backbone", CLIP)]
    remarks = []
    made_of = [[name, *registry.parents(name)] for name in datasets]
    datasets = _unique(name for names in made_of for name in names)
    kinds: tuple[tuple[Kind, Iterable[str]], ...] = (("method", methods), ("dataset", datasets))
    for kind, names in kinds:
        for name in names:
            text = registry.bibtex(kind, name)
            sources.append((name, text or ""))
            if text is None:
                remarks.append(f"{kind}s/{name}.py states nothing to cite; give it a BIBTEX")
            elif text and not entries(text):
                remarks.append(f"{name}: {' '.join(text.split())}")
    cited: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for source, text in sources:
        for key, entry in entries(text).items():
            texts.setdefault(key, entry)
            cited.setdefault(key, []).append(source)
    blocks = [f"% {', '.join(cited[key])}\n{entry}" for key, entry in texts.items()]
    return "\n\n".join([*blocks, *(f"% {remark}" for remark in remarks)]) + "\n"


def entries(text: str) -> dict[str, str]:
    """The BibTeX entries in ``text``, key -> entry; each begins in column 0."""
    found = re.finditer(r"^@\w+\{\s*([^,\s]+)\s*,.*?(?=^@|\Z)", text, re.DOTALL | re.MULTILINE)
    return {entry[1]: entry[0].strip() for entry in found}


def suite() -> str:
    """CITATION.cff as BibTeX; without a year until there is a release."""
    cff = read_yaml("CITATION.cff")
    people = [
        f"{{{a['name']}}}" if "name" in a else f"{a['family-names']}, {a['given-names']}"
        for a in cff["authors"]
    ]
    fields = {
        "author": " and ".join(people),
        "title": cff["title"],
        "year": str(cff.get("date-released", ""))[:4],
        "version": cff["version"],
    }
    lines = [f"  {key} = {{{value}}}," for key, value in fields.items() if value]
    return "\n".join(["@software{pedbench,", *lines, "}"])


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
