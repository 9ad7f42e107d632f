from __future__ import annotations

import dataclasses

import pytest

from pedbench import registry
from pedbench.contracts import PedbenchError
from pedbench.registry import Field, checked


@pytest.mark.parametrize("name", registry.methods())
def test_params_read_statically_are_the_runtime_ones(name):
    module = registry._import("method", name)
    fields = registry.read_params(name)
    assert [f.name for f in dataclasses.fields(module.Params)] == list(fields)
    assert {key: field.default for key, field in fields.items()} == vars(module.Params())
    assert registry.trains(name) == registry.load_method(name).trains


@pytest.mark.parametrize("name", registry.methods())
def test_every_hyperparameter_is_explained_and_checkable(name):
    assert registry.summary("method", name)
    for key, field in registry.read_params(name).items():
        assert field.doc, f"Params.{key} has no comment"
        fitted = checked(field, field.default)
        assert (tuple(fitted) if isinstance(fitted, list) else fitted) == field.default, key


@pytest.mark.parametrize("name", registry.datasets())
def test_datasets_load(name):
    assert registry.summary("dataset", name)
    spec = registry.load_dataset(name).SPEC
    assert spec.attributes or spec.reid


@pytest.mark.parametrize("name", ["dukemtmc", "DukeMTMC-reID", "dukemtmcreid", "duke"])
def test_a_withdrawn_dataset_is_refused_with_the_reason(name):
    with pytest.raises(PedbenchError, match=r"DukeMTMC-reID was withdrawn .* Use market1501"):
        registry.load_dataset(name)


def test_unknown_method_lists_close_names():
    with pytest.raises(PedbenchError, match=r"^unknown method 'linear_prob'; did you mean 'linear"):
        registry.source_path("method", "linear_prob")


def test_load_params_refuses_unknown_keys():
    with pytest.raises(PedbenchError, match="^linear_probe: unknown key 'lrr'; did you mean 'lr'"):
        registry.load_params("linear_probe", {"lrr": 1.0})
    assert registry.load_params("linear_probe", {"lr": 0.5}).lr == 0.5


@pytest.mark.parametrize(
    ("annotation", "value", "fitted"),
    [
        ("int", 3, 3),
        ("float", 3, 3.0),
        ("float", "1e-3", 1e-3),
        ("bool", True, True),
        ("str", "a", "a"),
        ("int | None", None, None),
        ("Literal['a', 'b']", "b", "b"),
        ("Literal['a'] | None", None, None),
        ("tuple[int, ...]", [1, 2], [1, 2]),
        ("tuple[float, float]", (1, 2), [1.0, 2.0]),
        ("dict[str, Any] | None", {"r": 8, "p": "1e-3"}, {"r": 8, "p": 0.001}),
        ("dict[str, Any] | None", None, None),
    ],
)
def test_checked_fits(annotation, value, fitted):
    result = checked(Field(None, annotation), value)
    assert result == fitted and type(result) is type(fitted)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("int", True, "True is not int"),
        ("int", 1.5, "1.5 is not int"),
        ("int", "3", "'3' is not int"),
        ("float", "high", "'high' is not float"),
        ("bool", 1, "1 is not bool"),
        ("Literal['zero', 'random']", "rndom", "'rndom' is not one of 'zero', 'random'; did you"),
        ("tuple[float, float]", [1.0], r"\[1.0\] is not tuple"),
        ("tuple[int, ...]", 3, "3 is not tuple"),
        ("dict[str, Any]", [1], r"\[1\] is not dict"),
        ("dict[str, Any]", {1: 2}, "{1: 2} is not dict"),
    ],
)
def test_checked_refuses(annotation, value, message):
    with pytest.raises(PedbenchError, match=f"^{message}"):
        checked(Field(None, annotation), value)


def test_the_comment_on_a_field_is_found_wherever_the_formatter_puts_it(tmp_path):
    path = tmp_path / "lora.py"
    path.write_text(
        "class Params:\n    a: int = 1  # one\n    b: int = (\n        2  # two\n    )\n"
        "    c: int = (  # three\n        3\n    )\n    d: int = 4\n"
    )
    fields = registry.read_dataclass(path, "Params")
    assert [field.doc for field in fields.values()] == ["one", "two", "three", ""]


HEADED = '''"""Lora: low-rank updates.

Paper: Hu et al.,
"LoRA", ICLR 2022.
Trains: the updates: A and B.
Run:
  snakemake all

Paper and code agree. Trains: not a keyword here.

More prose.
"""
BIBTEX = "@article{hu}"


class Method:
    trains = False
    tasks: ClassVar = ("par", "reid")
'''


def test_the_header_is_read_without_running_the_file(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/lora.py").write_text(HEADED)
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert registry.header("lora") == {
        "Paper": 'Hu et al., "LoRA", ICLR 2022.',
        "Trains": "the updates: A and B.",
        "Run": "snakemake all",
    }
    prose = "Paper and code agree. Trains: not a keyword here.\n\nMore prose."
    assert registry.notes("lora") == prose
    assert registry.bibtex("method", "lora") == "@article{hu}"
    assert registry.trains("lora") is False
    assert registry.class_attribute("lora", "tasks") == ("par", "reid")
    assert registry.class_attribute("lora", "needs_tokens") is False


def test_two_methods_with_one_title_are_refused(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    for name in ("lora", "my_lora"):
        (tmp_path / f"methods/{name}.py").write_text(HEADED)
    (tmp_path / "methods/bare.py").write_text("")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    assert (registry.title("lora"), registry.title("bare")) == ("Lora", "bare")
    registry.check_titles(["bare", "lora"])
    told = r"^methods/lora.py and methods/my_lora.py have the same title, 'Lora'"
    with pytest.raises(PedbenchError, match=told):
        registry.check_titles(["bare", "lora", "my_lora"])


@pytest.mark.parametrize("stop", ["1 / 0", "raise SystemExit(3)", "import no_such_package"])
def test_a_plugin_that_raises_on_import_is_named(stop, tmp_path, monkeypatch):
    import pedbench.methods as package

    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "unknown.py").write_text(f"x = 1\n{stop}\n")
    monkeypatch.setattr(registry, "_PACKAGE", tmp_path)
    monkeypatch.setattr(package, "__path__", [str(folder)])
    with pytest.raises(PedbenchError, match=r"^methods/unknown.py: line 2: the import fails with "):
        registry.load_method("unknown")


def test_damaged_plugins_are_named(tmp_path):
    path = tmp_path / "methods" / "lora.py"
    path.parent.mkdir()
    path.write_text("class Params:\n    rank: int = 2 + RANK\n")
    with pytest.raises(PedbenchError, match=r"^methods/lora.py: line 2: Params.rank must be a lit"):
        registry.read_dataclass(path, "Params")
    other = path.with_name("dora.py")
    other.write_text("class Params(:\n")
    with pytest.raises(PedbenchError, match=r"^methods/dora.py: line 1: "):
        registry.read_dataclass(other, "Params")
    with pytest.raises(PedbenchError, match=r"^methods/lora.py: no class Method in it"):
        registry._class(path, "Method")
