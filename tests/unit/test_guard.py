"""The torchvision guard, in fresh interpreters: what it does is done on the first import."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_pedbench_imports_no_torch() -> None:
    run("import sys, pedbench; assert 'torch' not in sys.modules; assert pedbench.__version__")


def test_torchvision_imports_and_the_guard_leaves() -> None:
    run(
        "import sys, pedbench, torchvision\n"
        "import torch\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
        "names = [type(finder).__name__ for finder in sys.meta_path]\n"
        "assert 'TorchvisionGuard' not in names, names\n"
    )


def test_guard_covers_third_parties() -> None:
    run("import pedbench, open_clip")


FAKE = """
import sys, types
from pathlib import Path
package = Path({folder!r}) / "torchvision"
package.mkdir()
(package / "__init__.py").write_text("real = True")
(package / "_C.so").write_text("no library")
sys.path.insert(0, {folder!r})
import pedbench, torch
{before}
import torchvision
assert torchvision.real
{after}
"""


def test_operators_are_declared_where_the_extension_fails(tmp_path) -> None:
    """And calling one raises instead of giving something wrong."""
    after = (
        "try:\n"
        "    torch.ops.torchvision.nms(torch.ones(1, 4), torch.ones(1), 0.5)\n"
        "except NotImplementedError:\n"
        "    print('raised')\n"
    )
    assert "raised" in run(FAKE.format(folder=str(tmp_path), before="", after=after))


def test_nothing_is_declared_where_the_extension_loads(tmp_path) -> None:
    """A second declaration of the extension's operators would abort the process."""
    before = (
        "def load_library(path):\n"
        "    library = torch.library.Library('torchvision', 'DEF')\n"
        "    library.define('nms(Tensor a) -> Tensor')\n"
        "    torch.keep = library\n"
        "torch.ops.load_library = load_library\n"
    )
    after = "print(torch.ops.torchvision.nms.default._schema)\n"
    out = run(FAKE.format(folder=str(tmp_path), before=before, after=after))
    assert "nms(Tensor a)" in out
    assert "iou_threshold" not in out


@pytest.mark.parametrize("name", ["pedbench.contracts", "pedbench.paths"])
def test_light_modules_stay_light(name: str) -> None:
    run(f"import sys, {name}; assert 'torch' not in sys.modules")
