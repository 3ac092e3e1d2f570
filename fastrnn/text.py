"""From text to token ids and back, and from ids to the rows that a language model trains on."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arguments import as_fraction, as_ids, as_real, as_size, check_ndim, show
from .files import MAX_BYTES, as_path, open_regular, parse_json, write_atomically

Ids = NDArray[np.int32]
_TextOrIds = TypeVar("_TextOrIds", str, NDArray[Any])


class Tokenizer:
    """A fixed list of tokens, each with an id: what `CharTokenizer` and `WordTokenizer` share.

    Token ids are 0 ... ``vocab_size - 1``. If there is an unknown token, it has id 0.
    """

    #: Name of the kind of tokenizer in JSON.
    kind: ClassVar[str]
    #: One token, known or not; all that it finds in a text, joined, are the text.
    _PIECE: ClassVar[re.Pattern[str]]

    def __init__(self, unknown: str | None = None) -> None:
        if unknown is not None and not isinstance(unknown, str):
            raise TypeError(f"{type(self).__name__}: unknown is {show(unknown)}, expected a string or None")
        if unknown == "":
            raise ValueError(f"{type(self).__name__}: unknown is '', expected at least one character")
        self.unknown = unknown
        self._tokens: list[str]
        self._learn(())

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens, in the order of their ids; only the unknown one, if any, before `fit`."""
        return tuple(self._tokens)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, the unknown one included."""
        return len(self._tokens)

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token, None if there is none."""
        return None if self.unknown is None else 0

    def fit(self, text: str) -> Self:
        """Learn the vocabulary of `text`, in place of any learnt before; returns the tokenizer."""
        raise NotImplementedError

    def encode(self, text: str) -> Ids:
        """The ids of the tokens of `text`, int32, shape (number of tokens,).

        ValueError for the first token that is not in the vocabulary, unless there is an unknown token.
        """
        raise NotImplementedError

    def decode(self, ids: ArrayLike) -> str:
        """The text of token `ids`: one integer or an array of one dimension.

        ``decode(encode(text)) == text`` for every text whose tokens are in the vocabulary.
        """
        owner = f"{type(self).__name__}.decode"
        array = np.atleast_1d(as_ids(owner, "ids", ids, self.vocab_size, "vocab_size"))
        check_ndim(owner, "ids", array, "(N)")
        return "".join([self._tokens[i] for i in array.tolist()])

    def to_json(self) -> str:
        """The tokenizer as a JSON object, for `from_json`. ASCII only."""
        return json.dumps({"tokenizer": self.kind, "unknown": self.unknown, "vocabulary": self._tokens})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The tokenizer that `to_json` wrote. ValueError says what is wrong with `text`.

        ``Tokenizer.from_json`` gives the kind that the text names; on a subclass, the kind must fit.
        """
        if not isinstance(text, str):
            raise TypeError(f"{cls.__name__}.from_json: text is {type(text).__name__}, expected str")
        return cls._read(text)

    @classmethod
    def _read(cls, text: str | bytes) -> Self:
        """As `from_json`, also from the bytes of a file."""
        options = _read_object(text)
        kinds: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (CharTokenizer, WordTokenizer)}
        kind = kinds.get(options["tokenizer"])
        tokenizer = None if kind is None else kind(unknown=options["unknown"])
        if not isinstance(tokenizer, cls):
            raise ValueError(f"{cls.__name__}: the text holds a tokenizer {show(options['tokenizer'])}")
        tokenizer._set_vocabulary(options["vocabulary"])
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer to a JSON file; whatever happens, the file is the old one or the new one.

        ValueError if `load_tokenizer` would not give the same tokenizer back; nothing is written then.
        """
        owner = f"{type(self).__name__}.save"
        path, text = as_path(owner, path), self.to_json()
        try:
            again = Tokenizer.from_json(text)
        except ValueError as fault:
            raise ValueError(f"{owner}: the tokenizer could not be read again: {fault}") from None
        if (again.unknown, again.vocabulary) != (self.unknown, self.vocabulary):
            raise ValueError(f"{owner}: a token has two surrogates that JSON reads as one character")
        write_atomically(path, (text + "\n").encode("ascii"))

    def _set_vocabulary(self, tokens: list[str]) -> None:
        """Take `tokens` if they could have come from `fit`; ValueError otherwise."""
        if self.unknown is not None and tokens[:1] != [self.unknown]:
            raise ValueError(f"vocabulary does not start with the unknown token {show(self.unknown)}")
        if len(set(tokens)) != len(tokens):
            raise ValueError("vocabulary holds a token twice")
        for token in tokens if self.unknown is None else tokens[1:]:
            if self._PIECE.fullmatch(token) is None:
                raise ValueError(f"vocabulary holds {show(token)}, which is not one {self.kind} token")
        self._index(tokens)

    def _index(self, tokens: list[str]) -> None:
        """Make `tokens` the vocabulary, with whatever `encode` looks things up in."""
        raise NotImplementedError

    def _learn(self, tokens: Iterable[str]) -> Self:
        """Make `tokens` the vocabulary, after the unknown token if there is one."""
        head = [] if self.unknown is None else [self.unknown]
        self._index(head + [token for token in tokens if token != self.unknown])
        return self

    def _check_text(self, call: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{type(self).__name__}.{call}: text is {type(text).__name__}, expected str")

    def _reject(self, token: str, position: int) -> ValueError:
        return ValueError(
            f"{type(self).__name__}.encode: text: {token!r} at position {position} is not in the vocabulary"
        )


class CharTokenizer(Tokenizer):
    """One token per character, in the order of their code points.

    Parameters
    ----------
    unknown : str, optional
        Text that stands for every character that is not in the vocabulary; its id is 0.
        Without it, such a character is an error.

    Examples
    --------
    >>> from fastrnn.text import CharTokenizer
    >>> tokenizer = CharTokenizer().fit("hello")
    >>> tokenizer.encode("hole").tolist()
    [1, 3, 2, 0]
    >>> tokenizer.decode([1, 0, 2, 2, 3])
    'hello'
    """

    kind = "char"
    _PIECE = re.compile(".", re.DOTALL)

    def __init__(self, unknown: str | None = None) -> None:
        self._codes: NDArray[np.uint32]
        super().__init__(unknown)

    def fit(self, text: str) -> Self:
        """Learn the characters of `text`, in place of any learnt before; returns the tokenizer."""
        self._check_text("fit", text)
        return self._learn(sorted(set(text)))

    def encode(self, text: str) -> Ids:
        """The ids of the characters of `text`, int32, shape (len(text),).

        ValueError names the first character that is not in the vocabulary, and its position, unless
        the tokenizer has an unknown token.
        """
        self._check_text("encode", text)
        codes = _code_points(text)
        slots = np.searchsorted(self._codes, codes)
        slots[slots == len(self._codes)] = 0
        known = self._codes[slots] == codes if len(self._codes) else np.zeros(len(codes), bool)
        if self.unknown is not None:
            return np.where(known, slots + 1, 0).astype(np.int32)
        if not known.all():
            position = int(np.argmin(known))
            raise self._reject(text[position], position)
        return slots.astype(np.int32)

    def _index(self, tokens: list[str]) -> None:
        codes = _code_points("".join(tokens if self.unknown is None else tokens[1:]))
        if np.any(codes[1:] <= codes[:-1]):
            raise ValueError("vocabulary is not in the order of the code points")
        self._tokens, self._codes = tokens, codes


class WordTokenizer(Tokenizer):
    """Words, and single characters between them; nothing is lost, so that text can be put together again.

    A word is a run of letters, digits and underscores. Every other character (a space, a newline,
    a comma) is a token of its own. Ids go by falling frequency, ties by the order of the tokens.

    Parameters
    ----------
    max_vocab : int, optional
        Keep that many tokens at most, the unknown one included: the most frequent ones.
    unknown : str or None, default "<unk>"
        Text that stands for every token that is not in the vocabulary; its id is 0. With None,
        such a token is an error.

    Examples
    --------
    >>> from fastrnn.text import WordTokenizer
    >>> tokenizer = WordTokenizer().fit("to be, or not to be")
    >>> tokenizer.vocabulary
    ('<unk>', ' ', 'be', 'to', ',', 'not', 'or')
    >>> tokenizer.decode(tokenizer.encode("not to see"))
    'not to <unk>'
    """

    kind = "word"
    _PIECE = re.compile(r"\w+|\W")

    def __init__(self, max_vocab: int | None = None, unknown: str | None = "<unk>") -> None:
        self._ids: dict[str, int]
        super().__init__(unknown)
        self.max_vocab = None if max_vocab is None else as_size("WordTokenizer", "max_vocab", max_vocab)
        if max_vocab is not None and unknown is None:
            raise ValueError("WordTokenizer: max_vocab needs an unknown token, but unknown is None")

    def fit(self, text: str) -> Self:
        """Learn the tokens of `text`, in place of any learnt before; returns the tokenizer."""
        self._check_text("fit", text)
        counts = Counter(self._PIECE.findall(text))
        counts.pop(self.unknown or "", None)
        tokens = sorted(counts, key=lambda token: (-counts[token], token))
        return self._learn(tokens if self.max_vocab is None else tokens[: self.max_vocab - 1])

    def encode(self, text: str) -> Ids:
        """The ids of the tokens of `text`, int32, shape (number of tokens,).

        ValueError names the first token that is not in the vocabulary, and where in the text it is,
        if the tokenizer has no unknown token.
        """
        self._check_text("encode", text)
        pieces = self._PIECE.findall(text)
        if self.unknown is not None:
            return np.array([self._ids.get(piece, 0) for piece in pieces], np.int32)
        try:
            return np.array([self._ids[piece] for piece in pieces], np.int32)
        except KeyError:
            missing = next(m for m in self._PIECE.finditer(text) if m.group() not in self._ids)
            raise self._reject(missing.group(), missing.start()) from None

    def _index(self, tokens: list[str]) -> None:
        self._tokens, self._ids = tokens, {token: i for i, token in enumerate(tokens)}


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer that `Tokenizer.save` wrote.

    Parameters
    ----------
    path : str or path-like
        The JSON file.

    Returns
    -------
    CharTokenizer or WordTokenizer
        Whichever the file holds.

    Raises
    ------
    ValueError
        For a file that is not a whole and valid tokenizer; names the file and the fault.
    OSError
        If the file cannot be read, or is no regular file.
    """
    path = as_path("load_tokenizer", path)
    with open_regular(path) as (file, size):
        try:
            return Tokenizer._read(file.read(min(size, MAX_BYTES + 1)))  # that byte is what `_read` refuses
        except ValueError as error:
            raise ValueError(f"{path}: not a tokenizer: {str(error)[:1000]}") from None


def language_model_rows(ids: ArrayLike, batch_size: int) -> tuple[Ids, Ids]:
    """Cut a text into `batch_size` rows that run side by side, with the next token as the target.

    Row b holds the tokens ``ids[b * T : (b + 1) * T]``, so each row is one piece of text, for
    truncated BPTT that carries the state along the rows. Tokens that do not fill a row are left out.

    Parameters
    ----------
    ids : array_like of int, shape (N,)
        The token ids of the text, 0 <= id < 2**31.
    batch_size : int
        The number of rows B.

    Returns
    -------
    x, y : ndarray of int32, shape (B, T)
        ``T = (N - 1) // B``; ``y`` is one token ahead of ``x``. Copies, C-contiguous.

    Examples
    --------
    >>> from fastrnn.text import language_model_rows
    >>> x, y = language_model_rows([0, 1, 2, 3, 4, 5, 6], batch_size=2)
    >>> x.tolist(), y.tolist()
    ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    batch_size = as_size("language_model_rows", "batch_size", batch_size)
    array = as_ids("language_model_rows", "ids", ids, 2**31, "2**31")
    check_ndim("language_model_rows", "ids", array, "(N)")
    steps = (len(array) - 1) // batch_size
    if steps < 1:
        raise ValueError(
            f"language_model_rows: ids has {len(array)} tokens, too few for batch_size = {batch_size}: "
            f"expected at least {batch_size + 1}"
        )
    array = array.astype(np.int32)
    x = array[: batch_size * steps].reshape(batch_size, steps).copy()
    y = array[1 : batch_size * steps + 1].reshape(batch_size, steps).copy()
    return x, y


def split_text(text: _TextOrIds, validation: float = 0.1) -> tuple[_TextOrIds, _TextOrIds]:
    """Hold out the end of a text, or of an array of token ids, for validation.

    Parameters
    ----------
    text : str or array_like
        The whole; of an array, the first axis is cut.
    validation : float, default 0.1
        The fraction to hold out, in [0, 1).

    Returns
    -------
    training, validation : str or ndarray
        ``int(len(text) * (1 - validation))`` leading items, and the rest.
    """
    fraction = as_fraction("split_text", "validation", validation)
    if not isinstance(text, str):
        text = as_real("split_text", "text", text)
        if text.ndim == 0:
            raise ValueError("split_text: text has shape (), expected a string or an array (N, ...)")
    # 1 - 0.1 is a hair below 0.9: round to what was meant.
    cut = int(round(len(text) * (1.0 - fraction), 6))
    return text[:cut], text[cut:]


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _read_object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in `text`, its keys and their types checked; ValueError otherwise."""
    try:
        options = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"text is no JSON: {error}") from error
    expected = {"tokenizer", "unknown", "vocabulary"}
    if not isinstance(options, dict) or set(options) != expected:
        raise ValueError(f"expected a JSON object with exactly the keys {sorted(expected)}")
    if not isinstance(options["tokenizer"], str):
        raise ValueError(f"tokenizer is {show(options['tokenizer'])}, expected a string")
    if not isinstance(options["unknown"], str | None) or options["unknown"] == "":
        raise ValueError(f"unknown is {show(options['unknown'])}, expected a string or null")
    if not _is_list_of_strings(options["vocabulary"]):
        raise ValueError("vocabulary is not a list of strings")
    return options


def _is_list_of_strings(value: Sequence[Any]) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
