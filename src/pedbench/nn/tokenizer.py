"""CLIP's byte-pair tokenizer, whole or cut down to the words a small model knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pedbench.contracts import PedbenchError

CONTEXT_LENGTH = 77  # of OpenAI's CLIP
PADDING = 0  # original id that fills a prompt after end-of-text
_ROUND = 8  # prompts are padded to a multiple of this


@lru_cache(maxsize=1)
def _clip_bpe() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # costs seconds, hence here

    return SimpleTokenizer()


def _words(text: str) -> list[str]:
    bpe = _clip_bpe()
    return bpe.pat.findall(bpe.clean_fn(text))


def build_vocabulary(texts: Iterable[str]) -> list[int]:
    """The original BPE ids that ``texts`` (words or whole sentences) need, sorted.

    Start, end and padding are always in it. Sorting keeps the order of the ids, so the place of
    an id in the list can replace the id and end-of-text is still the largest.
    """
    bpe = _clip_bpe()
    ids = {PADDING, bpe.sot_token_id, bpe.eot_token_id}
    for text in texts:
        ids.update(bpe.encode(text))
    return sorted(ids)


class Tokenizer:
    """Texts to token ids; with a ``vocabulary`` (see `build_vocabulary`) to places in it."""

    def __init__(
        self, vocabulary: Sequence[int] | None = None, context_length: int = CONTEXT_LENGTH
    ) -> None:
        bpe = _clip_bpe()
        original = range(bpe.vocab_size) if vocabulary is None else vocabulary
        if list(original) != sorted(set(original)):
            raise PedbenchError("the vocabulary must list original BPE ids in ascending order")
        self._row = {token: row for row, token in enumerate(original)}
        self.vocab_size = len(original)
        self.context_length = context_length
        self.sot, self.eot = self._row[bpe.sot_token_id], self._row[bpe.eot_token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` without start and end. Raises PedbenchError on unknown words."""
        bpe = _clip_bpe()
        ids: list[int] = []
        for word in _words(text):
            pieces = bpe.encode(word)
            if any(piece not in self._row for piece in pieces):
                raise PedbenchError(
                    f"the word '{word}' in '{text}' is not in the vocabulary of this model: "
                    "reword the text, or use a backbone with CLIP's full vocabulary"
                )
            ids += [self._row[piece] for piece in pieces]
        return ids

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids ``(N, L)``, int64: start, text, end, padding. ``L`` is the longest prompt rounded
        up to a multiple of 8, at most the context length; the longer context would change
        nothing, because under the causal mask end-of-text never sees what follows it.

        Raises PedbenchError on an unknown word or a text longer than the context.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = [[self.sot, *self.encode(text), self.eot] for text in texts]
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        length = len(rows[longest])
        if length > self.context_length:
            raise PedbenchError(
                f"'{texts[longest]}' takes {length} tokens, the model reads "
                f"{self.context_length}: shorten it"
            )
        length = min(-(-length // _ROUND) * _ROUND, self.context_length)
        ids = torch.full((len(rows), length), self._row[PADDING], dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids
