"""The command line: ``fastrnn train``, ``fastrnn generate`` and ``fastrnn info``."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from .callbacks import Callback, History
    from .model import Sequential
    from .text import Ids, Tokenizer

# Modules that take time to import are imported where they are used, so that -h and mistakes answer at once.


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what ``fastrnn train`` makes of a text; each field is an option of that name."""

    cell: str = "lstm"
    hidden: int = 256
    layers: int = 2
    embedding: int = 64
    dropout: float = 0.3
    tokenizer: str = "char"
    max_vocab: int = 10_000
    validation: float = 0.1
    epochs: int = 15
    batch_size: int = 32
    bptt: int = 64
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    clip_norm: float = 1.0
    seed: int = 0


#: For a text of the user's: about a megabyte, trained to the end.
FULL = Recipe()
#: For the text that comes with Python: a minute on two cores.
DEMO = replace(FULL, layers=1, dropout=0.0, epochs=3, batch_size=16, learning_rate=4e-3)

#: The cosine ends at this share of the learning rate.
FINAL_RATE = 0.01
#: Rows of the validation text. Each starts from a state of zeros, so few rows cost the least context.
VALIDATION_ROWS = 8
#: Between epochs, too, no more than this is lost when a run is killed.
CHECKPOINT_EVERY = timedelta(seconds=30)

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
            print(f"fastrnn: error: {_describe(error)}", file=sys.stderr)
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


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in an error that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


def _describe(error: BaseException) -> str:
    """One line, however the error was worded."""
    if isinstance(error, OSError) and error.strerror is not None:
        # Whatever uses a file names it, see _naming; the rest is print.
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


class _Checker(argparse.ArgumentParser):
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
    from .version import __version__

    parser = _Parser(
        prog="fastrnn",
        description="Train recurrent neural networks on text, and let them write.",
        epilog="'fastrnn COMMAND -h' explains a command. A first try, in about a minute: fastrnn train",
    )
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_generate(commands)
    info = commands.add_parser(
        "info", help="print version, engine, threads and BLAS", description=_info.__doc__
    )
    info.set_defaults(run=_info)
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


