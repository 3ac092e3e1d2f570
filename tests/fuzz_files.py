"""Feeds broken, hostile and odd files to all that reads files: `load`, `load_tokenizer`, ``fit(resume=True)``.

    python tests/fuzz_files.py --count 20000 --seed 0

A case depends on the seed and its number alone: ``--first 123 --count 1`` runs one again. Every call must
succeed or raise a ValueError or an OSError that names the file, in a second of processor time and 200 MB of
memory. The cases run in a worker process, so that a crash and a hang are results like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import os
import random
import re
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn import checkpoint, files, load
from fastrnn.callbacks import EarlyStopping
from fastrnn.cli import main as command_line
from fastrnn.commands import _read_checkpoint
from fastrnn.layers import Dense, Dropout, Embedding, LastStep
from fastrnn.model import Sequential, TrainingDiverged
from fastrnn.optimizers import SGD, Adam
from fastrnn.recurrent import GRU, LSTM, RNN
from fastrnn.schedules import CosineDecay, StepDecay
from fastrnn.text import CharTokenizer, Tokenizer, WordTokenizer, load_tokenizer

MEMORY = 200_000_000
HANG = 60.0  # seconds without a word from the worker
ADDRESS_SPACE = 6 << 30  # of the worker: what is larger than memory fails at once, not by the system's killer

# ---- sound files ----------------------------------------------------------------------------------


def layer_stacks(dtype: str) -> list[list[Any]]:
    return [
        [
            Embedding(4, 3, dtype=dtype, rng=0),
            RNN(3, 2, dtype=dtype, rng=1),
            Dense(2, 4, activation="softmax", dtype=dtype),
        ],
        [LSTM(2, 3, 2, proj_size=2, dropout=0.1, bidirectional=True, dtype=dtype, rng=0), Dropout(0.2)],
        [GRU(2, 3, reset_after=False, bias=False, batch_first=True, dtype=dtype, rng=0), LastStep()],
        [
            Dense(2, 3, activation="tanh", dtype=dtype, rng=0),
            RNN(3, 2, nonlinearity="relu", dtype=dtype, rng=1),
        ],
    ]


def sound_models(folder: Path) -> list[bytes]:
    results = []
    for dtype in ("float32", "float64"):
        for index, layers in enumerate(layer_stacks(dtype)):
            model = Sequential(layers)
            if index == 1:
                model.compile(SGD(StepDecay(0.1, [2, 3]), momentum=0.5), "mse", clip_norm=1.0)
            tokenizer = CharTokenizer().fit("aé\N{SNOWMAN}\n")
            metadata = {"tokenizer": tokenizer.to_json(), "list": [1, 0.5, None, {"x": float("inf")}, "é"]}
            model.save(folder / "sound", metadata=metadata if index == 0 else None)
            results.append((folder / "sound").read_bytes())
    return results


class Stop(Exception):
    """Ends a run in the middle."""


class Trainer:
    """A run that has a checkpoint in the middle of an epoch, and one at its end."""

    def __init__(self, folder: Path) -> None:
        self.sound: list[bytes] = []
        for epochs, last in ((2, 4), (1, None)):
            with contextlib.suppress(Stop):
                self.fit(folder / "sound", epochs=epochs, last=last, resume=False)
            self.sound.append((folder / "sound").read_bytes())

    def fit(self, path: Any, *, epochs: int = 2, last: int | None = None, resume: bool = True) -> None:
        layers = [
            Embedding(3, 2, rng=0),
            LSTM(2, 2, dropout=0.0, rng=1),
            Dense(2, 3, activation="softmax", rng=2),
        ]
        model = Sequential(layers, rng=np.random.Generator(np.random.MT19937(3)))
        model.compile(Adam(CosineDecay(0.01, 9)), "sparse_categorical_crossentropy")
        x = np.arange(18).reshape(3, 6) % 3

        class Brake(EarlyStopping):
            def on_batch_end(self, batch: int, logs: Any) -> None:
                if last is not None and self.model.optimizer.iterations >= last:
                    raise Stop

        model.fit(
            x,
            (x + 1) % 3,
            epochs=epochs,
            batch_size=2,
            truncate=4,
            verbose=0,
            callbacks=[Brake("loss", 5, restore_best_weights=True)],
            checkpoint=path,
            checkpoint_every=1,
            resume=resume,
        )


def sound_tokenizers() -> list[bytes]:
    text = "to be, or not to be: é\N{GRINNING FACE}\n"
    kinds = [CharTokenizer(), CharTokenizer("?"), WordTokenizer(), WordTokenizer(unknown=None)]
    return [kind.fit(text).to_json().encode() for kind in kinds]


# ---- mutations ------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flipped bits, cuts, insertions, pieces overwritten; half of them in the header, where there is one."""
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(max(1, min(len(broken), rng.choice((8, 1 << 12, 1 << 30)))))
        length = rng.choice((1, 2, 8, 100))
        match rng.randrange(7):
            case 0:
                broken[at : at + 1] = bytes([broken[at] ^ 1 << rng.randrange(8)]) if at < len(broken) else b""
            case 1:
                del broken[at:]
            case 2:
                del broken[at : at + length]
            case 3:
                broken[at:at] = rng.randbytes(length)
            case 4:
                broken[at:at] = broken[at : at + length]
            case 5:
                broken[at : at + length] = b"%d" % rng.getrandbits(rng.choice((8, 31, 64)))
            case 6:
                broken[at : at + 1] = rng.choice(b'"{}[],:\\0-eN \xff\0').to_bytes()
    return bytes(broken)


