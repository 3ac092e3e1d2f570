"""Tokenizers, the rows of a language model, and the default corpus."""

import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrnn import corpus
from fastrnn.text import (
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    language_model_rows,
    load_tokenizer,
    split_text,
)

TEXT = "To be, or not to be:\n\tthat is the question; n'est-ce pas? \N{SNOWMAN}\N{GRINNING FACE}\n\n"
KINDS = [
    CharTokenizer,
    lambda: CharTokenizer(unknown="\N{REPLACEMENT CHARACTER}"),
    WordTokenizer,
    lambda: WordTokenizer(unknown=None),
]


@pytest.mark.parametrize("make", KINDS)
def test_decode_undoes_encode(make):
    tokenizer = make()
    assert tokenizer.fit(TEXT) is tokenizer
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert "".join(tokenizer.decode(i) for i in ids) == TEXT
    assert tokenizer.decode(tokenizer.encode("")) == ""


@given(st.text())
def test_any_text_survives(text):
    assert CharTokenizer().fit(text).decode(CharTokenizer().fit(text).encode(text)) == text
    words = WordTokenizer(unknown=None).fit(text)
    assert words.decode(words.encode(text)) == text


@given(st.text(), st.text())
def test_unknown_tokens_are_replaced_one_by_one(known, text):
    tokenizer = CharTokenizer(unknown="?").fit(known)
    assert tokenizer.decode(tokenizer.encode(text)) == "".join(c if c in known else "?" for c in text)


def test_char_ids_are_in_code_point_order():
    assert CharTokenizer().fit("banana\n").vocabulary == ("\n", "a", "b", "n")
    assert CharTokenizer("?").fit("banana?").vocabulary == ("?", "a", "b", "n")


def test_unknown_character_is_named_with_its_position():
    with pytest.raises(ValueError, match=r"CharTokenizer.encode: text: 'z' at position 3 is not in"):
        CharTokenizer().fit("abc").encode("abczx")
    with pytest.raises(ValueError, match="'a' at position 0"):
        CharTokenizer().encode("a")


def test_unknown_word_is_named_with_its_position():
    with pytest.raises(ValueError, match=r"WordTokenizer.encode: text: 'three' at position 8 is not in"):
        WordTokenizer(unknown=None).fit("one two ").encode("one two three four")


def test_word_vocabulary_is_the_most_frequent():
    tokenizer = WordTokenizer(max_vocab=4).fit("a b a c a b d")
    assert tokenizer.vocabulary == ("<unk>", " ", "a", "b")
    assert tokenizer.decode(tokenizer.encode("a b c d")) == "a b <unk> <unk>"


def test_the_text_of_the_unknown_token_means_it():
    assert WordTokenizer(unknown="unk").fit("unk unk one").vocabulary == ("unk", " ", "one")


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="unknown is 1"):
        CharTokenizer(unknown=1)
    with pytest.raises(ValueError, match="unknown is ''"):
        CharTokenizer(unknown="")
    with pytest.raises(ValueError, match="max_vocab is 0"):
        WordTokenizer(max_vocab=0)
    with pytest.raises(ValueError, match="max_vocab needs an unknown token"):
        WordTokenizer(max_vocab=3, unknown=None)
    with pytest.raises(TypeError, match="CharTokenizer.fit: text is bytes"):
        CharTokenizer().fit(b"abc")
    tokenizer = CharTokenizer().fit("abc")
    with pytest.raises(TypeError, match="CharTokenizer.encode: text is list"):
        tokenizer.encode(["a"])
    with pytest.raises(ValueError, match="ids has id 3, expected 0 <= id < vocab_size = 3"):
        tokenizer.decode([0, 3])
    with pytest.raises(ValueError, match="ids has id -1"):
        tokenizer.decode([0, -1])
    with pytest.raises(TypeError, match="ids has dtype float64"):
        tokenizer.decode([0.0])
    with pytest.raises(ValueError, match=r"ids has shape \(1, 2\)"):
        tokenizer.decode([[0, 1]])


@pytest.mark.parametrize("make", KINDS)
def test_a_file_keeps_everything(make, tmp_path):
    tokenizer = make().fit(TEXT)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.unknown == tokenizer.unknown
    assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
    assert again.to_json() == tokenizer.to_json()
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def _text(**changes):
    options = {"tokenizer": "char", "unknown": None, "vocabulary": ["a", "b"]} | changes
    return json.dumps(options)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        (_text()[:-5], "Expecting value"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        (_text(extra=1), "exactly the keys"),
        (_text(tokenizer="bytes"), "tokenizer 'bytes'"),
        (_text(tokenizer=["char"]), "expected a string"),
        (_text(unknown=3), "unknown is 3"),
        (_text(unknown=""), "unknown is ''"),
        (_text(unknown="?"), "does not start with the unknown token"),
        (_text(vocabulary={"a": 0}), "not a list of strings"),
        (_text(vocabulary=["a", 1]), "not a list of strings"),
        (_text(vocabulary=["a", "a"]), "twice"),
        (_text(vocabulary=["a", "bc"]), "'bc', which is not one char token"),
        (_text(vocabulary=["a", ""]), "'', which is not one char token"),
        (_text(vocabulary=["b", "a"]), "order of the code points"),
        (_text(tokenizer="word", vocabulary=["a b"]), "'a b', which is not one word token"),
        ("\udcff", "codec can't decode"),
        (
            '{"tokenizer": "char", "unknown": null, "vocabulary": [], "vocabulary": ["a"]}',
            "repeated: 'vocabulary'",
        ),
        ('{"tokenizer": "char", "unknown": NaN, "vocabulary": []}', "NaN is no JSON number"),
        (_text(vocabulary=["a", "b" * 10**6]), "b..., which is not one char token"),
        (_text(tokenizer="t" * 10**6), "t', expected|holds a tokenizer 't"),
        (_text(unknown="u" * 10**6), "unknown token 'u"),
    ],
)
def test_a_damaged_file_is_named_with_its_fault(text, fault, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=fault) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_from_json_gives_the_kind_that_is_asked_for():
    text = WordTokenizer().fit("a b").to_json()
    assert isinstance(Tokenizer.from_json(text), WordTokenizer)
    with pytest.raises(ValueError, match="CharTokenizer: the text holds a tokenizer 'word'"):
        CharTokenizer.from_json(text)
    with pytest.raises(TypeError, match="text is bytes"):
        Tokenizer.from_json(text.encode())


