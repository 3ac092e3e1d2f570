"""The command line, run in this process through `main`, and as a process of its own where that matters."""

import argparse
import io
import os
import runpy
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastrnn
from fastrnn import cli, commands, corpus, files, training
from fastrnn.checkpoint import read_file, write_file
from fastrnn.cli import main
from fastrnn.generation import generate
from fastrnn.recipe import DEMO, FULL, Recipe
from fastrnn.recurrent import LAYERS
from fastrnn.text import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog.\nPack my box with five dozen jugs!\n" * 40
SMALL = ("--hidden", "8", "--embedding", "5", "--epochs", "3", "--batch-size", "4", "--bptt", "50",
         "--sample", "20", "--progress", "none")  # fmt: skip


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """A directory of its own for each test, with a text to train on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model that was trained once, not interrupted, with a log."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(["train", "text.txt", "--csv", "log.csv", *SMALL]) == 0
    return directory


def train(*options):
    return main(["train", "text.txt", *SMALL, *options])


def stop_in_epoch(monkeypatch, epoch, error):
    """Let the run fail at the end of its `epoch`-th epoch, before anything of that is kept."""
    end_epoch = training.Run._end_epoch

    def stop(run):
        if run._position.epoch + 1 == epoch:
            raise error
        end_epoch(run)

    monkeypatch.setattr(training.Run, "_end_epoch", stop)


def error_of(capsys):
    """The only line on stderr, which must be an error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("fastrnn: error: ")
    return lines[0].removeprefix("fastrnn: error: ")


