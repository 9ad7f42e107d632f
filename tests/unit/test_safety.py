"""What others wrote is data: nothing of it runs, leads elsewhere, or reaches a shell unquoted; and
what is secret stays where it is."""

from __future__ import annotations

import ast
import io
import os
import pickle
import string
import struct
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from pedbench.addresses import shown, without_secrets
from pedbench.checkpoint import (
    Checkpoints,
    load_optimiser,
    load_tensors,
    load_trained,
    save_tensors,
)
from pedbench.config import ROOT, SCHEMA, check_config, read_yaml
from pedbench.contracts import PedbenchError
from pedbench.devices import own_gpu
from pedbench.files import read_json, write_json
from pedbench.intake import examine
from pedbench.manifest import KEY, read_manifest
from pedbench.nn.backbone import load_backbone

SOURCES = ("src", "methods", "datasets", "workflow", "benchmarks")
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MODULES |= {"tarfile", "telnetlib", "xmlrpc", "socketserver", "http.server", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.chmod", "os.umask"}
METHODS = {"extractall", "unpack_archive", "read_pickle", "to_pickle", "unsafe_load", "full_load"}
METHODS |= {"load_all", "mktemp", "chmod", "read_hdf", "load_state_dict_from_url"}
# What is in the tree all the same -> why it may be.
ALLOWED = {
    ("formats/pickles.py", "import pickle"): "an unpickler that builds arrays and containers only",
    ("formats/zero_shot.py", "read_pickle"): "that unpickler",
    ("datasets/peta_zs.py", "import pickle"): "writes a fake of the release's file",
    ("datasets/rap_zs.py", "import pickle"): "writes a fake of the release's file",
    ("nn/backbone.py", "weights_only"): "not for OpenAI's archive, which is known by its checksum",
    ("pedbench/config.py", "yaml.load"): "its loader is a SafeLoader",
}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in ``tree`` could run data, follow it out of a folder, or open a port to others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from (f"import {name}" for name in names if name in MODULES)
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield str(node.value)
        elif isinstance(node, ast.Call):
            name, last = ast.unparse(node.func), ast.unparse(node.func).rpartition(".")[2]
            options = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            if name in CALLS or (last in METHODS and name != "np.ma.compress"):
                yield last if last in METHODS else name
            if name in ("torch.load", "yaml.load", "torch.jit.load", "torch.hub.load"):
                if options.get("weights_only") != "True":
                    yield name
            elif options.get("weights_only", "True") != "True":
                yield "weights_only"
            for option in ("shell", "allow_pickle", "trust_remote_code"):
                if options.get(option, "False") != "False":
                    yield option


def test_no_code_runs_data_or_opens_a_port():
    found = {
        (path, danger)
        for top in SOURCES
        for path in (ROOT / top).rglob("*.py")
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
    }
    unknown = [
        f"{path.relative_to(ROOT)}: {danger}"
        for path, danger in found
        if not any(path.as_posix().endswith(f"/{p}") and d == danger for p, d in ALLOWED)
    ]
    assert unknown == []
    stale = [
        key
        for key in ALLOWED
        if not any(p.as_posix().endswith(f"/{key[0]}") and d == key[1] for p, d in found)
    ]
    assert stale == []


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("import pickle", "import pickle"),
        ("from joblib import load", "import joblib"),
        ("torch.load(f)", "torch.load"),
        ("torch.load(f, weights_only=False)", "torch.load"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
        ("subprocess.run(c, shell=True)", "shell"),
        ("yaml.load(f, Loader)", "yaml.load"),
        ("archive.extractall(to)", "extractall"),
        ("eval(text)", "eval"),
        ("serve('0.0.0.0')", "0.0.0.0"),
        ("AutoModel.from_pretrained(n, trust_remote_code=True)", "trust_remote_code"),
    ],
)
def test_dangers_are_seen(code, danger):
    assert list(dangers(ast.parse(code))) == [danger]


def test_a_yaml_file_makes_no_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/trap']\n")
    with pytest.raises(PedbenchError, match=r"evil\.yaml: not valid YAML"):
        read_yaml(path)
    assert not (tmp_path / "trap").exists()


# Rules.


