"""Sampling is checked as a distribution, generation as one step per token with the state carried."""

import numpy as np
import pytest

from fastrnn import LSTM, Dense, Embedding, Sequential
from fastrnn.generation import generate, iter_generate, sample
from fastrnn.recurrent import LAYERS
from fastrnn.text import CharTokenizer, WordTokenizer

P = np.array([0.05, 0.4, 0.1, 0.25, 0.0, 0.2])


def _draws(n, **options):
    rng = np.random.default_rng(12)
    return np.bincount([sample(P, rng=rng, **options) for _ in range(n)], minlength=len(P))


def _chi_square(counts, expected):
    """Pearson's statistic over the cells that can occur, which must be the only ones that do."""
    possible = expected > 0
    assert counts[~possible].sum() == 0
    scaled = expected[possible] / expected.sum() * counts.sum()
    return float(((counts[possible] - scaled) ** 2 / scaled).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature):
    expected = np.where(P > 0, P ** (1 / temperature), 0)
    # 18.47 is the 0.999 quantile of chi-square with 4 degrees of freedom.
    assert _chi_square(_draws(10_000, temperature=temperature), expected) < 18.47


def test_frequencies_under_top_k_and_top_p():
    assert _chi_square(_draws(10_000, top_k=3), np.where(P >= 0.2, P, 0)) < 13.82
    assert _chi_square(_draws(10_000, top_p=0.8), np.where(P >= 0.2, P, 0)) < 13.82


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 5}, {0, 1, 2, 3, 5}),
        ({"top_k": 100}, {0, 1, 2, 3, 5}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.9}, {1, 2, 3, 5}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 5}),
        # The share is one of what top_k has left: 0.4 / 0.65 of it is below 0.62.
        ({"top_k": 2, "top_p": 0.62}, {1, 3}),
        ({"top_k": 2, "top_p": 0.61}, {1}),
        ({"temperature": 0}, {1}),
        ({"temperature": 5e-324}, {1}),
    ],
)
def test_exactly_the_kept_tokens_occur(options, kept):
    assert set(np.flatnonzero(_draws(2000, **options))) == kept


def test_ties_go_to_the_lower_index():
    equal = np.full(4, 0.25)
    assert sample(equal, temperature=0) == 0
    assert {sample(equal, top_k=2, rng=seed) for seed in range(50)} == {0, 1}
    assert {sample(equal, top_p=0.75, rng=seed) for seed in range(100)} == {0, 1, 2}


def test_a_weight_of_zero_is_never_drawn():
    class Edge(np.random.Generator):
        value = 0.0

        def random(self):
            return self.value

    edge = Edge(np.random.PCG64(0))
    p = [0.0, 0.3, 0.0, 0.7, 0.0]
    for top_k in (None, 5):
        edge.value = 0.0
        assert sample(p, top_k=top_k, rng=edge) in (1, 3)
        edge.value = 1.0  # what rounding could make of the largest number below 1
        assert sample(p, top_k=top_k, rng=edge) in (1, 3)


def test_tiny_probabilities_and_temperatures():
    assert sample(np.array([1e-300, 1e-310]), temperature=0.01, rng=0) == 0
    assert sample(np.array([0.0, 5e-324]), temperature=100.0, rng=0) == 1
    assert sample(np.array([1.0, 1.0], np.float32), rng=0) in (0, 1)


def test_input_is_not_written_to():
    p = P.copy()
    p.flags.writeable = False
    sample(p, top_k=2, top_p=0.5, rng=0)


@pytest.mark.parametrize(
    ("probabilities", "options", "error", "message"),
    [
        (P, {"temperature": -0.1}, ValueError, "temperature is -0.1"),
        (P, {"temperature": np.inf}, ValueError, "temperature is inf"),
        (P, {"temperature": np.nan}, ValueError, "temperature is nan"),
        (P, {"temperature": "hot"}, TypeError, "temperature is 'hot'"),
        (P, {"temperature": None}, TypeError, "temperature is None"),
        (P, {"top_k": 0}, ValueError, "top_k is 0"),
        (P, {"top_k": 1.5}, TypeError, "top_k is 1.5"),
        (P, {"top_p": 0.0}, ValueError, "top_p is 0.0"),
        (P, {"top_p": 1.1}, ValueError, "top_p is 1.1"),
        (P, {"top_p": True}, TypeError, "top_p is True"),
        (P, {"rng": -1}, ValueError, "rng is -1"),
        (P, {"rng": 1.5}, TypeError, "rng is 1.5"),
        (np.empty(0), {}, ValueError, r"shape \(0,\)"),
        (P[None], {}, ValueError, r"shape \(1, 6\)"),
        (P * 0, {}, ValueError, "not all zero"),
        (-P, {}, ValueError, "not negative"),
        (P * np.nan, {}, ValueError, "finite"),
        (["a"], {}, TypeError, "dtype"),
    ],
)
def test_wrong_arguments_are_named(probabilities, options, error, message):
    with pytest.raises(error, match=message):
        sample(probabilities, **options)


class Bigrams(Sequential):
    """A model whose next token depends on the sum of all it has read, and that counts its steps."""

    def __init__(self, vocab_size, table=None):
        super().__init__([Embedding(vocab_size, 1, rng=0)])
        self.vocab_size = vocab_size
        self.table = np.eye(vocab_size) if table is None else table
        self.read = []

    def stream(self, batch_size):
        assert batch_size == 1
        return self

    def step(self, ids):
        assert ids.shape == (1,)
        self.read.append(int(ids[0]))
        return self.table[[sum(self.read) % self.vocab_size]]