# --------------------------------------------------------------------------------- train and generate


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("tokenizer", ["char", "word"])
def test_train_then_generate(cell, tokenizer, capsys):
    assert train("--cell", cell, "--tokenizer", tokenizer, "--layers", "2", "--dropout", "0.1") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "Best validation loss: " in output.out
    assert "Saved model.safetensors" in output.out
    model = fastrnn.load("model.safetensors")
    assert type(model.layers[1]) is LAYERS[cell]
    assert model.layers[1].num_layers == 2
    vocabulary = Tokenizer.from_json(model.metadata["tokenizer"])
    assert output.out.endswith(generate(model, vocabulary, "", 20) + "\n")

    options = ["--prompt", "the ", "--length", "30", "--temperature", "1.5", "--top-k", "7", "--top-p", "0.9"]
    texts = []
    for seed in ("3", "3", "4"):
        assert main(["generate", "model.safetensors", *options, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == generate(model, vocabulary, "the ", 30, 1.5, 7, 0.9, seed=3) + "\n"


def test_the_loss_falls_and_the_best_weights_are_kept(trained):
    rows = np.loadtxt(trained / "log.csv", delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == [0, 1, 2]
    assert rows[-1, 1] < rows[0, 1]
    model = fastrnn.load(trained / "model.safetensors")
    _, _, validation = commands._prepare(TEXT, Recipe(batch_size=4))
    assert model.evaluate(*validation) == pytest.approx(rows[:, 2].min(), rel=1e-5)


def test_the_model_of_the_best_epoch_wins(monkeypatch, capsys):
    losses = iter([3.0, 2.0, 4.0])
    weights = []

    def evaluate(model, *rest):
        weights.append(model.state_dict())
        return next(losses)

    monkeypatch.setattr(fastrnn.Sequential, "_evaluate", evaluate)
    assert train() == 0
    assert (
        "Best validation loss: 2.0000 nats (2.885 bits) per character, after epoch 2"
        in capsys.readouterr().out
    )
    saved = fastrnn.load("model.safetensors").state_dict()
    assert all(np.array_equal(saved[name], weights[1][name]) for name in saved)


def test_without_validation(capsys):
    assert train("--validation", "0", "--schedule", "constant", "--clip-norm", "0") == 0
    assert "Best training loss" in capsys.readouterr().out


def test_without_file_the_corpus_and_the_small_recipe(monkeypatch, capsys):
    monkeypatch.setattr(corpus, "default_corpus", lambda: TEXT)
    assert main(["train", *SMALL]) == 0
    assert "manual of Python" in capsys.readouterr().out
    recipe = fastrnn.load("model.safetensors").metadata["recipe"]
    assert recipe["layers"] == DEMO.layers
    assert recipe["learning_rate"] == DEMO.learning_rate
    assert recipe["hidden"] == 8


def test_files_and_standard_input_are_read_in_turn(directory, monkeypatch, capsys):
    (directory / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n" * 30)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(("\N{SNOWMAN}\n" * 300).encode())))
    assert main(["train", "dos.txt", "-", "text.txt", *SMALL]) == 0
    tokenizer = Tokenizer.from_json(fastrnn.load("model.safetensors").metadata["tokenizer"])
    assert "\N{SNOWMAN}" in tokenizer.vocabulary
    assert "\r" not in tokenizer.vocabulary


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="a device of POSIX")
def test_text_comes_from_files_and_pipes_not_from_devices(directory, capsys):
    assert main(["train", "/dev/zero", *SMALL]) == 1
    assert error_of(capsys) == "/dev/zero: Is a device, which may have no end"
    os.mkfifo("fifo")
    writer = threading.Thread(target=lambda: Path("fifo").write_text(TEXT, encoding="utf-8"))
    writer.start()
    assert main(["train", "fifo", *SMALL]) == 0
    writer.join()


def test_a_vocabulary_too_large_to_be_read_is_found_before_the_training(directory, monkeypatch, capsys):
    monkeypatch.setattr(files, "MAX_MARKS", 20)
    assert main(["train", "text.txt", *SMALL]) == 1
    assert "tokens is too large: the JSON has" in error_of(capsys)
    assert not Path("model.safetensors.ckpt").exists()


def test_a_model_is_a_regular_file(directory, capsys):
    os.mkfifo("fifo")
    assert main(["generate", "fifo"]) == 1
    assert error_of(capsys) == "fifo: Not a regular file"


def test_progress_as_lines_and_as_a_bar(capsys):
    assert train("--progress", "lines") == 0
    assert "Epoch 3/3: loss=" in capsys.readouterr().out
    assert train("--progress", "bar") == 0
    assert "Epoch 3/3: 100%" in capsys.readouterr().err


def test_plot(directory, capsys):
    assert train("--plot", "loss.png") == 0
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")


# -------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("error", [OSError("power cut"), KeyboardInterrupt()], ids=["killed", "Ctrl-C"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(error, epoch, trained, directory, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, epoch, error)
        assert train("--csv", "log.csv") == (1 if isinstance(error, OSError) else 130)
    # What is not said again is taken from the checkpoint.
    assert main(["train", "text.txt", "--resume", "--progress", "none", "--sample", "0"]) == 0
    for name in ("model.safetensors", "log.csv"):
        assert (directory / name).read_bytes() == (trained / name).read_bytes()
    # Once more: nothing is left to do, and nothing changes.
    assert main(["train", "text.txt", "--resume", "--sample", "0"]) == 0
    assert (directory / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_run_resumes_in_mid_epoch(trained, directory, monkeypatch):
    monkeypatch.setattr(commands, "CHECKPOINT_EVERY", timedelta(0))
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, OSError("power cut"))
        assert train("--csv", "log.csv") == 1
    assert read_file("model.safetensors.ckpt", "checkpoint")["position"]["chunk"] > 1
    assert train("--resume") == 0
    assert (directory / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_ctrl_c_saves_the_best_so_far_and_says_so(monkeypatch, capsys):
    stop_in_epoch(monkeypatch, 3, KeyboardInterrupt())
    assert train() == 130
    output = capsys.readouterr()
    assert "interrupted in epoch 3; the weights are the best so far, of epoch 2" in output.err
    assert "Saved model.safetensors" in output.out
    assert "sample" not in output.out
    assert generate(
        fastrnn.load("model.safetensors"),
        Tokenizer.from_json(fastrnn.load("model.safetensors").metadata["tokenizer"]),
        "the",
        5,
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--cell", "gru", "--cell lstm, which is now gru"),
        ("--hidden", "9", "--hidden 8, which is now 9"),
        ("--layers", "1", "--layers 2, which is now 1"),
        ("--embedding", "6", "--embedding 5, which is now 6"),
        ("--dropout", "0.5", "--dropout 0.3, which is now 0.5"),
        ("--tokenizer", "word", "--tokenizer char, which is now word"),
        ("--max-vocab", "20", "--max-vocab 10000, which is now 20"),
        ("--validation", "0.2", "--validation 0.1, which is now 0.2"),
        ("--epochs", "4", "--epochs 3, which is now 4"),
        ("--batch-size", "5", "--batch-size 4, which is now 5"),
        ("--bptt", "40", "--bptt 50, which is now 40"),
        ("--learning-rate", "0.1", "--learning-rate 0.003, which is now 0.1"),
        ("--schedule", "constant", "--schedule cosine, which is now constant"),
        ("--clip-norm", "2", "--clip-norm 1.0, which is now 2.0"),
        ("--seed", "1", "--seed 0, which is now 1"),
        ("--csv", "log.csv", "without --csv"),
    ],
)
def test_a_changed_option_is_named(option, value, message, trained, directory, capsys):
    if option == "--csv":
        assert train("--epochs", "1") == 0
        checkpoint = directory / "model.safetensors.ckpt"
    else:
        checkpoint = trained / "model.safetensors.ckpt"
    (directory / "out.ckpt").write_bytes(checkpoint.read_bytes())
    capsys.readouterr()
    assert main(["train", "text.txt", "--out", "out", "--resume", option, value]) == 1
    assert error_of(capsys) == f"--resume: out.ckpt was begun {'' if option == '--csv' else 'with '}{message}"


def test_another_text_is_noticed(trained, directory, capsys):
    (directory / "text.txt").write_text(TEXT[1:] + "t")
    (directory / "out.ckpt").write_bytes((trained / "model.safetensors.ckpt").read_bytes())
    assert main(["train", "text.txt", "--out", "out", "--resume"]) == 1
    assert "begun with another text" in error_of(capsys)


def test_resume_without_a_checkpoint_starts(trained, directory, capsys):
    assert train("--resume", "--csv", "log.csv") == 0
    assert "there is no model.safetensors.ckpt, training from the start" in capsys.readouterr().err
    assert (directory / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({}, "not one of 'fastrnn train'"),
        ({"recipe": {}, "csv": None, "text_sha256": ""}, "of another version"),
        ({"recipe": vars(FULL) | {"hidden": "8"}, "csv": None, "text_sha256": ""}, "hidden = '8'"),
        (
            {"recipe": vars(FULL) | {"cell": "foo"}, "csv": None, "text_sha256": ""},
            "--cell: invalid choice: 'foo'",
        ),
        (
            {"recipe": vars(FULL) | {"bptt": 0}, "csv": None, "text_sha256": ""},
            "--bptt: expected an integer from 1",
        ),
        (
            {"recipe": vars(FULL) | {"dropout": 2.0}, "csv": None, "text_sha256": ""},
            "--dropout: 2.0 is not",
        ),
        ({"recipe": vars(FULL), "csv": 1, "text_sha256": ""}, "is no string"),
        ({"recipe": vars(FULL), "csv": None, "text_sha256": ""}, "'position'"),
    ],
)
def test_foreign_checkpoints(state, fault, capsys):
    write_file("out.ckpt", "checkpoint", {"callbacks": [state]})
    assert main(["train", "text.txt", "--out", "out", "--resume"]) == 1
    error = error_of(capsys)
    assert error.startswith("out.ckpt: ")
    assert fault in error
    # Nor is it overwritten.
    assert main(["train", "text.txt", "--out", "out"]) == 1
    assert "delete it, or choose another --out" in error_of(capsys)


def damage(path, **parts):
    document = read_file(path, "checkpoint")
    write_file("out.ckpt", "checkpoint", document | parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"position": {"epoch": 1, "batch": 0, "chunk": 0, "seed": "x", "states": 7}},
        {"history": []},
        {"history": {"history": {"loss": ["a"], "val_loss": [None]}, "epoch": [0], "losses": np.zeros(1)}},
        {"optimizer": None},
        {"logs": 3},
        {"generators": [1]},
        {"callbacks": None},
        {"best": {"value": "?", "epoch": 0, "weights": {}}},
        {"parameters": []},
    ],
)
def test_a_hostile_checkpoint_is_an_error_of_one_line(parts, trained, capsys):
    damage(trained / "model.safetensors.ckpt", **parts)
    status = main(["train", "text.txt", "--out", "out", "--resume", "--sample", "0", "--progress", "none"])
    if status:  # what is not needed any more may be wrong
        assert error_of(capsys).startswith("out.ckpt: ")