def commands(text: str) -> list[str]:
    """The shell commands of a file of rules."""
    found, words, inside = [], [], False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if inside and token.type == tokenize.STRING:
            words.append(ast.literal_eval(token.string))
        elif inside and token.string not in (":", "") and token.string.strip():
            assert words, f"a command that is no plain text: {token.line}"
            found.append("".join(words))
            words, inside = [], False
        inside = inside or (token.type == tokenize.NAME and token.string == "shell")
    return [*found, *(["".join(words)] if words else [])]


def bare(command: str) -> list[str]:
    """The fields of ``command`` that reach the shell unquoted, but numbers of Snakemake's own."""
    fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(command) if name]
    numbers = [n for n, _ in fields if n == "threads" or n.startswith("resources.")]
    return [name for name, spec in fields if spec != "q" and name not in numbers]


def test_every_word_of_a_rule_is_quoted():
    files = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
    found = {path.name: commands(path.read_text(encoding="utf-8")) for path in files}
    every = [command for of_file in found.values() for command in of_file]
    rules = sum(path.read_text().count("\n    shell:\n") for path in files)
    assert len(every) == rules >= 18
    assert all(command.startswith("pedbench ") for command in every)
    assert [(command, bare(command)) for command in every if bare(command)] == []
    assert not any("shell(" in path.read_text() for path in files)


def test_bare_words_are_seen():
    (command,) = commands(
        'rule a:\n    shell:\n        "x {input} {output:q}"\n        " {threads}"\n'
    )
    assert command == "x {input} {output:q} {threads}" and bare(command) == ["input"]


PLAN = {"backbone": "tiny_clip", "datasets": ["synthetic_a/standard"], "methods": ["lora"]}
PLAN |= {"seeds": [0], "protocol": "embedded"}
ODD = ("it's a set", 'a "b"', "$(touch trap)", "a;b", "a\nb", "ab\n", "a{b}", "a*", "../a", "a`b`")


@pytest.fixture(scope="module")
def refused():
    """Gives the key in which a plan with these changes is refused."""
    schema = Draft202012Validator(read_yaml(SCHEMA))

    def key(change: Mapping[str, Any]) -> Any:
        paths = [error.absolute_path for error in schema.iter_errors({**PLAN, **change})]
        return paths[0][0] if paths else None

    return key


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_are_refused_by_the_schema(refused, odd):
    point = {"dataset": "synthetic_a/standard", "parameter": "lr", "values": [0.1]}
    swept = {**point, "method": "lora"}
    for key, value in (
        ("datasets", [f"{odd}/standard"]),
        ("datasets", [f"synthetic_a/{odd}"]),
        ("methods", [odd]),
        ("methods", [{"datasets": ["a/b"], "methods": [odd]}]),
        ("comparison", {"baseline": f"lora/{odd}"}),
        ("sweeps", {odd: swept}),
        ("sweeps", {"one": {**swept, "method": odd}}),
        ("sweeps", {"one": {**swept, "values": [odd]}}),
        ("released_selection", {"dataset": f"a/{odd}", "methods": ["lora"]}),
    ):
        assert refused({key: value}) == key, value
    if odd != "../a":
        assert refused({"results": odd}) == "results"


def test_wildcards_in_input_files_are_refused(refused):
    assert refused({"checkpoints": {"tiny_clip": "/a{b}"}}) == "checkpoints"
    assert refused({"dataset_options": {"a": {"phrases": "a\nb"}}}) == "dataset_options"


def test_usual_names_are_not_refused(refused):
    for folder in ("results", "/data/me@uni/run=1/a+b,c", "../größer/x-1_2.3"):
        assert refused({"results": folder}) is None
    for path in ("/my data/it's.safetensors", "a*"):
        assert refused({"checkpoints": {"tiny_clip": path}, "roots": {"a": path}}) is None


def test_what_is_odd_is_named():
    odd = {"datasets": ["""it's a "set"/standard"""]}
    message = r"^plan\.yaml: datasets\.0: .*a .set.*does not match.*\(dataset/split, e\.g\."
    with pytest.raises(PedbenchError, match=message):
        check_config({**PLAN, **odd}, "plan.yaml")


# Tensors.