#: What no JSON library writes; put in as text.
RAW = [
    "NaN", "-Infinity", "1e999", "-0", "01", "1E-400", "9" * 700, "9" * 20_000, "0." + "1" * 20_000, "tru",
    '{"a": 1, "a": 2}', '"\\ud800"', '"\\ud83d\\ude00"', '"\t"', '"\\x"', "[" * 90 + "]" * 90,
    "[" * 120 + "]" * 120, "[" * 5000 + "]" * 5000, '{"a":' * 400 + "1" + "}" * 400, "[" * 5000, "", ",", "/**/",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.0, 0.5, 1.0,
    -1.5, 1e308, "", "x", "0", "float32", "float64", "tanh", "relu", "LSTM", "GRU", "F32", "F64", "I64", "U8",
    "parameters/0.weight", "\0", "é", "x" * 5000, [], {}, [0], [1, 2], [2**62, 2**62], {"name": "adam"}, {"name": []},
    {"$tensor": "parameters/0.weight"}, {"$tensor": 0}, {"$float": "inf"}, {"$float": "1"}, {"class": "Dropout"},
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything in a JSON tree."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            found.append((node, key))
            if isinstance(value, (dict, list)):
                pending.append(value)
    return found


def mutate_json(rng: random.Random, tree: Any) -> str:
    """The text of `tree` after some edits."""
    raw = {}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        known = places(tree)
        if not known:
            break
        node, key = rng.choice(known)
        match rng.randrange(8):
            case 0 | 1 | 2:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            case 3:
                raw[f"RAW{len(raw)}"] = rng.choice(RAW)
                node[key] = f"RAW{len(raw) - 1}"
            case 4:
                del node[key]
            case 5:
                other, place = rng.choice(known)
                node[key] = (
                    json.loads(json.dumps(other[place])) if place in range(99999) or place in other else 0
                )
            case 6 if isinstance(node, dict):
                node[rng.choice(("x", "", "$x", "é", "\ud800", "__metadata__", "rng", str(key) + "'"))] = (
                    node.pop(key)
                )
            case 7 if isinstance(node, list):
                node[key:key] = [node[key]] * rng.choice((1, 2, 1000))
            case _ if isinstance(node[key], int) and not isinstance(node[key], bool):
                node[key] += rng.choice((-1, 1, 2**16, 2**31))
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.9)
    for name, literal in raw.items():
        text = text.replace(f'"{name}"', literal)
    if rng.random() < 0.05:  # a repeated key
        members = list(re.finditer(r'"[^"\\]*": (?=[\["\d])', text))
        if members:
            member = rng.choice(members)
            text = text[: member.start()] + member.group() + "0, " + text[member.start() :]
    return text