def test_an_unfinished_run_is_not_overwritten(directory, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, OSError("power cut"))
        assert train() == 1
    before = (directory / "model.safetensors.ckpt").read_bytes()
    capsys.readouterr()
    assert train() == 1
    assert "did not end: go on with --resume, or delete it" in error_of(capsys)
    assert (directory / "model.safetensors.ckpt").read_bytes() == before
    assert train("--resume") == 0
    assert train() == 0  # a run that did end may be overwritten


def test_ctrl_c_in_the_first_epoch_keeps_the_old_model(directory, monkeypatch, capsys):
    (directory / "model.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1, KeyboardInterrupt())
        assert train() == 130
    output = capsys.readouterr()
    assert "no epoch had ended: model.safetensors is not written" in output.err
    assert "Saved" not in output.out
    assert (directory / "model.safetensors").read_bytes() == b"old"


def test_a_finished_run_has_nothing_left_to_do(trained, directory, capsys):
    (directory / "out.ckpt").write_bytes((trained / "model.safetensors.ckpt").read_bytes())
    assert main(["train", "text.txt", "--out", "out", "--resume", "--csv", "log.csv", "--sample", "0"]) == 0
    assert "Nothing was left to do: the training was over, after 3 epochs" in capsys.readouterr().out


def test_speed_counts_what_was_trained(monkeypatch, capsys):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(commands.time, "monotonic", lambda: next(clock, 110.0))
    training, _ = commands._prepare(TEXT, Recipe(batch_size=4))[1:]
    assert train() == 0
    assert (
        f"Trained in 0:00:10, {3 * training[0].size / 10:,.0f} characters a second" in capsys.readouterr().out
    )


@pytest.mark.parametrize("threads", [(), ("--threads", "2")])
def test_threads(threads, monkeypatch):
    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    before = fastrnn.get_num_threads()
    try:
        fastrnn.set_num_threads(1)
        assert train("--epochs", "1", *threads) == 0
        assert fastrnn.get_num_threads() == (2 if threads else 1)
    finally:
        fastrnn.set_num_threads(before)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["train", "--cell", "qrnn"], "argument --cell: invalid choice: 'qrnn'"),
        (["train", "--hidden", "0"], "argument --hidden: expected an integer from 1 to 2147483647, not '0'"),
        (["train", "--hidden", "many"], "expected an integer from 1 to 2147483647, not 'many'"),
        (["train", "--dropout", "1"], "argument --dropout: 1 is not a number >= 0 and < 1"),
        (["train", "--learning-rate", "nan"], "argument --learning-rate: nan is not a number > 0"),
        (["train", "--plot", "loss.exe"], "argument --plot: 'loss.exe' does not end in"),
        (["train", "--out", ""], "argument --out: expected the name of a file, not ''"),
        (["train", "--no-such"], "unrecognized arguments: --no-such"),
        (["generate"], "the following arguments are required: MODEL"),
        (["generate", "m", "--temperature", "-1"], "argument --temperature: -1 is not a number >= 0"),
        (["generate", "m", "--top-p", "0"], "argument --top-p: 0 is not a number > 0 and <= 1"),
    ],
)
def test_bad_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.txt"], "missing.txt: No such file or directory"),
        (["train", "."], ".: Is a directory"),
        (["train", "binary"], "binary: not UTF-8 text: invalid start byte at byte 1"),
        (
            ["train", "short.txt"],
            "too short: 3 characters, expected at least 37 with --batch-size 32 and --validation 0.1",
        ),
        (["train", "empty.txt"], "too short: 0 characters"),
        (["train", "short.txt", "--batch-size", "1"], "too short: 3 characters"),
        (["train", "text.txt", "--out", "no/model"], "no/model: there is no directory no"),
        (["train", "text.txt", "--csv", "."], ".: is a directory"),
        (["generate", "missing"], "missing: No such file or directory"),
        (["generate", "text.txt"], "text.txt: "),
        (["generate", "untold"], "untold: the model has no tokenizer"),
        (["generate", "damaged"], "damaged: the tokenizer is damaged: "),
        (["generate", "trained", "--prompt", "the fo\N{SNOWMAN}"], "'\N{SNOWMAN}' at position 6"),
    ],
)
def test_errors_are_one_line_and_exit_with_1(arguments, message, directory, trained, capsys):
    (directory / "binary").write_bytes(b"a\xff")
    (directory / "short.txt").write_text("abc")
    (directory / "empty.txt").write_text("")
    (directory / "trained").write_bytes((trained / "model.safetensors").read_bytes())
    model = fastrnn.load(trained / "model.safetensors")
    model.save("untold", metadata={})
    model.save("damaged", metadata={"tokenizer": "{}"})
    assert main(arguments) == 1
    assert message in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "text.txt"], "FILE text.txt and --out text.txt are the same file"),
        (["--out", "./sub/../text.txt"], "are the same file"),
        (["--out", "link"], "FILE text.txt and --out link are the same file"),
        (["--csv", "text.txt"], "FILE text.txt and --csv text.txt are the same file"),
        (["--out", "a", "--csv", "./a"], "--out a and --csv ./a are the same file"),
        (["--out", "a", "--csv", "a.ckpt"], "the checkpoint a.ckpt and --csv a.ckpt are the same file"),
        (["--csv", "a.png", "--plot", "a.png"], "--csv a.png and --plot a.png are the same file"),
        (["--out", "/dev/null"], "/dev/null: is not a regular file"),
        (["--csv", "/dev/full"], "/dev/full: is not a regular file"),
        (["--plot", "no/a.png"], "no/a.png: there is no directory no"),
    ],
)
def test_outputs_are_checked_before_the_training(arguments, message, directory, capsys):
    (directory / "sub").mkdir()
    (directory / "link").symlink_to("text.txt")
    before = sorted(directory.iterdir())
    assert main(["train", "text.txt", *SMALL, *arguments]) == 1
    assert message in error_of(capsys)
    assert (directory / "text.txt").read_text(encoding="utf-8") == TEXT
    assert sorted(directory.iterdir()) == before