class Trap:
    """Pickles into a call that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def header(text: str, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text.encode()


META = '"__metadata__": {"pedbench": "{}"}'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        header("{" + META + "}", 2**63),
        header("{" + META + ', "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
        header(
            "{" + META + f', "a": {{"dtype": "F32", "shape": [{2**62}], "data_offsets": [0, 4]}}}}'
        ),
        header("{" + META + ', "a": {"dtype": "OBJ", "shape": [], "data_offsets": [0, 0]}}'),
        header("[1, 2]"),
        header('{"__metadata__": []}'),
        header(DEEP),
        header('{"__metadata__": {"pedbench": "' + DEEP + '"}}'),
        header('{"a": ' + "9" * 5000 + "}"),
        b"",
        b"\0" * 7,
    ],
)
def test_malicious_tensor_files_are_named(tmp_path, data):
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with pytest.raises(PedbenchError, match=r"adapter\.safetensors: not a pedbench tensor file"):
        load_tensors(path)


def test_a_pickle_by_the_name_of_tensors_runs_nothing(tmp_path):
    path, trap = tmp_path / "adapter.safetensors", tmp_path / "trap"
    torch.save({"a": Trap(trap)}, path)
    for data in (pickle.dumps(Trap(trap)), path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(PedbenchError, match="not a pedbench tensor file"):
            load_tensors(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 3, dtype=torch.float64)}, r"float64 does not fit .*float32"),
        ({"weight": torch.zeros(3, 2)}, r"\(3, 2\) float32 does not fit the model \(\(2, 3\)"),
        ({"../../weight": torch.zeros(1)}, r"'\.\./\.\./weight' .*no such tensor"),
        ({"weight": None}, "has no 'weight'.*another method"),
    ],
)
def test_tensors_of_something_else_are_refused(tmp_path, change, message):
    model = nn.Linear(3, 2)
    tensors = {**model.state_dict(), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(PedbenchError, match=rf"^{tmp_path}/a: .*{message}"):
        load_trained(model, tensors, tmp_path / "a")


@pytest.mark.parametrize("name", ["optimiser/../../x", "optimiser/0", "optimiser/0/a/b"])
def test_odd_names_of_moments_are_refused(name):
    unused: Any = None
    with pytest.raises(PedbenchError, match=f"'{name}' is no tensor of an optimiser"):
        load_optimiser(unused, {name: torch.zeros(1)})


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    kept = Checkpoints(tmp_path / "seed0/checkpoint", "run")
    kept.save({"model/a": torch.zeros(2)}, {"stage": 0, "step": 1})
    assert kept.load() is not None
    return kept


def test_a_replaced_checkpoint_is_refused(checkpoints):
    """Whole, of the same name and shape, and not the one that was noted."""
    state = checkpoints.folder / "state-0-1.safetensors"
    save_tensors(state, {"model/a": torch.ones(2)}, {"stage": 0, "step": 1})
    with pytest.raises(PedbenchError, match=r"state-0-1\.safetensors: .*its checksum is not"):
        checkpoints.load()


@pytest.mark.parametrize("file", ["../../other.safetensors", "{}/other.safetensors", "", ".", "x"])
def test_a_pointer_leads_nowhere_else(checkpoints, tmp_path, file):
    other = tmp_path / "other.safetensors"
    save_tensors(other, {"model/a": torch.ones(2)}, {"stage": 0, "step": 1})
    good = read_json(checkpoints.pointer)
    aims = {"file": file.format(tmp_path), "sha256": digest_of(other)}
    write_json(checkpoints.pointer, {**good, **aims})
    with pytest.raises(
        PedbenchError, match=r"latest\.json: checkpoint is corrupt.*delete the fold"
    ):
        checkpoints.load()
    state = checkpoints.folder / good["file"]
    state.unlink()
    state.symlink_to(other)
    write_json(checkpoints.pointer, {**good, "sha256": digest_of(other)})
    with pytest.raises(PedbenchError, match="checkpoint is corrupt"):
        checkpoints.load()


def digest_of(path: Path) -> str:
    from pedbench.files import file_sha256

    return file_sha256(path)


@pytest.mark.parametrize("pointer", [{}, [], {"run": "run"}, {"run": "run", "file": None}, 3])
def test_a_damaged_pointer_is_named(checkpoints, pointer):
    write_json(checkpoints.pointer, pointer)
    with pytest.raises(PedbenchError, match=r"latest\.json: checkpoint is corrupt"):
        checkpoints.load()


def test_a_program_among_weights_is_not_run(tmp_path):
    """An archive that looks like TorchScript from outside and like a pickle to torch."""
    path, trap = tmp_path / "ViT-B-16.pt", tmp_path / "trap"
    torch.save({"a": torch.zeros(1), "b": Trap(trap)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ViT-B-16/sub/constants.pkl", b"")
    with pytest.raises(PedbenchError, match="holds programs .*not the file that OpenAI released"):
        load_backbone("ViT-B-16", path)
    assert not trap.exists()


# Manifests and JSON.


def test_deep_and_huge_json_is_named(tmp_path):
    for number, text in enumerate((DEEP, '{"a": ' * 50_000, "1" * 5000, "\x00", "\ud800")):
        path = tmp_path / f"{number}.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(PedbenchError, match=rf"{number}\.json: not valid JSON"):
            read_json(path)


@pytest.mark.parametrize(
    "meta",
    [
        DEEP,
        "3",
        "{}",
        '{"attributes": 3}',
        '{"attributes": [{"name": "a", "evil": 1}]}',
        '{"attributes": [], "dataset": "a", "root": 3, "digest": "x"}',
        '{"attributes": [], "dataset": "a", "root": "a", "digest": "x", "novel": [1]}',
    ],
)
def test_malicious_manifests_are_named(tmp_path, meta):
    path, table = tmp_path / "a.parquet", pa.table({"image": ["a.png"]})
    pq.write_table(table.replace_schema_metadata({KEY: meta.encode()}), path)
    with pytest.raises(PedbenchError, match=r"a\.parquet: not a readable manifest"):
        read_manifest(path)


def test_an_object_in_a_table_s_schema_is_not_made(tmp_path):
    """Arrow's extension types once were pickles."""
    trap = tmp_path / "trap"
    kind = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    kind[b"ARROW:extension:metadata"] = pickle.dumps(Trap(trap))
    table = pa.table([pa.array([1])], pa.schema([pa.field("a", pa.int64(), metadata=kind)]))
    pq.write_table(table, tmp_path / "a.parquet")
    assert isinstance(pq.read_table(tmp_path / "a.parquet").to_pandas(), pd.DataFrame)
    assert not trap.exists()


