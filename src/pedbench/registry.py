"""From a name to its plug-in: files of ``methods/`` and ``datasets/`` are the only list.

What the planner needs (names, hyperparameters, one-line summaries) is read from the source by
``ast``, so that planning, ``pedbench --help`` and ``pedbench list`` import no torch and run no
plug-in.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import re
import tokenize
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pedbench.contracts import BaseDataset, BaseMethod, PedbenchError

Kind = Literal["method", "dataset"]
HEADER = ("Paper", "Trains", "Parameters", "Published", "Run")  # keywords of a method's docstring

WITHDRAWN: Mapping[str, str] = {  # how names begin that datasets went by -> why there is none
    "duke": "DukeMTMC-reID was withdrawn by its authors in 2019, after questions about the consent "
    "of the persons in it; this suite does not read it. Use market1501, msmt17 or cuhk03",
}

_PACKAGE = Path(__file__).resolve().parent
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Field:
    """One hyperparameter: its default, its annotation as written, and its comment."""

    default: Any
    annotation: str
    doc: str = ""


def methods() -> tuple[str, ...]:
    """Names of all methods: the files of ``methods/``, sorted."""
    return _names("method")


def datasets() -> tuple[str, ...]:
    """Names of all datasets: the files of ``datasets/``, sorted."""
    return _names("dataset")


def source_path(kind: Kind, name: str) -> Path:
    """The file of a plug-in. Raises PedbenchError, with close names, if there is none."""
    path = _folder(kind) / f"{name}.py"
    if not (_NAME.fullmatch(name) and path.is_file()):
        known = _names(kind)
        withdrawn = [why for word, why in WITHDRAWN.items() if name.lower().startswith(word)]
        if kind == "dataset" and withdrawn:
            raise PedbenchError(f"no dataset '{name}': {withdrawn[0]}")
        raise PedbenchError(
            f"unknown {kind} '{name}'{suggest(name, known)} "
            f"(the {kind}s are the files of {kind}s/: {', '.join(known) or 'none yet'})"
        )
    return path


def summary(kind: Kind, name: str) -> str:
    """First line of the plug-in's docstring."""
    docstring = ast.get_docstring(_module(source_path(kind, name))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def title(name: str) -> str:
    """What tables and figures call method ``name``: its docstring up to the first line's colon."""
    return summary("method", name).partition(":")[0] or name


def check_titles(names: Iterable[str]) -> None:
    """Raises PedbenchError when two of these methods have the same title."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(title(name), name)
        if other != name:
            raise PedbenchError(
                f"methods/{other}.py and methods/{name}.py have the same title, '{title(name)}', "
                "so no table could tell them apart: give one of them another, in the first line "
                "of its docstring, up to the colon"
            )


def header(name: str) -> dict[str, str]:
    """What the docstring of method ``name`` says under the keywords of `HEADER`, a line each.

    A keyword stands in column 0 and is followed by a colon; its text goes on until the next
    keyword or an empty line. Keywords that the docstring lacks are left out.
    """
    return _docstring(name)[0]


def notes(name: str) -> str:
    """The rest of that docstring, as written: free prose, paragraphs apart by empty lines."""
    return _docstring(name)[1]


def bibtex(kind: Kind, name: str) -> str | None:
    """What to cite for a plug-in: its constant ``BIBTEX``, or the ``citation`` in a dataset's
    SPEC. Empty: nothing but the suite. None: the file does not say."""
    path = source_path(kind, name)
    value = _assigned(_module(path), "BIBTEX")
    if value is None and kind == "dataset":
        spec = _assigned(_class(path, "Dataset"), "SPEC")
        stated = spec.keywords if isinstance(spec, ast.Call) else []
        value = next((keyword.value for keyword in stated if keyword.arg == "citation"), None)
    return None if value is None else _literal(path, "BIBTEX", value).strip()


def parents(name: str) -> tuple[str, ...]:
    """The datasets that dataset ``name`` is made of, ``Dataset.PARENTS``."""
    value = _assigned(_class(source_path("dataset", name), "Dataset"), "PARENTS")
    keys = value.keys if isinstance(value, ast.Dict) else []
    return tuple(ast.literal_eval(key) for key in keys if key is not None)


def read_params(name: str) -> dict[str, Field]:
    """The hyperparameters of method ``name``: the fields of its ``Params``, unexecuted."""
    return dict(read_dataclass(source_path("method", name), "Params"))


def read_search(name: str) -> dict[str, tuple[float, float] | list[Any]]:
    """What tuning searches, ``Method.search``, unexecuted: a tuple (low, high) or choices.

    Raises PedbenchError when a key is no field of ``Params`` or a value does not fit it.
    """
    own, space = read_params(name), class_attribute(name, "search")
    for key, values in space.items():
        where = f"methods/{name}.py: Method.search: {key}"
        if key not in own:
            raise PedbenchError(f"{where} is no field of Params{suggest(str(key), own)}")
        if not isinstance(values, tuple | list) or len(values) < 2:
            raise PedbenchError(f"{where}: a tuple (low, high) or a list of choices is wanted")
        for value in values:
            try:
                checked(own[key], value)
            except PedbenchError as error:
                raise PedbenchError(f"{where}: {error}") from None
        if isinstance(values, tuple) and not (len(values) == 2 and 0 < values[0] < values[1]):
            raise PedbenchError(f"{where}: {values} is no range: 0 < low < high is wanted")
    return space


def trains(name: str) -> bool:
    """The class attribute ``Method.trains``: False for a method that learns nothing."""
    return bool(class_attribute(name, "trains"))


def class_attribute(name: str, attribute: str) -> Any:
    """A literal class attribute of ``Method``, or else what `BaseMethod` has."""
    path = source_path("method", name)
    value = _assigned(_class(path, "Method"), attribute)
    if value is None:
        return getattr(BaseMethod, attribute)
    return _literal(path, f"Method.{attribute}", value)


def load_method(name: str) -> type[BaseMethod[Any]]:
    """Import method ``name``; make it with ``load_method(name)(load_params(name, values))``."""
    return _import("method", name).Method


def load_params(name: str, values: Mapping[str, Any]) -> Any:
    """The ``Params`` of method ``name`` with ``values``, and its defaults elsewhere."""
    fields = read_params(name)
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise PedbenchError(f"{name}: unknown key '{unknown[0]}'{suggest(unknown[0], fields)}")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return _import("method", name).Params(**tuples)


def load_dataset(name: str) -> BaseDataset:
    """Import dataset ``name`` and make it."""
    return _import("dataset", name).Dataset()


def is_made(dataset: type[BaseDataset]) -> bool:
    """Whether the suite makes the files of ``dataset``, or else they must be obtained."""
    return dataset.generate is not BaseDataset.generate


@cache
def read_dataclass(path: Path, name: str) -> Mapping[str, Field]:
    """Fields of the dataclass ``name`` in ``path``, in order, from the source text alone.

    A field's doc is the comment on its line, or on its default's. Its default must be a literal;
    a field without one gets ``...``. Raises PedbenchError when the class or a literal default is
    missing.
    """
    body = _class(path, name).body
    comments = _comments(path)
    return {
        node.target.id: Field(
            default=_literal(path, f"{name}.{node.target.id}", node.value) if node.value else ...,
            annotation=ast.unparse(node.annotation),
            doc=next((comments[n] for n in _lines(node) if n in comments), ""),
        )
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not ast.unparse(node.annotation).startswith("ClassVar")
    }


def checked(field: Field, value: Any) -> Any:
    """``value`` as the field's type wants it: lists for tuples, floats for whole numbers.

    YAML reads ``1e-3`` as text, so text that is a number is taken for one where a float is
    wanted. Raises PedbenchError (without naming the key: the caller knows where it is).
    """
    accepted = _accept(_annotation(field.annotation), value)
    if accepted is _REFUSED:
        literal = re.fullmatch(r"Literal\[(.*)\]", field.annotation)
        wanted = f"one of {literal[1]}" if literal else field.annotation
        hint = suggest(str(value), re.findall(r"'([^']*)'", field.annotation)) if literal else ""
        raise PedbenchError(f"{value!r} is not {wanted}{hint}")
    return accepted


def suggest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when a known word is close or begins so, else the empty string."""
    plain = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), plain, n=1, cutoff=0.7)
    near = near or [name for name in plain if word and name.startswith(word.lower())]
    close = [plain[name] for name in near]
    return f"; did you mean '{close[0]}'?" if close else ""


