"""Texts with learned tokens, laid out so that what they share is computed once.

Under the causal mask a token never sees what follows. So texts that begin alike, as those with one
learned context do, share their beginning's tokens, and none needs padding to another's length:
a pack is the tree of its texts' prefixes in one row of tokens, and a mask shows every token the
branch that leads to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pedbench.contracts import PedbenchError
from pedbench.nn.backbone import Backbone
from pedbench.nn.tokenizer import Tokenizer

ClassPosition = Literal["end", "middle", "front"]

_PACK = 128  # tokens of a pack; longer ones spend more on attention than sharing saves


def learned(index: int) -> int:
    """The id that stands for learned token ``index`` in a sequence of `PackedTexts`."""
    return -1 - index


def context_sequences(
    tokenizer: Tokenizer,
    names: Sequence[str],
    length: int,
    position: ClassPosition = "end",
    class_specific: bool = False,
) -> list[list[int]]:
    """A sequence per name: start, ``length`` learned tokens with the name at ``position`` among
    them (``middle``: behind the first half, rounded down), full stop, end-of-text.

    The names share the learned tokens 0 to ``length`` - 1, or name i has those from
    i * ``length`` on.
    """
    stop, sequences = tokenizer.encode("."), []
    before = {"end": length, "middle": length // 2, "front": 0}[position]
    for number, name in enumerate(names):
        first = number * length if class_specific else 0
        context = [learned(first + k) for k in range(length)]
        text = [*context[:before], *tokenizer.encode(name), *context[before:], *stop]
        sequences.append([tokenizer.sot, *text, tokenizer.eot])
    return sequences


class ContextTexts(nn.Module):
    """Names in a learned context (Zhou et al., "Learning to Prompt for Vision-Language Models",
    IJCV 2022, section 3.2): ``forward() -> (T, E)``, features not normalised.

    ``context``, ``(K, Wt)`` or ``(T, K, Wt)`` if ``class_specific``, starts from ``words``, which
    set K, or from N(0, 0.02) with K = ``length``. ``forward(shift (B, Wt)) -> (B, T, E)`` adds one
    vector per image to all of it.

    Raises PedbenchError without words and length, for words the backbone does not know and for
    texts it cannot hold.
    """

    def __init__(
        self,
        backbone: Backbone,
        names: Sequence[str],
        length: int,
        words: str = "",
        position: ClassPosition = "end",
        class_specific: bool = False,
    ) -> None:
        super().__init__()
        if not words and length < 1:
            raise PedbenchError(
                f"context_length {length}: without context_init, give it at least one vector"
            )
        copies = (len(names),) if class_specific else ()
        if words:
            ids = torch.tensor(backbone.tokenizer.encode(words))
            start = backbone.clip.token_embedding.weight[ids].detach()
        else:
            start = 0.02 * torch.randn(*copies, length, backbone.text_width)
        self.context = nn.Parameter(start.expand(*copies, *start.shape[-2:]).clone())
        sequences = context_sequences(
            backbone.tokenizer, names, start.shape[-2], position, class_specific
        )
        self.texts = PackedTexts(backbone, sequences)

    def forward(self, shift: Tensor | None = None) -> Tensor:
        context = self.context.flatten(0, -2)
        return self.texts(context if shift is None else context + shift[:, None])


class PackedTexts(nn.Module):
    """The text tower over ``T`` token sequences, each from start to end-of-text.

    A token is an id of the tokenizer, or ``learned(k)``. With ``prompts`` = P, P deep prompts
    stand behind the start token; the sequences leave them out, but the positions count them.

    Raises PedbenchError for a sequence that is longer than the backbone's context.
    """

    order: Tensor

    def __init__(
        self, backbone: Backbone, sequences: Sequence[Sequence[int]], prompts: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        longest = prompts + max(len(s) for s in sequences)
        if longest > backbone.context_length:
            raise PedbenchError(
                f"a text takes {longest} tokens with its context, {backbone.name} reads "
                f"{backbone.context_length}: use fewer context tokens or shorter phrases"
            )
        # neighbours in this order share most
        alike = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
        trees = [_Tree()]
        for i in alike:
            if trees[-1].ends and trees[-1].size_with(sequences[i]) > _PACK:
                trees.append(_Tree())
            trees[-1].add(sequences[i])
        self.packs = nn.ModuleList(_Pack(backbone, tree, prompts) for tree in trees)
        place = {i: at for at, i in enumerate(alike)}
        order = torch.tensor([place[i] for i in range(len(alike))])
        self.register_buffer("order", order, persistent=False)

    def forward(self, tokens: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Features of the end-of-text tokens, not normalised: ``(T, E)``.

        ``tokens``: the learned tokens ``(K, Wt)``, or of each image ``(B, K, Wt)``, then the result
        is ``(B, T, E)``. ``prompts (D, P, Wt)``: deep prompts of the first D layers, the first
        ones without positions (see `Backbone.run_blocks`).
        """
        images = tokens is not None and tokens.ndim == 3
        if tokens is not None and not images:
            tokens = tokens[None]
        packs = [pack(self.backbone, tokens, prompts) for pack in self.packs]
        features = torch.cat(packs, dim=1)[:, self.order]
        return features if images else features[0]


