"""Attributes put into words: phrases, a user's own, and bare names in every method."""

from __future__ import annotations

import copy

import pytest
from conftest import ATTRIBUTES

from pedbench import registry
from pedbench.contracts import PedbenchError, Task
from pedbench.nn.sentences import attribute_sentences, bare_name
from pedbench.phrases import read_phrases, words

TEXTS = ("template", "class_name")  # hyperparameters that put attributes into words
WORDED = [
    (method, key)
    for method in registry.methods()
    for key in TEXTS
    if key in registry.read_params(method)
]
# what the methods need besides, so that they read texts at all and of CLIP
NEEDED = {
    **{name: {"head": "pair"} for name in ("adapter", "bitfit", "full_finetune", "lora", "ssf")},
    "peft_tuner": {"head": "pair"},
    "vtb": {"tower": "clip", "text_encoder": "clip"},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # PETA, PA100K
        ("upperBodyVNeck", "upper body v neck"),
        ("upperBodyTshirt", "upper body tshirt"),
        ("personalLess30", "personal less 30"),
        ("Age18-60", "age 18 to 60"),
        ("Skirt&Dress", "skirt and dress"),
        ("boots", "boots"),
        # RAP
        ("hs-BaldHead", "head bald head"),
        ("ub-TShirt", "upper t shirt"),
        ("ub-SuitUp", "upper suit up"),
        ("Femal", "female"),
        ("attach-SingleShoulderBag", "attachment single shoulder bag"),
        ("action-Pusing", "action pushing"),
        ("action-CarrybyArm", "action carry by arm"),
        # WIDER, LFWA, Market-1501
        ("Tshiirt", "tshirt"),
        ("faceMask", "face mask"),
        ("5_o_Clock_Shadow", "5 o clock shadow"),
        ("upblack", "upper black"),
        ("downpurple", "lower purple"),
        ("upper_red", "upper red"),
    ],
)
def test_words_of_a_name(name, expected):
    assert bare_name(name) == expected


@pytest.mark.parametrize("name", registry.datasets())
def test_names_of_a_dataset_become_different_words(name):
    attributes = registry.load_dataset(name).SPEC.attributes
    names = [bare_name(attribute.name) for attribute in attributes]
    assert len(set(names)) == len(attributes)
    assert all(word.isalnum() for text in names for word in text.split(" "))
    assert all(text == text.lower() for text in names)


def test_bare_names_in_place_of_phrases():
    hat, female = ATTRIBUTES[0], ATTRIBUTES[-1]
    assert attribute_sentences((hat, female), "a {name}.") == [
        *("a hat.", "a female."),
        *("a no hat.", "a no female."),
    ]
    assert attribute_sentences((hat,), "person {}", absence=False) == ["person wearing a hat"]
    for template in ("a person", "{} {name}"):
        with pytest.raises(PedbenchError, match="must contain {} once"):
            attribute_sentences((hat,), template)


@pytest.mark.parametrize(("method", "key"), WORDED)
def test_every_method_can_be_given_bare_names(method, key, backbone, monkeypatch):
    read: list[str] = []
    backbone = copy.deepcopy(backbone)
    encode = type(backbone.tokenizer).encode
    monkeypatch.setattr(
        type(backbone.tokenizer),
        "encode",
        lambda self, text: read.append(text) or encode(self, text),
    )
    values = {**NEEDED.get(method, {}), key: "person {name}"}
    task = Task("par", ATTRIBUTES, (0.5,) * len(ATTRIBUTES))
    params = registry.load_params(method, values)
    registry.load_method(method)(params).build(backbone, task)
    assert any(text.rstrip(".").endswith("person trousers") for text in read)
    assert not any("wearing" in text or "carrying" in text for text in read)


def write(path, *rows):
    path.write_text("\n".join(("attribute,phrase,negative", *rows)) + "\n", encoding="utf-8")
    return path


def test_own_words_replace_those_of_the_dataset(tmp_path):
    file = write(tmp_path / "own.csv", 'hat,"with a cap, or so",with no cap')
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as Excel saves it
    own = words(ATTRIBUTES, {"phrases": str(file)})
    assert (own[0].phrase, own[0].negative) == ("with a cap, or so", "with no cap")
    assert own[0].name == "hat"
    assert own[0].region == "head"
    assert own[1:] == ATTRIBUTES[1:]
    assert words(ATTRIBUTES, {}) == ATTRIBUTES


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["tousers,a,b"], "line 2: 'tousers' is not an attribute; did you mean 'trousers'"),
        (["hat,a,b", "hat,c,d"], "line 3: 'hat' stands twice"),
        (["hat,a,"], "line 2: 'hat' needs both"),
        (["hat,a"], "line 2: 'hat' needs both"),
        (["hat,a,a"], "line 2: 'hat': phrase and negative are the same"),
        (["hat,a,b,c", "boots,d,e"], "line 2: .* put text that has commas in quotes"),
    ],
)
def test_mistakes_in_own_words_are_named(rows, message, tmp_path):
    with pytest.raises(PedbenchError, match=message):
        read_phrases(write(tmp_path / "own.csv", *rows), ATTRIBUTES)


def test_a_file_of_words_that_is_none(tmp_path):
    with pytest.raises(PedbenchError, match="no such file of phrases"):
        read_phrases(tmp_path / "own.csv", ATTRIBUTES)
    (tmp_path / "own.csv").write_text("attribute;phrase;negative\n")
    with pytest.raises(PedbenchError, match="column 'attribute' is missing"):
        read_phrases(tmp_path / "own.csv", ATTRIBUTES)
    (tmp_path / "own.csv").write_bytes("attribute,phrase,negative\nhat,à,b\n".encode("latin-1"))
    with pytest.raises(PedbenchError, match="not UTF-8"):
        read_phrases(tmp_path / "own.csv", ATTRIBUTES)