def test_a_folder_that_cannot_be_written(monkeypatch, capsys):
    def fail(dir):
        raise PermissionError(13, "Permission denied", f"{dir}/x")

    monkeypatch.setattr(commands.tempfile, "TemporaryFile", fail)
    assert train() == 1
    assert error_of(capsys) == "model.safetensors: Permission denied"


def test_too_large_a_model_names_the_options(capsys):
    assert main(["train", "text.txt", "--hidden", "1000000", "--embedding", "1"]) == 1
    assert "choose a smaller --hidden, --layers" in error_of(capsys)


@pytest.mark.parametrize("validation", [0.0, 0.1, 0.3, 0.5, 0.9, 0.99, 0.001])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_least_size_is_just_enough(validation, batch_size):
    recipe = Recipe(validation=validation, batch_size=batch_size)
    size = commands._least_size(recipe)
    commands._prepare("a" * size, recipe)
    with pytest.raises(ValueError, match=f"expected at least {size} with"):
        commands._prepare("a" * (size - 1), recipe)


def test_divergence_is_an_error_of_one_line(capsys):
    assert train("--learning-rate", "1e38", "--clip-norm", "0") == 1
    error = capsys.readouterr().err
    assert error.startswith("fastrnn: error: fit: epoch 1, batch 1")
    assert error.count("\n") == 1


