"""From a trained language model to text: one step per token, drawn from what the model predicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import as_generator, as_number, as_real, as_size
from .layers import Embedding
from .model import Sequential
from .text import Tokenizer

#: float32 probabilities of a large vocabulary add up to 1 within this.
_SUM_TOLERANCE = 1e-3


def generate(
    model: Sequential,
    tokenizer: Tokenizer,
    prompt: str,
    num_generate: int = 1000,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator | None = 0,
) -> str:
    """Let a language model carry on a text.

    The model reads the prompt once; its state is carried from then on, so that each further token
    costs one step, however long the text is. Given the same bits of probabilities, the same seed
    gives the same text.

    Parameters
    ----------
    model : Sequential
        Takes token ids and ends in the probabilities of the next token, as
        ``Dense(..., tokenizer.vocab_size, activation="softmax")`` does.
    tokenizer : CharTokenizer or WordTokenizer
        The one that the model was trained with. Its unknown token is never generated.
    prompt : str
        The start of the text. If it is empty, the model starts as after a newline (as after a token
        drawn at random if the vocabulary has no newline), which is not part of the result.
    num_generate : int, default 1000
        The number of tokens to add.
    temperature : float, default 0.8
        The log-probabilities are divided by it: below 1 the text is more likely, above 1 more varied;
        0 always takes the most likely token.
    top_k : int, optional
        Draw from the `top_k` most likely tokens only.
    top_p : float, optional
        Draw from the fewest most likely tokens whose probabilities add up to at least `top_p`, in
        (0, 1]; after `temperature` and `top_k`.
    seed : int, numpy.random.Generator or None, default 0
        Where the random numbers come from; None takes a new seed from the system.

    Returns
    -------
    str
        The prompt and what follows it.

    Raises
    ------
    ValueError, TypeError
        For arguments out of range, a prompt with unknown tokens, or a model that does not fit the
        tokenizer or does not give probabilities.

    See Also
    --------
    iter_generate : the same text, token by token.

    Examples
    --------
    >>> import fastrnn
    >>> tokenizer = fastrnn.text.CharTokenizer().fit("abc")
    >>> model = fastrnn.Sequential(
    ...     [
    ...         fastrnn.Embedding(3, 4, rng=0),
    ...         fastrnn.LSTM(4, 8, rng=1),
    ...         fastrnn.Dense(8, 3, activation="softmax", rng=2),
    ...     ]
    ... )
    >>> len(fastrnn.generate(model, tokenizer, "ab", num_generate=10))
    12
    """
    pieces = iter_generate(model, tokenizer, prompt, num_generate, temperature, top_k, top_p, seed)
    return prompt + "".join(pieces)


def iter_generate(
    model: Sequential,
    tokenizer: Tokenizer,
    prompt: str,
    num_generate: int = 1000,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator | None = 0,
) -> Iterator[str]:
    """As `generate`, but yield the text of each new token as soon as it is drawn, without the prompt.

    The arguments are checked and the prompt is read in the call itself, not at the first token.

    Examples
    --------
    >>> for piece in iter_generate(model, tokenizer, "ROMEO:"):  # doctest: +SKIP
    ...     print(piece, end="", flush=True)
    """
    num_generate = as_size("generate", "num_generate", num_generate, minimum=0)
    sampling = _Sampling("generate", temperature, top_k, top_p)
    rng = as_generator("generate", seed, "seed")
    _check_model(model, tokenizer, prompt)

    stream = model.stream(1)
    probabilities = np.empty(0)
    for token in _prompt_ids(tokenizer, prompt, rng):
        probabilities = _step(stream, int(token), tokenizer)

    def pieces(probabilities: NDArray[np.float64]) -> Iterator[str]:
        for remaining in range(num_generate, 0, -1):
            token = sampling.draw(probabilities, rng)
            yield tokenizer.decode(token)
            if remaining > 1:
                probabilities = _step(stream, token, tokenizer)

    return pieces(probabilities)


def sample(
    probabilities: ArrayLike,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: int | np.random.Generator | None = None,
) -> int:
    """Draw one index from a discrete distribution, reshaped first.

    The weights are ``exp(log(p) / temperature)``, in float64; `top_k` then keeps the largest of them,
    and `top_p` the fewest of these that make up that share of their sum. Of equal weights, the one
    with the lower index counts as the larger.

    Parameters
    ----------
    probabilities : array_like, shape (V,)
        Not negative, finite, not all zero; they need not add up to 1.
    temperature : float, default 1.0
        0 takes the largest.
    top_k : int, optional
        At least 1; more than V is as V.
    top_p : float, optional
        In (0, 1].
    rng : int, numpy.random.Generator or None
        One uniform number is drawn from it, none with temperature 0.

    Returns
    -------
    int
        0 ... V - 1, never one whose probability is zero.

    Examples
    --------
    >>> from fastrnn.generation import sample
    >>> sample([0.1, 0.7, 0.2], temperature=0)
    1
    >>> sorted({sample([0.1, 0.7, 0.2], top_k=2, rng=seed) for seed in range(100)})
    [1, 2]
    """
    sampling = _Sampling("sample", temperature, top_k, top_p)
    rng = as_generator("sample", rng)
    return sampling.draw(_as_weights(probabilities), rng)


class _Sampling:
    """How `sample` reshapes a distribution; the arguments are explained there."""

    def __init__(self, owner: str, temperature: Any, top_k: Any, top_p: Any) -> None:
        self._temperature = as_number(owner, "temperature", temperature)
        self._top_k = None if top_k is None else as_size(owner, "top_k", top_k)
        self._top_p = None if top_p is None else as_number(owner, "top_p", top_p, positive=True, maximum=1)

    def draw(self, p: NDArray[np.float64], rng: np.random.Generator) -> int:
        """An index, from probabilities that `_as_weights` would let through."""
        if self._temperature == 0:
            return int(np.argmax(p))
        # Relative to the largest, so that a tiny temperature cannot turn every weight into 0.
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            weights = np.exp((np.log(p) - np.log(p.max())) / self._temperature)
        indices = self._kept(weights)
        cumulative = np.cumsum(weights[indices])
        # side="right" passes over weights of zero. rng.random() < 1, but its product may round up to the sum.
        drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        return int(indices[min(int(drawn), len(indices) - 1)])

    def _kept(self, weights: NDArray[np.float64]) -> NDArray[np.intp]:
        """The indices that top_k and top_p leave, of weights above zero."""
        if self._top_k is None and self._top_p is None:
            return np.flatnonzero(weights)
        order = np.argsort(-weights, kind="stable")[: np.count_nonzero(weights)][: self._top_k]
        if self._top_p is not None:
            cumulative = np.cumsum(weights[order])
            # The token that reaches the share belongs to the set: hence + 1.
            reached = np.searchsorted(cumulative, self._top_p * cumulative[-1], side="left")
            order = order[: int(reached) + 1]
        return order


def _as_weights(probabilities: ArrayLike) -> NDArray[np.float64]:
    array = as_real("sample", "probabilities", probabilities)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"sample: probabilities has shape {array.shape}, expected (V,) with V > 0")
    p = array.astype(np.float64)
    if not np.isfinite(p).all() or p.min() < 0 or p.max() == 0:
        raise ValueError("sample: probabilities must be finite, not negative and not all zero")
    return p


def _check_model(model: Any, tokenizer: Any, prompt: Any) -> None:
    """Whether the model can read what the tokenizer makes of the prompt."""
    expected = (("model", model, Sequential), ("tokenizer", tokenizer, Tokenizer), ("prompt", prompt, str))
    for name, value, kind in expected:
        if not isinstance(value, kind):
            raise TypeError(f"generate: {name} is {type(value).__name__}, expected {kind.__name__}")
    if tokenizer.vocab_size == 0:
        raise ValueError("generate: the tokenizer has no vocabulary, fit it first")
    first = model.layers[0]
    if not isinstance(first, Embedding):
        raise ValueError(
            f"generate: the model begins with {type(first).__name__}, expected an Embedding: it must take "
            "token ids"
        )
    if first.input_dim != tokenizer.vocab_size:
        raise ValueError(
            f"generate: the model's Embedding has input_dim = {first.input_dim}, "
            f"expected the tokenizer's vocab_size = {tokenizer.vocab_size}"
        )


def _prompt_ids(tokenizer: Tokenizer, prompt: str, rng: np.random.Generator) -> NDArray[np.int32]:
    """The ids to read before the first token is drawn: at least one."""
    try:
        ids = tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"generate: prompt: {error}") from error
    if len(ids):
        return ids
    if "\n" in tokenizer.vocabulary:
        return tokenizer.encode("\n")
    return rng.integers(tokenizer.vocab_size, size=1).astype(np.int32)


def _step(stream: Any, token: int, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """Feed one token; the probabilities of the next one, a copy, with no weight on the unknown token."""
    p: NDArray[np.float64] = np.asarray(stream.step(np.array([token], np.int32)), dtype=np.float64)
    if p.shape != (1, tokenizer.vocab_size):
        raise ValueError(
            f"generate: the model gives {p.shape[-1] if p.ndim else 0} values, "
            f"expected the tokenizer's vocab_size = {tokenizer.vocab_size}"
        )
    p = p[0].copy()
    if not np.isfinite(p).all():
        raise ValueError(
            "generate: the model gives NaN or infinite probabilities: its weights are damaged, or its "
            "training has diverged"
        )
    if not (p.min() >= 0 and abs(p.sum() - 1) <= _SUM_TOLERANCE):
        raise ValueError(
            f"generate: the model's output has minimum {p.min():g} and sum {p.sum():g}, expected "
            "probabilities: its last layer should have activation='softmax'"
        )
    if tokenizer.unknown_id is not None and np.count_nonzero(p) > 1:
        p[tokenizer.unknown_id] = 0.0
    return p