@pytest.mark.parametrize("character", [" ", "\N{EM DASH}"])
def test_a_token_of_many_is_refused_without_cutting_it_up(character):
    text = _text(tokenizer="word", vocabulary=[character * 10**6])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is not one word token"):
            Tokenizer.from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


def _spoilt(change):
    tokenizer = WordTokenizer().fit("a b")
    change(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "fault"),
    [
        (CharTokenizer(unknown="\ud83d\ude00"), "two surrogates"),
        (_spoilt(lambda tokenizer: setattr(tokenizer, "unknown", "")), "unknown is ''"),
        (
            _spoilt(lambda tokenizer: setattr(tokenizer, "unknown", "c")),
            "does not start with the unknown token",
        ),
        (_spoilt(lambda tokenizer: setattr(tokenizer, "kind", "mine")), "holds a tokenizer 'mine'"),
        (_spoilt(lambda tokenizer: tokenizer._tokens.append("a b")), "not one word token"),
    ],
    ids=["surrogates", "empty", "other", "kind", "token"],
)
def test_what_could_not_be_loaded_is_not_saved(tokenizer, fault, tmp_path):
    path = tmp_path / "t"
    CharTokenizer().fit("ab").save(path)
    with pytest.raises(ValueError, match=rf"Tokenizer\.save: .*{fault}"):
        tokenizer.save(path)
    assert load_tokenizer(path).vocabulary == ("a", "b")
    for wrong in (None, 3, b"t"):
        with pytest.raises(TypeError, match="CharTokenizer.save: path is"):
            CharTokenizer().save(wrong)


@given(
    st.text(st.characters()),
    st.none() | st.text(st.characters(), min_size=1),
    st.sampled_from([CharTokenizer, WordTokenizer]),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_tokenizer_that_is_saved_comes_back(tmp_path, text, unknown, kind):
    tokenizer = kind(unknown=unknown).fit(text)
    try:
        tokenizer.save(tmp_path / "t")
    except ValueError:  # two surrogates in a row
        pass
    else:
        again = load_tokenizer(tmp_path / "t")
        assert (type(again), again.unknown, again.vocabulary) == (kind, unknown, tokenizer.vocabulary)


def test_missing_file():
    with pytest.raises(FileNotFoundError):
        load_tokenizer("no such file.json")


@pytest.mark.parametrize(("n", "batch_size"), [(2, 1), (7, 2), (8, 2), (101, 7), (1000, 32)])
def test_rows_are_contiguous_text_and_targets_one_ahead(n, batch_size):
    ids = np.random.default_rng(n).integers(50, size=n)
    x, y = language_model_rows(ids, batch_size)
    steps = (n - 1) // batch_size
    assert x.shape == y.shape == (batch_size, steps)
    assert x.dtype == y.dtype == np.int32
    assert np.array_equal(x.ravel(), ids[: batch_size * steps])
    assert np.array_equal(y.ravel(), ids[1 : batch_size * steps + 1])
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous


def test_rows_of_wrong_arguments():
    with pytest.raises(ValueError, match="3 tokens, too few for batch_size = 3: expected at least 4"):
        language_model_rows([1, 2, 3], 3)
    with pytest.raises(ValueError, match="0 tokens, too few"):
        language_model_rows([], 1)
    with pytest.raises(TypeError, match="dtype float64"):
        language_model_rows([1.0, 2.0], 1)
    with pytest.raises(ValueError, match=r"expected \(N\)"):
        language_model_rows([[1, 2]], 1)
    with pytest.raises(TypeError, match="batch_size is 1.5"):
        language_model_rows([1, 2], 1.5)


def test_split_holds_out_the_end():
    assert split_text("0123456789", 0.1) == ("012345678", "9")
    assert split_text("0123456789", 0) == ("0123456789", "")
    training, held_out = split_text(np.arange(1_115_394), 0.1)
    assert (len(training), held_out[0]) == (1_003_854, 1_003_854)
    with pytest.raises(ValueError, match="validation is 1"):
        split_text("abc", 1)


@pytest.mark.parametrize("pydoc_data", ["present", "missing"])
def test_default_corpus_is_plain_text(pydoc_data, monkeypatch):
    if pydoc_data == "missing":
        monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text = corpus.default_corpus()
    assert text == corpus.default_corpus()
    assert len(text) > 100_000
    assert text.isascii()
    assert all(c == "\n" or c.isprintable() for c in set(text))
    assert not any(line.endswith(" ") for line in text.split("\n"))
    assert " the " in text