def test_one_step_per_token_and_the_prompt_comes_back():
    tokenizer = CharTokenizer().fit("abcde")
    model = Bigrams(5)
    # Each token is the sum of all before it, modulo 5: b c -> 3, 6, 12, 24 ...
    assert generate(model, tokenizer, "bc", num_generate=4) == "bc" + "dbce"
    assert model.read == [1, 2, 3, 1, 2]


def test_tokens_come_one_at_a_time():
    tokenizer = CharTokenizer().fit("abcde")
    model = Bigrams(5)
    pieces = iter_generate(model, tokenizer, "bc", num_generate=3)
    assert model.read == [1, 2]
    assert next(pieces) == "d"
    assert model.read == [1, 2]
    assert list(pieces) == ["b", "c"]


def test_nothing_to_generate():
    assert generate(Bigrams(3), CharTokenizer().fit("abc"), "cab", num_generate=0) == "cab"


def test_an_empty_prompt_starts_after_a_newline():
    model = Bigrams(4)
    assert generate(model, CharTokenizer().fit("\nabc"), "", num_generate=2) == "\n\n"
    assert model.read == [0, 0]
    assert len(generate(Bigrams(3), CharTokenizer().fit("abc"), "", num_generate=2)) == 2


def test_the_unknown_token_is_never_generated():
    tokenizer = WordTokenizer().fit("a b")
    table = np.tile([0.9, 0.0, 0.05, 0.05], (4, 1))
    text = generate(Bigrams(4, table), tokenizer, "a", num_generate=50, temperature=1.0)
    assert set(text) == {"a", "b"}
    # Unless the model leaves no choice.
    table = np.tile([1.0, 0.0, 0.0, 0.0], (4, 1))
    assert generate(Bigrams(4, table), tokenizer, "a", num_generate=1) == "a<unk>"


def test_generate_checks_before_the_first_token():
    tokenizer = CharTokenizer().fit("abc")
    with pytest.raises(ValueError, match="num_generate is -1"):
        iter_generate(Bigrams(3), tokenizer, "a", num_generate=-1)
    with pytest.raises(ValueError, match="generate: temperature is -1"):
        iter_generate(Bigrams(3), tokenizer, "a", temperature=-1)
    with pytest.raises(ValueError, match="'z' at position 1"):
        iter_generate(Bigrams(3), tokenizer, "az")
    with pytest.raises(TypeError, match="generate: prompt is NoneType, expected str"):
        iter_generate(Bigrams(3), tokenizer, None)
    with pytest.raises(TypeError, match="generate: model is NoneType, expected Sequential"):
        generate(None, tokenizer, "a")
    with pytest.raises(TypeError, match="generate: tokenizer is NoneType, expected Tokenizer"):
        generate(Bigrams(3), None, "a")
    with pytest.raises(ValueError, match="fit it first"):
        iter_generate(Bigrams(3), CharTokenizer(), "")
    with pytest.raises(ValueError, match="input_dim = 4, expected the tokenizer's vocab_size = 3"):
        iter_generate(Bigrams(4), tokenizer, "a")
    with pytest.raises(ValueError, match="gives 4 values, expected the tokenizer's vocab_size = 3"):
        iter_generate(Bigrams(3, np.full((3, 4), 0.25)), tokenizer, "a")
    with pytest.raises(ValueError, match="begins with LSTM, expected an Embedding"):
        iter_generate(Sequential([LSTM(3, 3, rng=0), Dense(3, 3, rng=0)]), tokenizer, "a")
    with pytest.raises(ValueError, match="softmax"):
        iter_generate(Bigrams(3, np.full((3, 3), 2.0)), tokenizer, "a")
    with pytest.raises(ValueError, match="NaN or infinite probabilities"):
        iter_generate(Bigrams(3, np.full((3, 3), np.nan)), tokenizer, "a")


# The real thing: a model with random weights.


@pytest.fixture(params=LAYERS)
def model(request):
    import fastrnn

    cell = LAYERS[request.param]
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(5, 3, rng=1),
            cell(3, 7, num_layers=2, dropout=0.3, rng=2),
            fastrnn.Dropout(0.5, rng=3),
            fastrnn.Dense(7, 5, activation="softmax", rng=4),
        ]
    )


def test_a_seed_fixes_the_text(model):
    tokenizer = CharTokenizer().fit("abcde")
    texts = [generate(model, tokenizer, "abc", 200, temperature=1.0, seed=s) for s in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 203
    rng = np.random.default_rng(0)
    assert generate(model, tokenizer, "abc", 200, temperature=1.0, seed=rng) == texts[0]


def test_the_stream_knows_what_the_whole_prefix_says(model):
    ids = np.random.default_rng(0).integers(5, size=20)
    stream = model.stream(1)
    for n, token in enumerate(ids):
        stepped = np.array(stream.step(np.array([token])))
        whole = model.predict(ids[None, : n + 1])[:, -1]
        np.testing.assert_allclose(stepped, whole, rtol=1e-5, atol=1e-7)


def test_greedy_text_is_the_arg_max_of_predict(model):
    tokenizer = CharTokenizer().fit("abcde")
    text = "ab"
    for _ in range(20):
        probabilities = model.predict(tokenizer.encode(text)[None])[0, -1]
        text += tokenizer.decode(int(np.argmax(probabilities)))
    assert generate(model, tokenizer, "ab", num_generate=20, temperature=0) == text