class _Tree:
    """Prefixes of sequences. A node is a token behind its parent; parents come first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.branches: list[list[int]] = []  # of each node: the nodes from the root to it
        self.ends: list[int] = []  # of each sequence: its last node
        self._nodes: dict[tuple[int, ...], int] = {}

    def size_with(self, sequence: Sequence[int]) -> int:
        """Nodes after `add`."""
        prefixes = (tuple(sequence[:n]) for n in range(1, len(sequence) + 1))
        return len(self.tokens) + sum(prefix not in self._nodes for prefix in prefixes)

    def add(self, sequence: Sequence[int]) -> None:
        branch: list[int] = []
        for place, token in enumerate(sequence):
            node = self._nodes.setdefault(tuple(sequence[: place + 1]), len(self.tokens))
            branch = [*branch, node]
            if node == len(self.tokens):
                self.tokens.append(token)
                self.branches.append(branch)
        self.ends.append(branch[-1])


class _Pack(nn.Module):
    """One row of tokens: the nodes of ``tree``, of which the first is the start of all texts."""

    fixed: Tensor
    positions: Tensor
    mask: Tensor
    slots: Tensor
    columns: Tensor
    ends: Tensor

    def __init__(self, backbone: Backbone, tree: _Tree, prompts: int) -> None:
        super().__init__()
        clip, size = backbone.clip, len(tree.tokens)
        learnt = [at for at, token in enumerate(tree.tokens) if token < 0]
        fixed = clip.token_embedding.weight[torch.tensor(tree.tokens).clamp(min=0)].detach()
        fixed[learnt] = 0.0
        depths = [len(branch) - 1 for branch in tree.branches]
        places = torch.tensor([depth + prompts if depth else 0 for depth in depths])
        seen = torch.zeros(size, size, dtype=torch.bool)
        for node, branch in enumerate(tree.branches):
            seen[node, branch] = True
        row = torch.tensor([0, *[0] * prompts, *range(1, size)])  # prompts: as the start
        mask = torch.zeros(len(row), len(row)).masked_fill(~seen[:, row][row], -torch.inf)
        self.prompts = prompts
        for name, value in {
            "fixed": fixed,
            "positions": clip.positional_embedding[places].detach(),
            "mask": mask,
            "columns": torch.tensor(learnt, dtype=torch.long),
            "slots": torch.tensor([-1 - tree.tokens[at] for at in learnt], dtype=torch.long),
            "ends": torch.tensor(tree.ends),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, backbone: Backbone, tokens: Tensor | None, prompts: Tensor | None) -> Tensor:
        x = self.fixed[None]
        if tokens is not None:
            x = x.expand(len(tokens), -1, -1).index_add(1, self.columns, tokens[:, self.slots])
        if prompts is not None:
            first = prompts[0] + backbone.clip.positional_embedding[1 : 1 + self.prompts]
            prompts = torch.cat([first[None], prompts[1:]])
        out = backbone.run_blocks(
            "text", x + self.positions, prompts, mask=self.mask, read=self.ends
        )
        return backbone.project_text(out)