def mutate_tensors(rng: random.Random, data: bytes) -> bytes:
    """Edits of a safetensors file that keep its form, so that the checks behind the form are reached."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), bytearray(data[end:])
    content = json.loads(header.pop("__metadata__")["fastrnn"])
    if rng.random() < 0.3 and body:
        at = rng.randrange(len(body))
        body[at : at + 8] = rng.choice((rng.randbytes(8), np.float64("nan").tobytes(), b"\xff" * 8))[
            : len(body) - at
        ]
    checksum = rng.choice(("leave out", "keep", "correct"))
    if checksum != "keep":
        del content["sha256"]
    edited = rng.random()
    content_text = mutate_json(rng, content) if edited < 0.7 else json.dumps(content)
    header_text = mutate_json(rng, header) if edited > 0.6 else json.dumps(header)
    if checksum == "correct":
        content_text = with_checksum(content_text, header_text, bytes(body))
    metadata = '"__metadata__": ' + json.dumps({"fastrnn": content_text})
    if header_text.startswith("{"):
        rest = header_text[1:]
        header_text = "{" + metadata + ("" if rest == "}" else ", ") + rest
    encoded = header_text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        body += bytes(rng.choice((1, 4, 1000)))
    return len(encoded).to_bytes(8, "little") + encoded + bytes(body)


def with_checksum(content_text: str, header_text: str, body: bytes) -> str:
    """The checksum that the contents have now; without one if they are too broken to have one."""
    try:
        content = json.loads(content_text)
        arrays = {}
        for name, entry in json.loads(header_text).items():
            begin, end = entry["data_offsets"]
            array = np.frombuffer(body[begin:end], checkpoint._DTYPES[entry["dtype"]])
            arrays[name] = array.reshape(entry["shape"])
        content["sha256"] = checkpoint._digest(content, arrays)
        return json.dumps(content)
    except Exception:
        return content_text


# ---- bombs ----------------------------------------------------------------------------------------

#: (before, again and again, after): JSON that is small in a file, and large or slow in Python.
PATTERNS = [
    ("[", "[", ""), ("[", "]", ""), ("", "[]", ""), ('{"a":', '{"a":', ""), ("[", "[],", "0]"), ("[", "{},", "0]"),
    ("[", '{"a":0},', "0]"), ("[", "0,", "0]"), ("[", "0.12345678901234567,", "0]"), ("[", '"",', "0]"),
    ("[", '"word",', "0]"), ("[", '"{i}w",', "0]"), ("{", '"{i}w":0,', '"a":0}'), ("{", '"a":0,', '"a":0}'),
    ("{", '"{i}w":[],', '"a":0}'), ("", "9", ""), ("0.", "3", ""), ('"', "a", '"'), ('"\\ud83d\\ude00', "a", '"'),
    ('"', "\N{GRINNING FACE}", '"'), ('"\N{GRINNING FACE}', "a", '"'), ('"', '\\"', '"'), ('"', "\\\\", '"'),
    ('"', "\\u00e9", '"'), ('"\\ud83d\\ude00', '\\"', '"'), ("[", '"aaaaaaaaaaaaaaa\\ud83d\\ude00",', "0]"),
    ('"', '\\\\\\"', '"'), ("[", '"' + "a" * 99 + '\N{GRINNING FACE}",', "0]"), ("", " ", "0"), ("[", '"",0,', "0]"),
    ("[", "[[[[[0]]]]],", "0]"), ('["', '","', '"]'), ("", '"', ""), ("[", "1e5,", "0]"), ("[", "NaN,", "0]"),
]  # fmt: skip


def json_bomb(rng: random.Random) -> str:
    before, again, after = rng.choice(PATTERNS)
    size = rng.choice((10**5, 10**6, 2 * 10**6, 5 * 10**6, 12 * 10**6, 16 * 10**6, 33 * 10**6, 40 * 10**6))
    marks = sum(map(again.count, "[]{},:"))
    count = size // len(again.encode())
    if marks and rng.random() < 0.7:
        count = min(count, files.MAX_MARKS // marks - 10)  # just within the limit
    middle = (
        "".join([again.replace("{i}", str(i)) for i in range(count)]) if "{i}" in again else again * count
    )
    return before + middle + after


def tokenizer_bomb(rng: random.Random) -> bytes:
    bomb = json_bomb(rng)
    if rng.random() < 0.5:
        name = rng.choice(("tokenizer", "unknown", "vocabulary"))
        known = {"tokenizer": '"word"', "unknown": "null", "vocabulary": "[]"} | {name: bomb}
        bomb = "{" + ", ".join(f'"{key}": {value}' for key, value in known.items()) + "}"
    return bomb.encode("utf-8", "surrogatepass")


def tensor_bomb(rng: random.Random, data: bytes) -> bytes:
    """A bomb as the header, in its place in the header, in the document, or in the tokenizer within that."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), data[end:]
    content = json.loads(header["__metadata__"]["fastrnn"])
    if rng.random() < 0.5:
        del content["sha256"]
    match rng.randrange(8):
        case 0:
            text = json_bomb(rng)
        case 1:
            text = json.dumps(header)[:-1] + ', "x": ' + json_bomb(rng) + "}"
        case 2:
            header["__metadata__"]["fastrnn"] = json_bomb(rng)
            text = json.dumps(header, ensure_ascii=rng.random() < 0.5)
        case 3 | 4:
            content["document"][rng.choice(list(content["document"]))] = "BOMB"
            bomb = json.dumps(content).replace('"BOMB"', json_bomb(rng))
            header["__metadata__"]["fastrnn"] = bomb
            text = json.dumps(header, ensure_ascii=rng.random() < 0.5)
        case 5 if "metadata" in content["document"]:
            content["document"]["metadata"]["tokenizer"] = tokenizer_bomb(rng).decode(
                "utf-8", "surrogatepass"
            )
            header["__metadata__"]["fastrnn"] = json.dumps(content)
            text = json.dumps(header)
        case 6:  # very many layers
            entry = rng.choice(
                ({"class": "Dropout", "config": {"rate": 0.1}}, {"class": "LastStep", "config": {}})
            )
            content["document"]["layers"] = [entry] * rng.choice((900, 1100, 30_000))
            header["__metadata__"]["fastrnn"] = json.dumps(content)
            text = json.dumps(header)
        case _:  # very many tensors, or a layer of very many layers
            count = rng.choice((1000, 30_000, 36_000))
            names = [f"parameters/0.w{i}" for i in range(count)]
            empty = rng.random() < 0.5
            at = [0 if empty else 4 * i for i in range(count + 1)]
            body = bytes(at[-1])
            entries = {
                name: {"dtype": "F32", "shape": [0] if empty else [], "data_offsets": [at[i], at[i + 1]]}
                for i, name in enumerate(names)
            }
            config = {
                "input_size": 1,
                "hidden_size": 1,
                "num_layers": rng.choice((1, count // 2, 10**6, 2**31 - 1)),
            }
            content["document"]["layers"] = [{"class": "RNN", "config": config}]
            header = {"__metadata__": {"fastrnn": json.dumps(content)}, **entries}
            text = json.dumps(header)
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + body


# ---- odd paths ------------------------------------------------------------------------------------


def make_odd_paths(folder: Path) -> list[Any]:
    """What is no regular file, or no file at all."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    for name, target in (
        ("loop", "loop"),
        ("dangling", "none"),
        ("to fifo", "fifo"),
        ("to zero", "/dev/zero"),
    ):
        (folder / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    here = [
        folder / name for name in ("fifo", "folder", "loop", "to fifo", "to zero", "socket", "folder/none")
    ]
    devices = [
        "/dev/zero",
        "/dev/null",
        "/dev/full",
        "/dev/random",
        "/dev/tty",
        "/dev/stdin",
        "/dev/fd/0",
        "/dev",
    ]
    system = ["/proc/self/mem", "/proc/kmsg", "/proc/self/environ", "/proc/self/pagemap", "/proc/kcore"]
    none = ["", "a\0b", "\ud800", "x" * 5000, b"bytes", 0, 1, 3, True, None, 1.5, [], folder / "fifo" / "x"]
    return [*here, *devices, *system, *none]


def sparse_file(rng: random.Random, path: Path, data: bytes) -> None:
    """Sizes beyond belief; the disk holds next to nothing of them."""
    size = rng.choice((1 << 33, 1 << 40, 1 << 42))
    end = 8 + int.from_bytes(data[:8], "little")
    match rng.randrange(4 if data[8:9] == b"{" else 2):
        case 0:
            data = rng.choice((1 << 20, 1 << 33, 1 << 39, 1 << 63, 2**64 - 1)).to_bytes(8, "little")
        case 1:
            pass
        case _:  # sound but for its size: one tensor takes nearly all of the file
            header = json.loads(data[8:end])
            content = json.loads(header.pop("__metadata__")["fastrnn"])
            content.pop("sha256")
            name = rng.choice(list(header))
            # Only a callback knows how large its arrays are: what it has not looked at is read.
            numbers = 1 << (40 if name.startswith("callbacks") else 29)
            header[name] = {"dtype": "F64", "shape": [numbers]}
            if rng.random() < 0.3 and "layers" in content["document"]:
                config = {"input_dim": 1 << 30, "output_dim": 1 << 10, "dtype": "float64"}
                content["document"]["layers"] = [{"class": "Embedding", "config": config}]
                content["document"]["parameters"] = {"0.weight": {"$tensor": "parameters/0.weight"}}
                header = {"parameters/0.weight": {"dtype": "F64", "shape": [1 << 30, 1 << 10]}}
            size = 0
            for entry in header.values():
                begin, size = size, size + int(entry["dtype"][1:]) // 8 * math.prod(entry["shape"])
                entry["data_offsets"] = [begin, size]
            text = json.dumps({"__metadata__": {"fastrnn": json.dumps(content)}, **header}).encode()
            data = len(text).to_bytes(8, "little") + text
            size += len(data)
    with open(path, "wb") as file:
        file.write(data)
        file.truncate(size)


# ---- one case -------------------------------------------------------------------------------------


def use_model(path: Any) -> None:
    model = load(path)
    size = getattr(model.layers[0], "input_size", 2)
    x = np.zeros((1, 3) if isinstance(model.layers[0], Embedding) else (1, 3, size))
    model.predict(x.astype(int) if x.ndim == 2 else x)
    if isinstance(model.metadata.get("tokenizer"), str):
        with contextlib.suppress(ValueError):
            use_tokenizer(Tokenizer.from_json(model.metadata["tokenizer"]))


def use_tokenizer(tokenizer: Tokenizer) -> None:
    for token in range(min(tokenizer.vocab_size, 100)):
        tokenizer.encode(tokenizer.decode(token))


def use_command_line(path: Any) -> None:
    if isinstance(path, (str, os.PathLike)):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            command_line(["generate", os.fspath(path), "--length", "3"])


class Cases:
    """All that cases need, made once in a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trainer = Trainer(folder)
        self.models = sound_models(folder)
        self.tokenizers = sound_tokenizers()
        self.odd = make_odd_paths(folder)

    def make(self, seed: int, number: int) -> tuple[str, Callable[[Any], Any], Any]:
        """(what it is, the call, its path) of one case."""
        rng = random.Random(f"{seed} {number}")
        call, sound = rng.choice(
            [
                (use_model, self.models),
                (use_model, self.models),
                (self.trainer.fit, self.trainer.sound),
                (self.trainer.fit, self.trainer.sound),
                (lambda path: use_tokenizer(load_tokenizer(path)), self.tokenizers),
                (use_command_line, self.models[:1]),
                (_read_checkpoint, self.trainer.sound),
            ]
        )
        data = rng.choice(sound)
        path = self.folder / "case"
        kind = rng.choices(("bytes", "edit", "odd path", "sparse", "bomb"), (40, 50, 7, 1, 1))[0]
        text = sound is self.tokenizers
        if kind == "odd path":
            return kind, call, rng.choice(self.odd)
        if kind == "sparse":
            sparse_file(rng, path, data)
        elif kind == "bytes":
            path.write_bytes(mutate_bytes(rng, data))
        elif kind == "edit":
            edited = mutate_json(rng, json.loads(data)).encode("utf-8", "surrogatepass") if text else None
            path.write_bytes(edited or mutate_tensors(rng, data))
        else:
            path.write_bytes(tokenizer_bomb(rng) if text else tensor_bomb(rng, data))
        return kind, call, path

    def run(self, seed: int, number: int, seconds: float) -> str | None:
        """What is wrong with one case, None if nothing is."""
        kind, call, path = self.make(seed, number)
        baseline = reset_peak()
        begin = time.process_time()
        fault = outcome(call, path)
        used, grown = time.process_time() - begin, peak() - baseline
        if used > seconds:
            fault = f"took {used:.1f} s"
        if grown > MEMORY:
            fault = f"took {grown / 1e6:.0f} MB"
        return fault and f"{kind}, {getattr(call, '__name__', call)}({path!s:.60}): {fault}"


def outcome(call: Callable[[Any], Any], path: Any) -> str | None:
    """None if the call does what calls may do."""
    try:
        with np.errstate(all="ignore"):
            call(path)
    except TypeError as error:
        return None if not isinstance(path, (str, os.PathLike)) else repr(error)[:300]
    except TrainingDiverged:
        return None  # by weights that a case has made infinite
    except (ValueError, OSError) as error:
        message = str(error)
        named = not isinstance(path, Path) or str(path) in message or "codec can't" in message
        return (
            f"{message[:200]!r} does not name the file"
            if not named
            else "a long message" * (len(message) > 9999)
        )
    except BaseException as error:
        return repr(error)[:300]
    return None


def peak() -> int:
    """The largest memory since `reset_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Where the system can't, the peak before counts: a case is then seen only if it is the largest."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")
    return peak()


# ---- processes ------------------------------------------------------------------------------------


def work(seed: int, first: int, end: int, seconds: float) -> None:
    """Run cases, and print the number of each before it begins, and its fault if there is one."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as name:
        cases = Cases(Path(name))
        for number in range(first, end):
            print(json.dumps([number, None]), flush=True)
            fault = cases.run(seed, number, seconds)
            if fault:
                print(json.dumps([number, fault]), flush=True)
    print(json.dumps([end, None]), flush=True)


def run_worker(seed: int, first: int, end: int, seconds: float) -> tuple[int, list[str]]:
    """(the case to go on with, the faults so far) of one worker's life."""
    options = ["--seed", seed, "--first", first, "--count", end - first, "--seconds", seconds, "--worker"]
    command = [sys.executable, __file__, *map(str, options)]
    path = [str(Path(fastrnn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }  # the same fastrnn as here
    number, faults, begun = first, [], False
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None
        selector = selectors.DefaultSelector()
        selector.register(worker.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(HANG):
                worker.kill()
                faults.append(f"{number}: hung for {HANG} s")
                return number + 1, faults
            line = worker.stdout.readline()
            if not line:
                break
            (number, fault), begun = json.loads(line), True
            faults += [f"{number}: {fault}"] if fault else []
            if number == end:
                return end, faults
    if not begun:
        raise RuntimeError(f"the worker could not begin, it ended with status {worker.returncode}")
    faults.append(f"{number}: the worker ended with status {worker.returncode}")
    return number + 1, faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=20_000, help="how many cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: %(default)s)")
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first case (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="limit for a case (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    end = options.first + options.count
    if options.worker:
        work(options.seed, options.first, end, options.seconds)
        return 0
    begin, number, faults = time.monotonic(), options.first, []
    while number < end:
        number, found = run_worker(options.seed, number, end, options.seconds)
        faults += found
    for fault in faults:
        print(fault)
    seconds = time.monotonic() - begin
    print(f"{options.count} cases of seed {options.seed} in {seconds:.0f} s: {len(faults)} failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
