"""What ``fastrnn train``, ``fastrnn generate`` and ``fastrnn info`` do, when cli.py has their arguments."""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .cli import INTERRUPTED, Checker, add_recipe, describe
from .recipe import DEMO, FULL, Recipe

if TYPE_CHECKING:
    from .callbacks import Callback, History
    from .model import Sequential
    from .text import Ids, Tokenizer

# Modules that take time to import are imported where they are used, so that -h and mistakes answer at once.

#: The cosine ends at this share of the learning rate.
FINAL_RATE = 0.01
#: Rows of the validation text. Each starts from a state of zeros, so few rows cost the least context.
VALIDATION_ROWS = 8
#: Between epochs, too, no more than this is lost when a run is killed.
CHECKPOINT_EVERY = timedelta(seconds=30)


def info(arguments: argparse.Namespace) -> int:
    """Print version, engine, threads, BLAS and the versions of NumPy and SciPy."""
    from .settings import show_config

    show_config()
    return 0


def generate(arguments: argparse.Namespace) -> int:
    """Write text with a trained model, token by token."""
    from .saving import load

    _set_threads(arguments.threads, default=1)  # a single step is too little to share
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


def train(arguments: argparse.Namespace) -> int:
    """Train a language model on text, save it, and show what it writes."""
    try:
        return _train_and_show(arguments)
    except MemoryError as error:
        raise MemoryError(
            f"not enough memory ({describe(error)}): choose a smaller --hidden, --layers, --embedding, "
            "--batch-size or --bptt"
        ) from None


def _train_and_show(arguments: argparse.Namespace) -> int:
    _check_files(arguments.files, arguments.out, arguments.csv, arguments.plot)
    if not arguments.resume:
        _check_checkpoint(_checkpoint_path(arguments.out))
    _set_threads(arguments.threads, default=None)
    text = _read_text(arguments.files)
    run = _choose_run(arguments, text)
    _check_files(arguments.files, arguments.out, run.csv, arguments.plot)  # --csv may be the checkpoint's
    tokenizer, training, validation = _prepare(text, run.recipe)
    model = _build(run.recipe, tokenizer.vocab_size, steps=training[0].shape[1])
    model.metadata = {"tokenizer": _as_readable_json(tokenizer), "recipe": asdict(run.recipe)}
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
    checker = Checker(add_help=False)
    add_recipe(checker)
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
        if Path(path).is_char_device() or Path(path).is_block_device():  # a pipe, as of <(...), has an end
            raise OSError(errno.EINVAL, "Is a device, which may have no end")
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


def _as_readable_json(tokenizer: Tokenizer) -> str:
    """The tokenizer for the model's file; ValueError now, before the training, if it could not be read."""
    from .text import Tokenizer

    text = tokenizer.to_json()
    try:
        Tokenizer.from_json(text)
    except ValueError as fault:
        size = f"a vocabulary of {tokenizer.vocab_size:,} tokens is too large"
        raise ValueError(f"{size}: {fault}; choose a smaller --max-vocab") from None
    return text


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
    from .recurrent import LAYERS

    rng = np.random.default_rng(recipe.seed)
    between = recipe.dropout if recipe.layers > 1 else 0.0
    model = Sequential(
        [
            Embedding(vocab_size, recipe.embedding, rng=rng),
            LAYERS[recipe.cell](recipe.embedding, recipe.hidden, recipe.layers, dropout=between, rng=rng),
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


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in an error that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


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


def _set_threads(threads: int | None, default: int | None) -> None:
    """What --threads says, or the environment, or `default`; None leaves the setting alone."""
    from .settings import set_num_threads

    if threads is None and "FASTRNN_NUM_THREADS" not in os.environ:
        threads = default
    if threads is not None:
        set_num_threads(threads)


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
