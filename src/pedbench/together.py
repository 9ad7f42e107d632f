"""What the processes of one training do together, so that it is the training of one process.

Each shows its share of a batch to the model. The outputs of all are gathered, every process
computes the loss of the whole batch and differentiates it by its own outputs alone, and the sum of
the processes' gradients is that of the batch. docs/decisions/processes.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pedbench.contracts import Output, PedbenchError
from pedbench.launch import MEETING, processes

PATIENCE = timedelta(minutes=30)  # of a process that waits for another, which may be writing


def meet() -> None:
    """Let the processes of this training find each other; nothing where there is one."""
    if processes() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        place, rank = os.environ.get(MEETING), int(os.environ["RANK"])  # torchrun has its own place
        dist.init_process_group(backend, place, PATIENCE, rank=rank, world_size=processes())


def leave() -> None:
    """The end of what `meet` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Team:
    """The ``size`` processes of a training, of which this is number ``rank``. Each method but
    `share` must be called by all of them alike, and is nothing to a single one."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank

    def shares(self, count: int) -> list[range]:
        """Of ``count`` things each process's: consecutive, and none has two more than another."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        return [range(*pair) for pair in zip(edges, edges[1:], strict=False)]

    def share(self, things: Tensor) -> Tensor:
        """This process's part of ``things``."""
        mine = self.shares(len(things))[self.rank]
        return things[mine.start : mine.stop]

    def gather(self, own: Tensor, counts: list[int]) -> list[Tensor]:
        """The rows of every process, ``counts`` of them, each the shape of those of ``own``."""
        if self.size == 1:
            return [own]
        room = own.new_zeros(max(counts), *own.shape[1:])
        room[: len(own)] = own
        rooms = [torch.empty_like(room) for _ in counts]
        dist.all_gather(rooms, room)
        return [room[:count] for room, count in zip(rooms, counts, strict=True)]

    def whole(self, output: Output, count: int) -> Output:
        """The output for a batch of ``count`` images from that for this process's share, whose
        rows alone receive gradients; numbers without rows do so in the first process.

        Raises PedbenchError for a tensor that has not one row per image.
        """
        if self.size == 1:
            return output
        counts = [len(share) for share in self.shares(count)]

        def of_all(name: str, own: Tensor) -> Tensor:
            if own.ndim == 0:
                return own if self.rank == 0 else own.detach()
            if len(own) != counts[self.rank]:
                raise PedbenchError(
                    f"the output's '{name}' {tuple(own.shape)} has not one row for each of "
                    f"{counts[self.rank]} images, so several processes cannot share a batch: train "
                    "with --processes 1"
                )
            rows = self.gather(own.detach(), counts)
            rows[self.rank] = own
            return torch.cat(rows)

        extras = {name: of_all(name, own) for name, own in output.extras.items()}
        features = None if output.features is None else of_all("features", output.features)
        return Output(of_all("logits", output.logits), extras, features)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over the processes in the place of each tensor."""
        if self.size > 1 and (kept := list(tensors)):
            flat = torch.cat([tensor.flatten() for tensor in kept])
            dist.all_reduce(flat)
            for tensor, total in zip(kept, flat.split([t.numel() for t in kept]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's value in the place of each tensor."""
        for tensor in tensors if self.size > 1 else ():
            value = tensor.contiguous()
            dist.broadcast(value, 0)
            tensor.copy_(value)

    def largest(self, number: int) -> int:
        """Of the processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def in_batches(self, count: int, size: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """``compute(positions)`` of ``count`` rows, ``size`` at a time, each batch in one process;
        all rows in every one."""
        batches = torch.arange(count).split(size)
        shares = self.shares(len(batches))
        mine = shares[self.rank]
        # who has no batch computes one to know the shape
        found = [compute(batch) for batch in batches[mine.start : mine.stop] or batches[:1]]
        rows = [sum(len(batches[i]) for i in share) for share in shares]
        return torch.cat(self.gather(torch.cat(found)[: rows[self.rank]], rows))

    def share_statistics(self, model: nn.Module) -> None:
        """Let batch-norms take the statistics of a whole batch: on GPUs torch's, which knows no
        others, elsewhere `whole_batch_norm`. Which of them train is still asked of ``model``; a
        single process lets them be what they were."""
        norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        for norm in norms:
            vars(norm).pop("forward", None)  # of an earlier stage
            if self.size == 1:
                continue
            if next(model.parameters()).is_cuda:
                twin = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # with the same tensors
                vars(norm)["forward"] = partial(_by_twin, twin, norm)
            else:
                vars(norm)["forward"] = partial(whole_batch_norm, norm)


def _by_twin(twin: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    return twin.train(norm.training)(x)


class _Sum(torch.autograd.Function):
    """Over the processes; what each does with the sum comes back to all."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def whole_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm(x (B, C, ...))``, whose mean and variance in training are those of the rows of all
    processes; computed in float32."""
    if not norm.training:
        plain: Any = type(norm)
        return plain.forward(norm, x)
    rows = x.movedim(1, -1).float()
    inner = tuple(range(rows.ndim - 1))
    count = x.numel() // x.shape[1]
    sums = _Sum.apply(torch.cat([rows.sum(inner), rows.new_tensor([count])]))
    total = sums[-1].detach()
    centred = rows - sums[:-1] / total
    variance = _Sum.apply(centred.square().sum(inner)) / total
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None and norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        unbiased = variance * total / (total - 1)
        norm.running_mean.lerp_((sums[:-1] / total).detach(), norm.momentum)
        norm.running_var.lerp_(unbiased.detach(), norm.momentum)
    y = centred * (variance + norm.eps).rsqrt()
    if norm.affine:
        y = y * norm.weight + norm.bias
    return y.movedim(-1, 1).to(x.dtype)
