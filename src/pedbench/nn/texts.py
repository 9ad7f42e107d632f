"""Texts with learned tokens, laid out so that what they share is computed once.

Prompt learners put the same learned context in front of every attribute's name. Under the causal
mask a token never sees what follows, so the shared beginning is the same in all texts and needs
one pass, not one per text; and one text needs no padding to another's length. A pack therefore
holds the shared beginning once and behind it every text's own rest; a mask keeps the rests apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pedbench.contracts import PedbenchError
from pedbench.nn.backbone import Backbone

_PACK = 256  # tokens of a pack; longer ones spend more on attention than sharing saves


def learned(index: int) -> int:
    """The id that stands for learned token ``index`` in a sequence of `PackedTexts`."""
    return -1 - index


class PackedTexts(nn.Module):
    """The text tower over ``T`` token sequences, each from start to end-of-text.

    A token is an id of the tokenizer, or ``learned(k)``. With ``prompts`` = P, P deep prompts
    stand behind the start token; the sequences leave them out, but the positions count them.

    Raises PedbenchError for a sequence that is longer than the backbone's context.
    """

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
        shared = _common(sequences)
        packs, rests, length = [], [], shared
        for sequence in sequences:
            if rests and length + len(sequence) - shared > _PACK:
                packs.append(rests)
                rests, length = [], shared
            rests.append(sequence[shared:])
            length += len(sequence) - shared
        self.packs = nn.ModuleList(
            _Pack(backbone, sequences[0][:shared], rests, prompts) for rests in [*packs, rests]
        )

    def forward(self, tokens: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Features of the end-of-text tokens, not normalised: ``(T, E)``.

        ``tokens``: the learned tokens ``(K, Wt)``, or of each image ``(B, K, Wt)``, then the result
        is ``(B, T, E)``. ``prompts (D, P, Wt)``: deep prompts of the first D layers, the first
        ones without positions (see `Backbone.run_blocks`).
        """
        images = tokens is not None and tokens.ndim == 3
        if tokens is not None and not images:
            tokens = tokens[None]
        features = torch.cat([pack(self.backbone, tokens, prompts) for pack in self.packs], dim=1)
        return features if images else features[0]


class _Pack(nn.Module):
    """One row of tokens: ``shared``, then each of ``rests``."""

    fixed: Tensor
    positions: Tensor
    owner: Tensor
    slots: Tensor
    columns: Tensor
    ends: Tensor

    def __init__(
        self,
        backbone: Backbone,
        shared: Sequence[int],
        rests: Sequence[Sequence[int]],
        prompts: int,
    ) -> None:
        super().__init__()
        ids, places, owner, ends = list(shared), [*range(len(shared))], [0] * len(shared), []
        for number, rest in enumerate(rests, start=1):
            ids += rest
            places += range(len(shared), len(shared) + len(rest))
            owner += [number] * len(rest)
            ends.append(len(ids) - 1)
        token, place = torch.tensor(ids), torch.tensor(places)
        place[1:] += prompts  # they stand behind the start
        clip = backbone.clip
        embeddings = clip.token_embedding.weight[token.clamp(min=0)].detach()
        self.prompts = prompts
        for name, value in {
            "fixed": embeddings * (token >= 0)[:, None].to(embeddings),
            "positions": clip.positional_embedding[place].detach(),
            "owner": torch.tensor(owner),
            "columns": (token < 0).nonzero()[:, 0],
            "slots": -1 - token[token < 0],
            "ends": torch.tensor(ends),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, backbone: Backbone, tokens: Tensor | None, prompts: Tensor | None) -> Tensor:
        x = self.fixed[None]
        if tokens is not None:
            x = x.expand(len(tokens), -1, -1).index_add(1, self.columns, tokens[:, self.slots])
        owner = self.owner
        if prompts is not None:
            first = prompts[0] + backbone.clip.positional_embedding[1 : 1 + self.prompts]
            prompts = torch.cat([first[None], prompts[1:]])
            owner = torch.cat([owner[:1], owner.new_zeros(self.prompts), owner[1:]])
        seen = (owner == 0) | (owner[:, None] == owner)
        mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, -torch.inf)
        out = backbone.run_blocks("text", x + self.positions, prompts, mask=mask, read=self.ends)
        return backbone.project_text(out)


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with; every sequence keeps at least its last one."""
    limit = min(len(s) for s in sequences) - 1
    different = (i for i in range(limit) if len({s[i] for s in sequences}) > 1)
    return next(different, limit)
