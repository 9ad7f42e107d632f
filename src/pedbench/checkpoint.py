"""Checkpoints and adapters: tensors in safetensors, everything else in JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pedbench.contracts import PedbenchError
from pedbench.files import file_sha256, read_json, write_atomic, write_json

MOMENT = re.compile(r"optimiser/(\d+)/(\w+)")
ELSEWHERE = "the adapter belongs to another method, variant or backbone"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write atomically; ``meta`` travels as JSON in the file's header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain, {"pedbench": json.dumps(meta, sort_keys=True)})
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def load_tensors(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises PedbenchError naming the file when it is missing or damaged, or when its bytes do not
    have the ``sha256`` that is asked for."""
    try:
        data = path.read_bytes()
        if sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise ValueError("its checksum is not the one noted when it was written")
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        meta = json.loads(header["__metadata__"]["pedbench"])
        return load(data), meta
    except FileNotFoundError:
        raise PedbenchError(f"{path}: no such file") from None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PedbenchError(
            f"{path}: not a pedbench tensor file, changed or truncated ({error}); delete the "
            f"folder {path.parent} and run again"
        ) from error


class Trained:
    """What training changes in a model: the trained tensors and the buffers it touches."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.buffers = {n: b.clone() for n, b in self._persistent_buffers().items()}

    def _persistent_buffers(self) -> dict[str, Tensor]:
        kept = self.model.state_dict(keep_vars=True)
        return {n: b for n, b in self.model.named_buffers() if n in kept}

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the trained tensors and of every buffer that moved since construction."""
        parameters = dict(self.model.named_parameters())
        state = {name: parameters[name].detach().clone() for name in self.names}
        for name, buffer in self._persistent_buffers().items():
            if not torch.equal(buffer, self.buffers[name]):
                state[name] = buffer.detach().clone()
        return state


def load_trained(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put trained tensors back. Raises PedbenchError when they do not fit ``model``, or are not
    all that trains in it."""
    own = model.state_dict(keep_vars=True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in tensors:
            raise PedbenchError(f"{path}: has no '{name}'; {ELSEWHERE}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            found = _kind(own[name]) if name in own else "no such tensor"
            if found != _kind(tensor):
                raise PedbenchError(
                    f"{path}: '{name}' {_kind(tensor)} does not fit the model ({found}); "
                    f"{ELSEWHERE}"
                )
            own[name].copy_(tensor)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class Checkpoints:
    """The latest resumable state in a folder: a tensor file, then the pointer that names it."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self.pointer = folder / "latest.json"

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        old = set(self.folder.glob("state-*.safetensors"))
        path = self.folder / f"state-{meta['stage']}-{meta['step']}.safetensors"
        save_tensors(path, tensors, meta)
        write_json(self.pointer, {"run": self.run, "file": path.name, "sha256": file_sha256(path)})
        for stale in old - {path}:
            stale.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """None when there is nothing of this run to resume. Raises PedbenchError on damage: only
        the file that was noted, with the bytes that were noted, is read."""
        if not self.pointer.is_file():
            return None
        latest = read_json(self.pointer)
        try:
            run, file, sha256 = (str(latest[key]) for key in ("run", "file", "sha256"))
        except (KeyError, TypeError):
            run, file, sha256 = self.run, "", ""
        if run != self.run:
            return None
        path = self.folder / file
        if path not in self.folder.glob("state-*.safetensors") or path.is_symlink():
            raise PedbenchError(
                f"{self.pointer}: checkpoint is corrupt ('{file}' is no state in its folder); "
                f"delete the folder {self.folder} to train this seed from its start"
            )
        return load_tensors(path, sha256)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments under flat names."""
    return {
        f"optimiser/{index}/{key}": torch.as_tensor(value)
        for index, moments in optimiser.state_dict()["state"].items()
        for key, value in moments.items()
        if value is not None
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put them back. Raises PedbenchError for a name that `optimiser_tensors` does not give."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            found = MOMENT.fullmatch(name)
            if found is None:
                raise PedbenchError(f"'{name}' is no tensor of an optimiser; delete the checkpoint")
            state.setdefault(int(found[1]), {})[found[2]] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