def _add_train(commands: Any) -> None:
    parser = _add_command(
        commands,
        "train",
        _train,
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
    _add_recipe(parser)
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
    _add_threads(run)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
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
    add("cell", "the recurrent layer", choices=("rnn", "lstm", "gru"))
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


def _add_generate(commands: Any) -> None:
    parser = _add_command(
        commands,
        "generate",
        _generate,
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
    _add_threads(parser)


def _add_threads(parser: Any) -> None:
    parser.add_argument(
        "--threads",
        type=_integer(1, 1024),
        metavar="N",
        help="use at most N processor cores (default: FASTRNN_NUM_THREADS or 1; more threads help only "
        "from about 512 hidden units or large batches on)",
    )


# ------------------------------------------------------------------------------------------- commands


def _info(arguments: argparse.Namespace) -> int:
    """Print version, engine, threads, BLAS and the versions of NumPy and SciPy."""
    from .settings import show_config

    show_config()
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    """Write text with a trained model, token by token."""
    from .model import load

    _set_threads(arguments.threads)
    model = load(arguments.model)
    tokenizer = _tokenizer_of(model, arguments.model)
    _write(
        model,
        tokenizer,
        arguments.prompt,
        num_generate=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    return 0


def _train(arguments: argparse.Namespace) -> int:
    """Train a language model on text, save it, and show what it writes."""
    try:
        return _train_and_show(arguments)
    except MemoryError as error:
        raise MemoryError(
            f"not enough memory ({_describe(error)}): choose a smaller --hidden, --layers, --embedding, "
            "--batch-size or --bptt"
        ) from None


def _train_and_show(arguments: argparse.Namespace) -> int:
    _check_files(arguments.files, arguments.out, arguments.csv, arguments.plot)
    if not arguments.resume:
        _check_checkpoint(_checkpoint_path(arguments.out))
    _set_threads(arguments.threads)
    text = _read_text(arguments.files)
    run = _choose_run(arguments, text)
    _check_files(arguments.files, arguments.out, run.csv, arguments.plot)  # --csv may be the checkpoint's
    tokenizer, training, validation = _prepare(text, run.recipe)
    model = _build(run.recipe, tokenizer.vocab_size, steps=training[0].shape[1])
    model.metadata = {"tokenizer": tokenizer.to_json(), "recipe": asdict(run.recipe)}
    _introduce(arguments.files, len(text), tokenizer, model, run.recipe)

    with _blaming_checkpoint(arguments):
        history = _fit(model, training, validation, run, arguments)
        _report(history, arguments.out, run.recipe)
    if arguments.plot is not None and history.epoch:
        from .diagnostics import plot_history

        with _naming(arguments.plot):
            plot_history(history, arguments.plot)
    if history.interrupted:
        return INTERRUPTED
    if arguments.sample:
        print("\nA sample, as by 'fastrnn generate':\n")
        _write(model, tokenizer, "", num_generate=arguments.sample)
    return 0


# ------------------------------------------------------------------------------------- parts of `train`


@dataclass(frozen=True)
class _Run:
    """What a checkpoint keeps, so that --resume can go on with the same."""

    recipe: Recipe
    csv: str | None
    text_sha256: str


class _Begun(NamedTuple):
    """A run as its checkpoint has it."""

    run: _Run
    unfinished: bool  #: something is trained, but not all


def _choose_run(arguments: argparse.Namespace, text: str) -> _Run:
    """The recipe: what was asked for, completed by that of the checkpoint, or the one for such a text."""
    given = {
        field.name: getattr(arguments, field.name)
        for field in fields(Recipe)
        if getattr(arguments, field.name) is not None
    }
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    fresh = _Run(replace(FULL if arguments.files else DEMO, **given), arguments.csv, digest)
    path = _checkpoint_path(arguments.out)
    if not arguments.resume:
        return fresh
    if not os.path.exists(path):
        print(f"fastrnn: there is no {path}, training from the start", file=sys.stderr)
        return fresh
    begun = _read_checkpoint(path).run
    if begun.text_sha256 != digest:
        raise ValueError(f"--resume: {path} was begun with another text than that of FILE")
    for name, value in given.items():
        before = getattr(begun.recipe, name)
        if before != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"--resume: {path} was begun with {option} {before}, which is now {value}")
    if begun.csv is None and arguments.csv is not None:
        raise ValueError(f"--resume: {path} was begun without --csv")
    return replace(begun, csv=arguments.csv or begun.csv)


def _read_checkpoint(path: str) -> _Begun:
    from .checkpoint import open_file

    with open_file(path, "checkpoint") as file:
        try:
            state = file.document["callbacks"][0]
            recipe, csv, digest = state["recipe"], state["csv"], state["text_sha256"]
        except (KeyError, IndexError, TypeError):
            raise ValueError("the checkpoint is not one of 'fastrnn train'") from None
        if not isinstance(csv, str | None) or not isinstance(digest, str):
            raise ValueError("the checkpoint's csv or text_sha256 is no string")
        run = _Run(_as_recipe(recipe), csv, digest)
        position = file.document["position"]
        done = [position[name] for name in ("epoch", "batch", "chunk")]
        if not all(type(number) is int and number >= 0 for number in done):
            raise ValueError(f"the checkpoint's position is {done}")
        return _Begun(run, unfinished=any(done) and done[0] < run.recipe.epochs)


def _as_recipe(values: Any) -> Recipe:
    """The recipe of a file, checked as the command line is."""
    known = asdict(FULL)
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError("the checkpoint is of another version of 'fastrnn train'")
    for name, value in values.items():
        if type(value) is not type(known[name]):
            raise ValueError(f"the recipe has {name} = {value!r}")
    checker = _Checker(add_help=False)
    _add_recipe(checker)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return Recipe(**vars(checker.parse_args(options)))


def _check_checkpoint(path: str) -> None:
    """A run that did not end, or a file of something else, is not overwritten without a word."""
    if not os.path.exists(path):
        return
    try:
        unfinished = _read_checkpoint(path).unfinished
    except ValueError as error:
        raise ValueError(f"{error}: delete it, or choose another --out") from None
    if unfinished:
        raise ValueError(f"{path} is of a run that did not end: go on with --resume, or delete it")


@contextmanager
def _blaming_checkpoint(arguments: argparse.Namespace) -> Iterator[None]:
    """With --resume, whatever does not fit together is in the checkpoint: name it."""
    path = _checkpoint_path(arguments.out)
    faults = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError)
    try:
        yield
    except (*faults, OverflowError, ZeroDivisionError) as fault:
        if not arguments.resume or str(fault).startswith(path):
            raise
        raise ValueError(f"{path}: {type(fault).__name__}: {fault}") from fault


def _fit(
    model: Sequential, training: Rows, validation: Rows | None, run: _Run, arguments: argparse.Namespace
) -> History:
    """Train, save the best model, and say how fast it was."""
    from .callbacks import LambdaCallback

    recipe, out = run.recipe, arguments.out
    callbacks = _callbacks(run, out, monitor="val_loss" if validation else "loss")
    updates: list[
        int
    ] = []  # of this call, without those that a checkpoint had; each by its place in the epoch
    callbacks.append(LambdaCallback(on_batch_end=lambda batch, logs: updates.append(batch)))
    begin = time.monotonic()
    with _naming(_checkpoint_path(out)):
        history = model.fit(
            *training,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            validation_data=validation,
            callbacks=callbacks,
            shuffle=False,
            truncate=recipe.bptt,
            verbose=_verbosity(arguments.progress),
            checkpoint=_checkpoint_path(out),
            checkpoint_every=CHECKPOINT_EVERY,
            resume=arguments.resume,
        )
    seconds = time.monotonic() - begin
    if history.epoch:
        with _naming(out):
            model.save(out)
    rows, steps = training[0].shape
    tokens = rows * sum(min(recipe.bptt, steps - index * recipe.bptt) for index in updates)
    if tokens:
        unit = "characters" if recipe.tokenizer == "char" else "tokens"
        print(f"Trained in {timedelta(seconds=round(seconds))}, {tokens / seconds:,.0f} {unit} a second")
    elif not history.interrupted:
        print(f"Nothing was left to do: the training was over, after {len(history.epoch)} epochs")
    return history


def _callbacks(run: _Run, out: str, monitor: str) -> list[Callback]:
    from .callbacks import Callback, CSVLogger, EarlyStopping

    class KeepRun(Callback):
        """Puts the run's description into its checkpoint."""

        def state_dict(self) -> dict[str, Any]:
            return asdict(run)

    class SaveBest(EarlyStopping):
        """Saves the best model as soon as there is one, and ends with it; never stops the run."""

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
            super().on_epoch_end(epoch, logs)
            if self.best_epoch == epoch:
                with _naming(out):
                    self.model.save(out)

    class Log(CSVLogger):
        """Names the file when the disk is full."""

        def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
            with _naming(self.path):
                super().on_epoch_end(epoch, logs)

    best = SaveBest(monitor, patience=run.recipe.epochs, restore_best_weights=True)
    return [KeepRun(), best] + ([] if run.csv is None else [Log(run.csv)])


def _read_text(files: Sequence[str]) -> str:
    """The texts of all files, one after the other; without files, the one that every Python has."""
    if not files:
        from .corpus import default_corpus

        return default_corpus()
    return "".join(map(_read_file, files))


def _read_file(path: str) -> str:
    name = "standard input" if path == "-" else path
    with _naming(name):
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


Rows = tuple["Ids", "Ids"]


def _prepare(text: str, recipe: Recipe) -> tuple[Tokenizer, Rows, Rows | None]:
    """The tokenizer, and (x, y) of the training and of the validation text, if there is one."""
    from .text import CharTokenizer, WordTokenizer, language_model_rows, split_text

    learnt, held_out = split_text(text, recipe.validation)
    tokenizer: Tokenizer
    if recipe.tokenizer == "word":
        tokenizer = WordTokenizer(recipe.max_vocab).fit(learnt)
    else:
        tokenizer = CharTokenizer().fit(text)  # all of it: characters have to be known, or cannot be read
    ids, held_out_ids = tokenizer.encode(learnt), tokenizer.encode(held_out)
    if len(ids) <= recipe.batch_size or (recipe.validation and len(held_out_ids) < 2):
        characters = recipe.tokenizer == "char"
        size = f"{len(text)} characters" if characters else f"{len(ids) + len(held_out_ids)} tokens"
        raise ValueError(
            f"the text is too short: {size}, expected at least {_least_size(recipe)} "
            f"with --batch-size {recipe.batch_size} and --validation {recipe.validation}"
        )
    training = language_model_rows(ids, recipe.batch_size)
    if not recipe.validation:
        return tokenizer, training, None
    rows = min(VALIDATION_ROWS, len(held_out_ids) - 1)
    return tokenizer, training, language_model_rows(held_out_ids, rows)


def _least_size(recipe: Recipe) -> int:
    """The fewest tokens that leave one for each row and the next, and two to validate on."""
    share = recipe.validation
    size = math.ceil(round((recipe.batch_size + 1) / (1 - share), 6))
    return max(size, math.floor(1 / share) + 1) if share else size


def _build(recipe: Recipe, vocab_size: int, steps: int) -> Sequential:
    """The compiled model; `steps` is the length of the training rows."""
    import numpy as np

    from . import schedules
    from .layers import Dense, Dropout, Embedding
    from .model import Sequential
    from .optimizers import Adam
    from .recurrent import GRU, LSTM, RNN

    rng = np.random.default_rng(recipe.seed)
    cell: Any = {"rnn": RNN, "lstm": LSTM, "gru": GRU}[recipe.cell]
    between = recipe.dropout if recipe.layers > 1 else 0.0
    model = Sequential(
        [
            Embedding(vocab_size, recipe.embedding, rng=rng),
            cell(recipe.embedding, recipe.hidden, recipe.layers, dropout=between, rng=rng),
            Dropout(recipe.dropout, rng=rng),
            Dense(recipe.hidden, vocab_size, activation="softmax", rng=rng),
        ],
        rng=rng,
    )
    rate: float | schedules.Schedule = recipe.learning_rate
    if recipe.schedule == "cosine":
        updates = recipe.epochs * math.ceil(steps / recipe.bptt)
        rate = schedules.CosineDecay(recipe.learning_rate, updates, recipe.learning_rate * FINAL_RATE)
    model.compile(Adam(rate), "sparse_categorical_crossentropy", clip_norm=recipe.clip_norm or None)
    return model


# ----------------------------------------------------------------------------------------- small things


def _checkpoint_path(out: str) -> str:
    return out + ".ckpt"


def _check_files(files: Sequence[str], out: str, csv: str | None, plot: str | None) -> None:
    """Find now what would go wrong after the training, and what it would destroy."""
    outputs = {"--out": out, "the checkpoint": _checkpoint_path(out), "--csv": csv, "--plot": plot}
    named = [("FILE", "/dev/stdin" if path == "-" else path) for path in files]
    for name, path in outputs.items():
        if path is None:
            continue
        _check_output(path)
        for other_name, other in named:
            if _is_same_file(path, other):
                raise ValueError(f"{other_name} {other} and {name} {path} are the same file")
        named.append((name, path))
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'fastrnn[plot]'")


def _check_output(path: str) -> None:
    """Whether a file can be written there, in place of the one that may be there."""
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a directory")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: is not a regular file")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise ValueError(f"{path}: may not be written")
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: there is no directory {os.path.dirname(path) or folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _is_same_file(a: str, b: str) -> bool:
    if os.path.exists(a) and os.path.exists(b):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def _set_threads(threads: int | None) -> None:
    """One by default: the products of one step are too small to be worth sharing."""
    from .settings import set_num_threads

    if threads is not None or "FASTRNN_NUM_THREADS" not in os.environ:
        set_num_threads(threads or 1)


def _verbosity(progress: str) -> int:
    if progress == "auto":
        return 1 if sys.stderr.isatty() else 2
    return {"none": 0, "bar": 1, "lines": 2}[progress]


def _introduce(
    files: Sequence[str], size: int, tokenizer: Tokenizer, model: Sequential, recipe: Recipe
) -> None:
    source = ", ".join(files) if files else "the manual of Python (give a FILE to use your own text)"
    parameters = sum(value.size for value in model.parameters.values())
    print(
        f"Text: {source}: {size:,} characters, vocabulary of {tokenizer.vocab_size:,}\n"
        f"Model: {recipe.cell} {recipe.layers} x {recipe.hidden}, {parameters:,} parameters",
        flush=True,
    )


def _report(history: History, out: str, recipe: Recipe) -> None:
    name = "val_loss" if "val_loss" in history.history else "loss"
    losses = history.history.get(name, [])
    if losses:
        best = min(losses)
        epoch = history.epoch[losses.index(best)] + 1
        kind = "validation" if name == "val_loss" else "training"
        size = f"{best:.4f} nats ({best / math.log(2):.3f} bits)"
        unit = "character" if recipe.tokenizer == "char" else "token"
        print(f"Best {kind} loss: {size} per {unit}, after epoch {epoch}")
    if history.epoch:
        print(f"Saved {out}")
    else:
        print(f"fastrnn: no epoch had ended: {out} is not written", file=sys.stderr)
    if history.interrupted:
        print("'fastrnn train ... --resume' goes on")
    sys.stdout.flush()


def _tokenizer_of(model: Sequential, path: str) -> Tokenizer:
    from .text import Tokenizer

    text = model.metadata.get("tokenizer")
    if not isinstance(text, str):
        raise ValueError(f"{path}: the model has no tokenizer, it was not made by 'fastrnn train'")
    try:
        return Tokenizer.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: the tokenizer is damaged: {error}") from None


def _write(model: Sequential, tokenizer: Tokenizer, prompt: str, **options: Any) -> None:
    """Print the prompt and what follows it, each token as soon as it is there."""
    from .generation import iter_generate

    pieces = iter_generate(model, tokenizer, prompt, **options)
    print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
