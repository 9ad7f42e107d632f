"""Sharing results: a bundle is complete, the same for the same results, and trusted in nothing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import fake_mixed_results, fake_results, finish

from pedbench.bundle import export_bundle, import_bundle
from pedbench.bundle.index import INDEX, commit_of, sha256_of
from pedbench.bundle.unpack import objection, too_large
from pedbench.cli import main
from pedbench.config import ROOT
from pedbench.contracts import PedbenchError
from pedbench.files import canonical_json, read_json, write_json
from pedbench.manifest import read_manifest
from pedbench.plan import runs_of
from pedbench.results import (
    read_features,
    read_plan,
    read_predictions,
    read_rankings,
    read_run,
)

SKILL = {"zero_shot": 0.2, "linear_probe": 1.0, "promptpar/deep": 1.5, "promptpar/shallow": 1.2}
TEST = "runs/a/standard/linear_probe/default/seed0/predictions.test.parquet"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ours") / "results"
    finish(fake_results(root, skill=SKILL, seeds=(0, 1), images=40))
    rows = "dataset,split,method,variant,gflop\na,standard,linear_probe,default,1.5\n"
    (root / "cost.csv").write_text(rows + "a,standard,promptpar,deep,\n")
    return root


@pytest.fixture(scope="module")
def bundle(results, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "all.zip"
    export_bundle(results, out)
    return out


def contents(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, files: Mapping[str, bytes], listed: bool = True) -> Path:
    """A zip of ``files``, whose index is made to fit if ``listed``."""
    if listed:
        index = json.loads(files[INDEX])
        index["files"] = {
            name: {"sha256": sha256_of(data), "bytes": len(data)}
            for name, data in files.items()
            if name != INDEX
        }
        files = {**files, INDEX: canonical_json(index).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refused(bundle: Path, tmp_path: Path, message: str) -> None:
    """Importing ``bundle`` fails with ``message`` and leaves nothing anywhere."""
    imported = tmp_path / "imported"
    before = neighbours(tmp_path)
    with pytest.raises(PedbenchError, match=message) as caught:
        import_bundle(bundle, "lab", imported)
    assert bundle.name in str(caught.value)
    assert not imported.exists() or list(imported.iterdir()) == []
    assert neighbours(tmp_path) - before <= {imported}


def neighbours(folder: Path) -> set[Path]:
    return {*folder.glob("*"), *folder.parent.glob("*")}


def test_a_round_trip_gives_the_same_numbers(results, bundle, tmp_path):
    assert import_bundle(bundle, "lab", tmp_path)
    there = tmp_path / "lab"
    plan = read_plan(there)
    variants = [e["variant"] for e in plan["experiments"]]
    assert variants == 2 * ["default", "default", "deep", "shallow"]
    folders = [folder for _, _, folder in runs_of(plan)]
    assert len(folders) == 2 * (1 + 3 * 2)
    ours, theirs = (read_manifest(r / "manifests/a.parquet") for r in (results, there))
    for folder in folders:
        run = read_run(folder)
        twin = read_run(results / folder.relative_to(there))
        for subset in ("val", "test"):
            one, other = read_predictions(run, theirs, subset), read_predictions(twin, ours, subset)
            assert (one.probabilities == other.probabilities).all()
            assert (one.labels == other.labels).all() and (one.identity == other.identity).all()
    for name in ("long.parquet", "stats/vs_baseline.csv", "cost.csv", TEST):
        assert (there / name).read_bytes() == (results / name).read_bytes()


def test_it_says_what_it_is_and_holds_no_folder_of_its_maker(results, bundle):
    files = contents(bundle)
    index = json.loads(files[INDEX])
    assert index["commits"] == ["c0ffee"]
    assert commit_of({"commit": "c0ffee", "dirty": True}) == "c0ffee-dirty"
    assert index["format"] == 1 and index["protocols"] == [{"name": "embedded", "version": "1"}]
    assert (
        index["datasets"]["a"]["manifest_digest"]
        == read_manifest(results / "manifests/a.parquet").digest
    )
    assert {name: len(data) for name, data in files.items() if name != INDEX} == {
        name: known["bytes"] for name, known in index["files"].items()
    }
    assert {Path(name).suffix for name in files} == {".json", ".jsonl", ".csv", ".parquet"}
    for name, data in files.items():
        assert str(results.parent).encode() not in data, name
    assert read_manifest_bytes(files, "a").columns.tolist() == [
        *("image", "sha256", "identity", "label:hat", "label:bag", "label:a_b"),
        *("split:standard", "split:zero_shot"),
    ]


def read_manifest_bytes(files: Mapping[str, bytes], name: str) -> pd.DataFrame:
    return pq.read_table(pa.BufferReader(files[f"manifests/{name}.parquet"])).to_pandas()


def test_a_reader_computes_p_from_the_unpacked_bundle_alone(bundle, tmp_path):
    """The lines of docs/statistics.md, which do not know pedbench."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path)
    by_hand = (ROOT / "docs/statistics.md").read_text(encoding="utf-8").partition("## By hand")[2]
    start, bootstrap = re.findall(r"```python\n(.*?)```", by_hand, re.DOTALL)[1:3]
    tests = pd.read_csv(tmp_path / "stats/vs_baseline.csv").query("variant == 'deep'")
    assert len(tests) == 4
    for test in tests.to_dict("records"):
        names: dict[str, Any] = {}
        exec(start, names)
        place = f"a/{test['split']}"
        names |= {"results": tmp_path, "dataset": "a", "a": "promptpar/deep", "resamples": 200}
        names |= {key: test[key] for key in ("split", "metric", "unit")}
        names |= {"pairs": [(0, 0), (1, 1)]}
        names |= {"stream": [0, zlib.crc32(place.encode())]}
        exec(bootstrap, names)
        assert names["difference"] == pytest.approx(test["difference"], rel=1e-6)
        assert names["p"] == pytest.approx(test["p"], rel=1e-5)