def test_names_in_foreign_folders_are_told_printably(tmp_path, manifest):
    from conftest import NoiseDataset

    dataset = NoiseDataset()
    dataset.generate(tmp_path, {})
    (tmp_path / "evil\x1b[2J\u202e.png").write_bytes(b"")
    found = examine("noise", dataset, tmp_path, {}, look=lambda path: None)
    (told,) = [remark for remark in found.remarks if "evil" in remark]
    assert r"evil\x1b[2J\u202e.png" in told and told.isprintable()


# Secrets and other users of the machine.


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("http://me:s3cret@host:5000/a", "http://host:5000/a"),
        ("https://s3cret@host/a?key=s3cret#s3cret", "https://host/a"),
        ("http://me:pa/s3cret#x@host", "http://host"),
        ("http://me:p@s3cret@host/a@b", "http://host/a@b"),
        (
            "postgresql+psycopg2://me:s3cret@host/db?password=s3cret",
            "postgresql+psycopg2://host/db",
        ),
        ("sqlite:////home/me@uni/a.db", "sqlite:////home/me@uni/a.db"),
        ("/home/me@uni/mlflow.db", "/home/me@uni/mlflow.db"),
        ("", ""),
    ],
)
def test_addresses_are_shown_without_secrets(address, seen):
    assert shown(address) == seen
    assert "s3cret" not in without_secrets(f"cannot open '{address}'", address)


def test_secrets_in_other_words_are_left_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    monkeypatch.setenv("HF_TOKEN", "")
    address = "http://me:s%40cret@host/?key=k%20y"
    said = without_secrets("s@cret, s%40cret, k y, k%20y, t0ken: no", address)
    assert said == "***, ***, ***, ***, ***: no"


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path, monkeypatch):
    """Everybody writes into the folder of temporary files."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / f"pedbench-gpu-{os.getuid()}-0.lock").symlink_to(mine)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    message = r"gpu-\d+-0\.lock: cannot be used.*set TMPDIR"
    with pytest.raises(PedbenchError, match=message), own_gpu(tmp_path):
        pass
    assert mine.read_text() == "precious"