def test_ctrl_c_outside_training(trained, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fastrnn.Sequential, "stream", interrupt)
    assert main(["generate", str(trained / "model.safetensors")]) == 130
    assert capsys.readouterr().err == "fastrnn: interrupted\n"


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["info"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "-h"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: fastrnn")
    if command == ["train"]:
        assert " ".join(output.split()).count("(default: ") == len(vars(FULL)) + 3


def test_every_part_of_the_recipe_is_an_option():
    arguments = cli._parser().parse_args(["train"])
    assert isinstance(arguments, argparse.Namespace)
    assert all(getattr(arguments, name) is None for name in vars(FULL))


# --------------------------------------------------------------------------------- as its own process


def run(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "fastrnn", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **options,
    )


def test_module_can_be_run(trained, capsys):
    with run("info") as info, run("generate", "no such file") as failure:
        output, errors = info.communicate(timeout=60)
        assert (info.returncode, errors) == (0, "")
        assert fastrnn.__version__ in output
        output, errors = failure.communicate(timeout=60)
        assert (failure.returncode, output) == (1, "")
        assert errors == "fastrnn: error: no such file: No such file or directory\n"


def test_ctrl_c_before_main_ends_it_quietly(monkeypatch, capsys):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fastrnn.cli", Interrupted())
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("fastrnn", run_name="__main__")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "fastrnn: interrupted\n"


def test_a_closed_pipe_ends_it_quietly(trained):
    with run("generate", trained / "model.safetensors", "--length", 10**9) as process:
        assert len(process.stdout.read(100)) == 100  # streamed, long before the end
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("info",), ("-h",)])
def test_a_full_standard_output_is_named(arguments, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fastrnn", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert done.stderr == "fastrnn: error: standard output: No space left on device\n"