def test_same_results_same_bytes(results, bundle, tmp_path):
    export_bundle(results, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == bundle.read_bytes()
    elsewhere = tmp_path / "moved/results"
    shutil.copytree(results, elsewhere)
    export_bundle(elsewhere, tmp_path / "moved.zip")
    assert (tmp_path / "moved.zip").read_bytes() == bundle.read_bytes()


def test_some_methods_and_adapters(results, tmp_path):
    out = tmp_path / "some.zip"
    export_bundle(results, out, ["linear_probe", "promptpar/deep"], adapters=True)
    files = contents(out)
    assert json.loads(files[INDEX])["variants"] == ["linear_probe/default", "promptpar/deep"]
    runs = {"/".join(name.split("/")[3:5]) for name in files if name.startswith("runs/")}
    assert runs == {"linear_probe/default", "promptpar/deep"}
    assert sum(name.endswith("adapter.safetensors") for name in files) == 2 * 2 * 2
    assert not any(name.startswith("stats/") for name in files)
    long = pq.read_table(pa.BufferReader(files["long.parquet"])).to_pandas()
    assert set(long["method"] + "/" + long["variant"]) == {"linear_probe/default", "promptpar/deep"}
    assert import_bundle(out, "some", tmp_path)


def test_what_is_not_in_the_plan_or_not_finished_is_not_exported(results, tmp_path):
    with pytest.raises(PedbenchError, match="no 'prompt_par'; did you mean 'promptpar'"):
        export_bundle(results, tmp_path / "x.zip", ["prompt_par"])
    with pytest.raises(PedbenchError, match="no results are here; run 'snakemake"):
        export_bundle(tmp_path / "none", tmp_path / "x.zip")
    seed = "runs/a/standard/promptpar/deep/seed1"
    for name, message in {
        f"{seed}/train.done.json": "not finished.*Only a finished plan",
        f"{seed}/predictions.val.parquet": "changed or missing since the run finished",
        f"{seed}/scores.val.json": "missing, or not of these predictions",
        "long.parquet": "not readable",
        "stats/vs_baseline.csv": "no statistics",
    }.items():
        broken = tmp_path / Path(name).name / "results"
        shutil.copytree(results, broken)
        (broken / name).unlink()
        for file in broken.glob("stats/*.csv") if name.startswith("stats") else ():
            file.unlink()
        with pytest.raises(PedbenchError, match=message):
            export_bundle(broken, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_a_refusal_travels_with_the_plan(results, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    variant = copy / "runs/a/standard/promptpar/shallow"
    digests = {read_run(folder).config["digest"] for folder in variant.glob("seed*")}
    for folder in variant.glob("seed*"):
        shutil.rmtree(folder)
    write_json(variant / "refused.json", {"reason": "no patches"})
    long = pd.read_parquet(copy / "long.parquet")
    long[~long["digest"].isin(list(digests))].to_parquet(copy / "long.parquet", index=False)
    export_bundle(copy, tmp_path / "b.zip")
    import_bundle(tmp_path / "b.zip", "lab", tmp_path)
    plan = read_plan(tmp_path / "lab")
    assert len(list(runs_of(plan))) == 2 * (1 + 3 * 2) - 2
    assert (tmp_path / "lab" / variant.relative_to(copy) / "refused.json").is_file()


def test_a_name_is_used_once(results, bundle, tmp_path):
    assert import_bundle(bundle, "lab", tmp_path)
    assert not import_bundle(bundle, "lab", tmp_path)
    other = tmp_path / "other.zip"
    export_bundle(results, other, ["zero_shot"])
    with pytest.raises(PedbenchError, match="lab: holds another bundle; import under another"):
        import_bundle(other, "lab", tmp_path)
    (tmp_path / "lab/cost.csv").write_text("")
    with pytest.raises(PedbenchError, match=r"cost.csv: changed or missing since it was imported"):
        import_bundle(bundle, "lab", tmp_path)
    for name in ("", "../lab", "a/b", ".lab", "lab:x"):
        with pytest.raises(PedbenchError, match="not a name"):
            import_bundle(bundle, name, tmp_path)


Change = Callable[[dict[str, bytes]], object]
HARMLESS = b"{}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.json", r"'../evil.json' leads out of its folder"),
        ("runs/../../evil.json", "leads out of its folder"),
        ("runs//evil.json", "leads out of its folder"),
        ("/etc/evil.json", "is an absolute path"),
        ("C:/evil.json", "odd characters"),
        ("runs\\..\\evil.json", "odd characters"),
        ("runs/evil\x1b[2J.json", "odd characters"),
        ("runs/evil.py", "is none of .json"),
        ("runs/evil", "is none of .json"),
        ("runs/", "leads out of its folder"),
        ("methods/evil.json", "in a folder that results do not have"),
        (f"{TEST}/evil.json", "is a file and a folder"),
        (TEST.replace("linear", "Linear"), "differs from another in its case only"),
    ],
)
def test_a_name_that_could_do_harm_is_refused(bundle, tmp_path, name, message):
    evil = pack(tmp_path / "evil.zip", {**contents(bundle), name: HARMLESS})
    refused(evil, tmp_path, message)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_only_plain_files_are_unpacked(bundle, tmp_path, kind):
    files = contents(bundle)
    evil = pack(tmp_path / "evil.zip", {**files, "runs/link.json": b"/etc/passwd"})
    with zipfile.ZipFile(evil) as archive:
        listed = {INDEX: archive.read(INDEX)}
    with zipfile.ZipFile(evil, "w") as archive:
        for name, data in {**files, **listed}.items():
            archive.writestr(name, data)
        info = zipfile.ZipInfo("runs/link.json")
        info.external_attr, info.create_system = (kind | 0o777) << 16, 3
        archive.writestr(info, b"/etc/passwd")
    refused(evil, tmp_path, "'runs/link.json' is a link or another special file")