_REFUSED = object()


@cache
def _annotation(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _accept(kind: ast.expr, value: Any) -> Any:
    """``value`` fitted to the annotation ``kind``, or ``_REFUSED``."""
    match kind:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            first = _accept(left, value)
            return first if first is not _REFUSED else _accept(right, value)
        case ast.Constant(value=None):
            return value if value is None else _REFUSED
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return value if value in _constants(choices) else _REFUSED
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=elements)):
            return _accept_tuple(elements, value)
        case ast.Subscript(value=ast.Name(id="dict")):
            return _accept_dict(value)
        case ast.Name(id="float"):
            return _accept_float(value)
        case ast.Name(id="int"):
            return value if type(value) is int else _REFUSED
        case ast.Name(id="bool"):
            return value if type(value) is bool else _REFUSED
        case ast.Name(id="str"):
            return value if type(value) is str else _REFUSED
    raise PedbenchError(f"the type {ast.unparse(kind)} is not one a hyperparameter can have")


def _accept_float(value: Any) -> Any:
    if type(value) not in (int, float, str):
        return _REFUSED
    try:
        return float(value)
    except ValueError:
        return _REFUSED


def _accept_dict(value: Any) -> Any:
    """A mapping by names, with what YAML leaves as text (``1e-3``) read as the number it is."""
    if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
        return _REFUSED
    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
    texts = {k: v for k, v in value.items() if isinstance(v, str) and number.fullmatch(v)}
    return {**value, **{key: float(text) for key, text in texts.items()}}


