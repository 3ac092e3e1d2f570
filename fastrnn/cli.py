"""The command line as the user meets it: its arguments, and one line for each error; commands.py acts."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from .recipe import DEMO, FULL
from .recurrent import LAYERS

# Modules that take time to import are imported where they are used, so that -h and mistakes answer at once.

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        The exit status: 0, 1 after an error, 130 after Ctrl-C. Arguments that make no sense raise
        SystemExit(2), as `argparse` does.

    Examples
    --------
    >>> from fastrnn.cli import main
    >>> main(["generate", "no such file"])
    1
    """
    _accept_any_text()
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()  # here, where a closed pipe or a full disk is expected
        return status
    except KeyboardInterrupt:
        print("fastrnn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, ValueError, ArithmeticError, ImportError, MemoryError) as error:
        _give_up_output()
        if not isinstance(error, BrokenPipeError):
            print(f"fastrnn: error: {describe(error)}", file=sys.stderr)
        return 1


def _accept_any_text() -> None:
    """Print characters that the terminal's encoding lacks as question marks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _give_up_output() -> None:
    """Forget what standard output holds if it cannot be written: the interpreter tries again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(error: BaseException) -> str:
    """One line, however the error was worded."""
    if isinstance(error, OSError) and error.strerror is not None:
        # Whatever uses a file names it, see commands._naming; the rest is print.
        name = "standard output" if error.filename is None else os.fsdecode(error.filename)
        return f"{name}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastrnn: error: {message} (see '{self.prog} -h')\n")

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file, flush=True)  # argparse would hide that the disk is full

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()  # here, where main reports what goes wrong
        super().exit(status, message)