def test_a_bomb_is_refused_before_it_is_unpacked(bundle, tmp_path):
    bomb = {**contents(bundle), "stats/bomb.csv": bytes(200_000_000)}
    refused(pack(tmp_path / "bomb.zip", bomb), tmp_path, "more than 100 times as many.*zip bomb")


@pytest.mark.parametrize(
    ("text", "rows", "columns", "codec", "message"),
    [
        ("x", 1_000_000, 21, "snappy", "has more than 20,000,000 values"),
        ("x" * 20_000, 100_000, 1, "snappy", "has more than 1,073,741,824 bytes of text"),
        ("x", 10, 1, "zstd", "is compressed with something else than SNAPPY"),
    ],
)
def test_a_table_that_would_exhaust_the_memory_is_refused(
    bundle, tmp_path, text, rows, columns, codec, message
):
    """A Parquet file of a few bytes can hold any number of equal values."""
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({f"c{n}": one for n in range(columns)}), stream, compression=codec)
    evil = pack(tmp_path / "evil.zip", {**contents(bundle), TEST: stream.getvalue().to_pybytes()})
    refused(evil, tmp_path, message)


def test_more_files_or_text_than_results_have_are_refused(bundle, tmp_path, monkeypatch):
    """Both would be read as a whole."""
    monkeypatch.setattr("pedbench.bundle.unpack.MEMBERS", 5)
    refused(bundle, tmp_path, "files, more than 5")
    monkeypatch.undo()
    monkeypatch.setattr("pedbench.bundle.unpack.TEXT", 100)
    refused(bundle, tmp_path, "has more than 100 bytes of text")


