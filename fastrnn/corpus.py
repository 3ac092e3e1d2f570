"""The text to train on when the user has none: documentation that comes with every Python."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterator

# Typographic characters of the manual, so that the vocabulary is plain ASCII.
_ASCII = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "--",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\t": "    ",
    }
)

#: Modules written in C: their docstrings survive ``python -OO``, which strips those of Python code.
_DOCUMENTED = ("builtins", "math", "itertools", "collections", "time", "sys", "os")


def default_corpus() -> str:
    """About half a megabyte of English: the Python manual's topics, in alphabetical order.

    The text is that of ``pydoc_data.topics``, which ``help("topics")`` shows. Some distributions
    leave that module out; docstrings of the standard library then take its place. It is printable
    ASCII and newlines, and the same on every call for a given Python.

    Returns
    -------
    str
        The text; 490 000 characters in Python 3.12.

    Examples
    --------
    >>> from fastrnn.corpus import default_corpus
    >>> len(default_corpus()) > 100_000
    True
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        return _clean("\n\n".join(_docstrings()))
    return _clean("\n\n".join(topics[name] for name in sorted(topics)))


def _docstrings() -> Iterator[str]:
    """Every distinct docstring of the modules above, their classes and methods, sorted by name."""
    seen = set()
    for module in _DOCUMENTED:
        for owner in _members(importlib.import_module(module)):
            for thing in (owner, *(_members(owner) if isinstance(owner, type) else ())):
                text = getattr(thing, "__doc__", None)
                # An instance shows the docstring of its class: once is enough.
                if isinstance(text, str) and text not in seen:
                    seen.add(text)
                    yield text


def _members(owner: object) -> list[object]:
    """What a module or a class holds under public or special names, in the order of the names.

    `builtins._` is whatever an interactive session showed last, so private names are left out.
    """
    members = vars(owner)
    names = sorted(name for name in members if not name.startswith("_") or name.endswith("__"))
    return [members[name] for name in names if members[name] is not builtins]


def _clean(text: str) -> str:
    """Printable ASCII and newlines, no blanks at the ends of lines."""
    ascii_text = text.translate(_ASCII).encode("ascii", "ignore").decode("ascii")
    lines = ("".join(filter(str.isprintable, line)).rstrip() for line in ascii_text.split("\n"))
    return "\n".join(lines).strip("\n") + "\n"