def _accept_tuple(elements: list[ast.expr], value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _REFUSED
    if isinstance(elements[-1], ast.Constant) and elements[-1].value is ...:
        elements = elements[:1] * len(value)
    fitted = [_accept(kind, entry) for kind, entry in zip(elements, value, strict=False)]
    refused = len(elements) != len(value) or any(entry is _REFUSED for entry in fitted)
    return _REFUSED if refused else fitted


def _constants(node: ast.expr) -> tuple[Any, ...]:
    value = ast.literal_eval(node)
    return value if isinstance(value, tuple) else (value,)


def _folder(kind: Kind) -> Path:
    return _PACKAGE / f"{kind}s"


def _names(kind: Kind) -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in _folder(kind).glob("*.py") if _NAME.fullmatch(p.stem)))


def _import(kind: Kind, name: str) -> Any:
    path = source_path(kind, name)
    try:
        module = importlib.import_module(f"pedbench.{kind}s.{name}")
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = [f"line {f.lineno}: " for f in frames if f.filename.endswith(_shown(path))]
        raise PedbenchError(
            f"{_shown(path)}: {''.join(own[-1:])}the import fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    for required in ("Method", "Params") if kind == "method" else ("Dataset",):
        if not hasattr(module, required):
            raise PedbenchError(f"{_shown(path)}: no class {required} in it")
    return module


@cache
def _module(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise PedbenchError(f"{_shown(path)}: line {error.lineno}: {error.msg}") from error


def _class(path: Path, name: str) -> ast.ClassDef:
    for node in _module(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise PedbenchError(f"{_shown(path)}: no class {name} in it")


def _assigned(scope: ast.Module | ast.ClassDef, name: str) -> ast.expr | None:
    """What is assigned to ``name`` directly in ``scope``, or None."""
    for node in scope.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == name:
                return node.value
    return None


def _docstring(name: str) -> tuple[dict[str, str], str]:
    """Header and prose of a method's docstring, its first line apart."""
    docstring = ast.get_docstring(_module(source_path("method", name))) or ""
    found: dict[str, str] = {}
    prose: list[str] = []
    key = None
    for line in docstring.splitlines()[1:]:
        word, colon, text = line.partition(":")
        if colon and word in HEADER:
            key, found[word] = word, text.strip()
        elif key and line:
            found[key] = f"{found[key]} {line.strip()}".strip()
        else:
            key = None
            prose.append(line)
    return found, "\n".join(prose).strip()


def _literal(path: Path, name: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise PedbenchError(
            f"{_shown(path)}: line {node.lineno}: {name} must be a literal, not "
            f"'{ast.unparse(node)}', so that it can be read without running the file"
        ) from None


def _lines(node: ast.AnnAssign) -> tuple[int | None, ...]:
    """Where the comment on a field may stand; the formatter wraps long ones in parentheses."""
    return node.end_lineno, node.value.end_lineno if node.value else None, node.lineno


def _comments(path: Path) -> dict[int, str]:
    """Line number -> text of the comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _shown(path: Path) -> str:
    """``methods/lora.py``: the path as a user knows it."""
    return f"{path.parent.name}/{path.name}"