def test_a_second_name_is_refused():
    """Python 3.13 unpacks to the name in an extra field, others to the one that all tools show."""
    entry = zipfile.ZipInfo("runs/good.json")
    assert objection(entry) is None
    entry.filename = "../evil.json"
    assert objection(entry) == "has two names"


@pytest.mark.parametrize("data", [pickle.dumps([1]), b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]"])
def test_an_adapter_that_is_no_tensor_file_is_refused(bundle, tmp_path, data):
    name = "runs/a/standard/linear_probe/default/seed0/adapter.safetensors"
    evil = pack(tmp_path / "evil.zip", {**contents(bundle), name: data})
    refused(evil, tmp_path, f"{name} is no safetensors file")


@pytest.mark.parametrize("name", ["plan.json", f"{Path(TEST).parent}/config.json"])
@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b"1" * 5000, b"[[]]", b"3", b'{"experiments": {}}']
)
def test_json_of_another_shape_is_refused(bundle, tmp_path, name, text):
    refused(pack(tmp_path / "evil.zip", {**contents(bundle), name: text}), tmp_path, "refused")


def test_what_was_changed_after_the_export_is_refused(bundle, tmp_path):
    files = contents(bundle)
    one = files[TEST][:100] + bytes([files[TEST][100] ^ 1]) + files[TEST][101:]
    for name, changed, message in (
        ("changed", {**files, TEST: one}, "is not what bundle.json says"),
        ("longer", {**files, "cost.csv": files["cost.csv"] + b"\n"}, "is not what bundle.json"),
        ("more", {**files, "stats/more.csv": b""}, "'stats/more.csv' is not in its bundle.json"),
        ("less", {k: v for k, v in files.items() if k != TEST}, "but not in the zip"),
    ):
        refused(pack(tmp_path / f"{name}.zip", changed, listed=False), tmp_path, message)
    twice = pack(tmp_path / "twice.zip", files, listed=False)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(TEST, one)
    refused(twice, tmp_path, "is in it twice")


def test_a_damaged_or_foreign_file_is_refused(bundle, tmp_path):
    whole = bundle.read_bytes()
    middle = len(whole) // 2
    for name, data in {
        "cut.zip": whole[:middle],
        "flipped.zip": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "text.zip": b"hello",
    }.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, tmp_path, "not a readable zip.*get it again|refused")
    refused(tmp_path / "none.zip", tmp_path, "no such file")
    refused(pack(tmp_path / "foreign.zip", {"a.txt": b"a"}, False), tmp_path, "no bundle of pedb")


def edited(bundle: Path, path: Path, name: str, edit: Callable[[Any], object]) -> Path:
    files = contents(bundle)
    value = json.loads(files[name])
    edit(value)
    return pack(path, {**files, name: canonical_json(value).encode()}, listed=name != INDEX)


def test_an_index_is_checked(bundle, tmp_path):
    for number, (edit, message) in enumerate(
        (
            (
                lambda index: index.update(format=2),
                "of format 2, made with pedbench .*this is",
            ),
            (lambda index: index.pop("files"), "'files' is a required property"),
            (lambda index: index["files"][TEST].update(bytes=-1), "-1 is less than the minimum"),
            (lambda index: index["files"][TEST].update(sha256="x"), "does not match"),
        )
    ):
        refused(edited(bundle, tmp_path / f"{number}.zip", INDEX, edit), tmp_path, message)


def test_contents_fit_together(bundle, tmp_path):
    config = "runs/a/standard/linear_probe/default/seed0/config.json"

    def elsewhere(plan: dict[str, Any]) -> None:
        plan["experiments"][0]["variant"] = "../../../../../../results"

    for number, (name, edit, message) in enumerate(
        (
            (
                config,
                lambda c: c.update(method="lora"),
                "holds the run a/standard/lo",
            ),
            (
                config,
                lambda c: c.update(manifest_digest="x"),
                "is not the one that bu",
            ),
            (config, lambda c: c.pop("protocol"), "no 'protocol' in it"),
            ("plan.json", lambda plan: plan.pop("experiments"), "do not fit together"),
            ("plan.json", lambda plan: plan["comparison"].update(x=1), "do not fit together"),
            ("plan.json", elsewhere, "asks for .*which it does not have"),
        )
    ):
        refused(edited(bundle, tmp_path / f"{number}.zip", name, edit), tmp_path, message)
    files = contents(bundle)
    predictions = pq.read_table(pa.BufferReader(files[TEST])).slice(1)
    stream = pa.BufferOutputStream()
    pq.write_table(predictions, stream)
    evil = pack(tmp_path / "rows.zip", {**files, TEST: stream.getvalue().to_pybytes()})
    refused(evil, tmp_path, "its images or attributes are not those of the manifest")