class Checker(argparse.ArgumentParser):
    """Errors as ValueError, for options that do not come from the command line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _integer(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        with suppress(ValueError):
            if minimum <= int(text) <= maximum:
                return int(text)
        raise argparse.ArgumentTypeError(f"expected an integer from {minimum} to {maximum}, not {text!r}")

    return convert


def _number(condition: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{text} is not a number {condition}")
        return value

    convert.__name__ = "number"
    return convert


_fraction = _number(">= 0 and < 1", lambda value: 0 <= value < 1)
_share = _number("> 0 and <= 1", lambda value: 0 < value <= 1)
_positive = _number("> 0", lambda value: value > 0)
_at_least_0 = _number(">= 0", lambda value: value >= 0)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, not ''")
    return text


def _picture(text: str) -> str:
    if Path(text).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png, .pdf or .svg")
    return text


def _parser() -> argparse.ArgumentParser:
    from .commands import generate, info, train  # that module imports this one
    from .version import __version__

    parser = _Parser(
        prog="fastrnn",
        description="Train recurrent neural networks on text, and let them write.",
        epilog="'fastrnn COMMAND -h' explains a command. A first try, in about a minute: fastrnn train",
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands, train)
    _add_generate(commands, generate)
    parser_of_info = commands.add_parser(
        "info", help="print version, engine, threads and BLAS", description=info.__doc__
    )
    parser_of_info.set_defaults(run=info)
    return parser


def _add_command(
    commands: Any, name: str, run: Callable[..., int], usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A command that calls `run`, whose docstring describes it."""
    summary = run.__doc__ or name
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        usage=usage,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any, action: Callable[..., int]) -> None:
    parser = _add_command(
        commands,
        "train",
        action,
        "fastrnn train [FILE ...] [options]",
        """\
examples:
  fastrnn train                                     a first try, on the manual of Python
  fastrnn train book.txt --out book.safetensors     the full recipe, on a text of yours
  fastrnn train book.txt --out book.safetensors --resume
                                                    go on after Ctrl-C or a crash
  fastrnn train *.txt --cell gru --hidden 512 --plot loss.png

OUT is the model with the lowest validation loss, also after Ctrl-C; until an epoch has ended, OUT
is left as it was. OUT.ckpt has what --resume needs; it may be deleted when the training is over,
and is not overwritten before, unless with --resume.""",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="UTF-8 text; - is standard input")
    add_recipe(parser)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--out",
        type=_path,
        default="model.safetensors",
        metavar="OUT",
        help="the model (default: %(default)s)",
    )
    run.add_argument(
        "--resume", action="store_true", help="go on from OUT.ckpt, with the options it was begun with"
    )
    run.add_argument("--csv", type=_path, metavar="LOG", help="write the losses of each epoch to this file")
    run.add_argument("--plot", type=_picture, metavar="PNG", help="draw the losses (needs matplotlib)")
    run.add_argument(
        "--sample",
        type=_integer(0),
        default=500,
        metavar="N",
        help="how many tokens to write in the end (default: %(default)s)",
    )
    run.add_argument(
        "--progress",
        choices=("auto", "bar", "lines", "none"),
        default="auto",
        help="auto is a bar on a terminal, else a line for each epoch",
    )
    _add_threads(run, "all; fewer are faster where other work keeps some of them busy")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """An option for each field of Recipe; None where it is not given."""
    group: Any = None

    def add(name: str, text: str, kind: Callable[[str], Any] | None = None, choices: Any = None) -> None:
        full, demo = getattr(FULL, name), getattr(DEMO, name)
        default = f"{full}" if full == demo else f"{full}; without FILE {demo}"
        metavar = None if choices else "N" if isinstance(full, int) else "X"
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            choices=choices,
            metavar=metavar,
            help=f"{text} (default: {default})",
        )

    group = parser.add_argument_group("model")
    add("cell", "the recurrent layer", choices=tuple(LAYERS))
    add("hidden", "hidden units of a layer", _integer(1))
    add("layers", "recurrent layers", _integer(1))
    add("embedding", "numbers that stand for a token", _integer(1))
    add("dropout", "share of activations dropped after each recurrent layer", _fraction)
    group = parser.add_argument_group("text")
    add(
        "tokenizer",
        "what a token is: a character, or a word or what is between words",
        choices=("char", "word"),
    )
    add("max_vocab", "with --tokenizer word, how many words to know", _integer(2))
    add("validation", "share of the text, at its end, to be tested on instead of trained on", _fraction)
    group = parser.add_argument_group("training")
    add("epochs", "times to go through the text", _integer(1))
    add("batch_size", "pieces of the text to go through side by side", _integer(1))
    add("bptt", "steps of backpropagation through time", _integer(1))
    add("learning_rate", "of Adam, at the start", _positive)
    add("schedule", "how the learning rate goes on", choices=("cosine", "constant"))
    add("clip_norm", "largest norm of the gradient; 0 for any", _at_least_0)
    add("seed", "of initial weights and dropout", _integer(0))


def _add_generate(commands: Any, action: Callable[..., int]) -> None:
    parser = _add_command(
        commands,
        "generate",
        action,
        "fastrnn generate MODEL [options]",
        """\
examples:
  fastrnn generate model.safetensors
  fastrnn generate model.safetensors --prompt "The " --length 200 --temperature 0.5""",
    )
    parser.add_argument("model", metavar="MODEL", help="a file that 'fastrnn train' wrote")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to carry on (default: a new line)")
    parser.add_argument(
        "--length", type=_integer(0), default=1000, metavar="N", help="tokens to write (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=_at_least_0,
        default=0.8,
        metavar="X",
        help="0 is the most likely text, 1 as the model has learnt it, above 1 wilder (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=_integer(1), metavar="N", help="draw from the N most likely tokens only"
    )
    parser.add_argument(
        "--top-p", type=_share, metavar="X", help="draw from the fewest tokens that make up this probability"
    )
    parser.add_argument(
        "--seed",
        type=_integer(0),
        default=0,
        metavar="N",
        help="the same seed writes the same text (default: %(default)s)",
    )
    _add_threads(parser, "1")


def _add_threads(parser: Any, default: str) -> None:
    parser.add_argument(
        "--threads",
        type=_integer(1, 1024),
        metavar="N",
        help=f"use at most N processor cores (default: FASTRNN_NUM_THREADS, else {default})",
    )
