"""Token ids: CLIP's own, and remapped to a small vocabulary."""

import pytest
import torch

from pedbench.contracts import PedbenchError
from pedbench.nn.tokenizer import PADDING, Tokenizer, build_vocabulary

TEXTS = ["a photo of a person wearing a hat", "muffler", "it's a box, 2 sandals!"]


@pytest.fixture(scope="module")
def vocabulary() -> list[int]:
    return build_vocabulary(TEXTS)


def original(texts: list[str]) -> torch.Tensor:
    from open_clip import tokenize

    return tokenize(texts)


def test_full_vocabulary_equals_open_clip() -> None:
    ids = Tokenizer()(TEXTS)
    assert ids.shape == (3, 16)  # the longest takes 10, rounded up to a multiple of 8
    assert torch.equal(ids, original(TEXTS)[:, :16])
    assert not original(TEXTS)[:, 16:].any()


def test_remapped_ids_are_places_in_the_vocabulary(vocabulary: list[int]) -> None:
    tokenizer = Tokenizer(vocabulary, context_length=32)
    ids = tokenizer(TEXTS)
    assert torch.equal(torch.tensor(vocabulary)[ids], original(TEXTS)[:, : ids.shape[1]])
    assert tokenizer.vocab_size == len(vocabulary)


def test_remapping_keeps_the_order(vocabulary: list[int]) -> None:
    ids, whole = Tokenizer(vocabulary)(TEXTS).flatten(), Tokenizer()(TEXTS).flatten()
    assert torch.equal(ids[:, None] < ids, whole[:, None] < whole)
    assert vocabulary[0] == PADDING


def test_end_of_text_is_the_largest(vocabulary: list[int]) -> None:
    tokenizer = Tokenizer(vocabulary)
    ids = tokenizer(TEXTS)
    assert tokenizer.eot == len(vocabulary) - 1
    assert (ids.max(1).values == tokenizer.eot).all()
    assert ids.argmax(1).tolist() == [len(tokenizer.encode(text)) + 1 for text in TEXTS]


def test_unknown_word_is_named(vocabulary: list[int]) -> None:
    with pytest.raises(PedbenchError, match="'zeppelin'"):
        Tokenizer(vocabulary)(["a photo of a zeppelin"])


def test_context_bounds_the_length(vocabulary: list[int]) -> None:
    tokenizer = Tokenizer(vocabulary, context_length=11)
    assert tokenizer(["a hat"]).shape == (1, 8)
    assert tokenizer(TEXTS).shape == (3, 11)
    with pytest.raises(PedbenchError, match="takes 12 tokens"):
        tokenizer(["a " * 10])


def test_vocabulary_must_ascend(vocabulary: list[int]) -> None:
    with pytest.raises(PedbenchError, match="ascending"):
        Tokenizer(vocabulary[::-1])