def test_the_commands(results, tmp_path, capsys):
    out, imported = tmp_path / "all.zip", tmp_path / "imported"
    assert main(["export", "--results", str(results), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "14 runs of 4 variants" in said and f"sha256 {sha256_of(out)}" in said
    assert "a: unknown: there is no datasets/a.py" in said
    again = ["import", str(out), "--as", "lab", "--imported", str(imported)]
    assert main(again) == 0 and "unpacked" in capsys.readouterr().out
    assert main(again) == 0 and "holds this bundle already" in capsys.readouterr().out
    assert read_json(imported / "lab" / INDEX)["runs"] == 14
    out.write_bytes(b"")
    assert main([*again[:2], "--as", "other", *again[4:]]) == 1
    assert capsys.readouterr().err.startswith(f"pedbench: {out}: not a readable zip")


def test_sharing_imports_no_torch(results, tmp_path):
    code = (
        "import sys\nfrom pedbench.cli import main\n"
        f"main(['export', '--results', {str(results)!r}, '--out', {str(tmp_path / 'a.zip')!r}])\n"
        f"main(['import', {str(tmp_path / 'a.zip')!r}, '--as', 'lab'])\n"
        "main(['compare', 'linear_probe', 'lab:zero_shot', '--results', "
        f"{str(results)!r}])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


RETRIEVAL = "runs/r/reid/full/default/seed0"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, Path]:
    """Results of both tasks, and their bundle."""
    root = tmp_path_factory.mktemp("mixed")
    skill = {"zero_shot": 0.4, "full": 2.0}
    finish(fake_mixed_results(root / "results", skill=skill, seeds=(0,), images=20))
    export_bundle(root / "results", root / "mixed.zip")
    return root / "results", root / "mixed.zip"


def test_a_bundle_carries_features_rankings_and_what_decides_them(mixed, tmp_path):
    ours, bundle = mixed
    assert import_bundle(bundle, "lab", tmp_path)
    manifests = [read_manifest(root / "manifests/r.parquet") for root in (ours, tmp_path / "lab")]
    assert manifests[1].is_reid("reid") and set(manifests[1].rows["split:reid"]) == {"val", "test"}
    assert "camera" in manifests[1].rows
    assert "camera" not in read_manifest(tmp_path / "lab/manifests/a.parquet").rows
    runs = [read_run(root / RETRIEVAL) for root in (ours, tmp_path / "lab")]
    for subset in ("val", "test"):
        one, other = (read_features(r, m, subset) for r, m in zip(runs, manifests, strict=True))
        assert (one == other).all()
        one, other = (read_rankings(r, m, subset) for r, m in zip(runs, manifests, strict=True))
        np.testing.assert_array_equal(one.rankings.AP, other.rankings.AP)
        assert (one.rankings.top == other.rankings.top).all()


@pytest.mark.parametrize("name", ["rankings.test", "predictions.val"])
def test_retrieval_that_does_not_fit_its_manifest_is_refused(mixed, tmp_path, name):
    files, path = contents(mixed[1]), f"{RETRIEVAL}/{name}.parquet"
    table = pq.read_table(pa.BufferReader(files[path]))
    stream = pa.BufferOutputStream()
    pq.write_table(table.take(list(range(len(table)))[::-1]), stream)
    evil = pack(tmp_path / "evil.zip", {**files, path: stream.getvalue().to_pybytes()})
    refused(evil, tmp_path, "are not those of the manifest of r")
    gone = {other: data for other, data in files.items() if other != path}
    refused(pack(tmp_path / "gone.zip", gone), tmp_path, f"{name}.parquet: no such file")


def test_features_may_be_many_but_not_any_number(tmp_path, monkeypatch):
    monkeypatch.setattr("pedbench.bundle.unpack.VALUES", 100)
    monkeypatch.setattr("pedbench.bundle.unpack.BYTES", 8000)
    for images, message in ((10, None), (50, "has more than 8,000 bytes of values")):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(100 * images, np.float32)), 100)
        pq.write_table(pa.table({"feature": lists}), tmp_path / "features.parquet")
        assert too_large(tmp_path / "features.parquet") == message
    pq.write_table(pa.table({"other": lists}), tmp_path / "other.parquet")
    assert too_large(tmp_path / "other.parquet") == "has more than 100 values"
