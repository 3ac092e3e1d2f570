"""The boundary to files: regular ones only, whole or not there, and JSON that would cost much is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn import files, load
from fastrnn.files import MAX_BYTES, MAX_DEPTH, MAX_MARKS, as_path, open_regular, parse_json, write_atomically
from fastrnn.layers import Dense
from fastrnn.model import Sequential
from fastrnn.text import CharTokenizer, load_tokenizer


def resume(path):
    model = Sequential([Dense(1, 1, rng=0)])
    model.compile("sgd", "mse")
    x = np.ones((1, 1, 1))
    return model.fit(x, x, epochs=1, verbose=0, checkpoint=path, resume=True)


# ---- what is opened -------------------------------------------------------------------------------

READERS = [load, load_tokenizer, resume]


@pytest.mark.parametrize("reader", READERS)
def test_only_strings_and_path_likes_are_paths(reader, tmp_path):
    with open(tmp_path / "a", "wb") as file:
        for path in (file.fileno(), True, b"a", 1.5, ["a"]):
            with pytest.raises(TypeError, match="expected the path of a file"):
                reader(path)
        os.fstat(file.fileno())  # an OSError if a reader has taken the number for its own file, and closed it


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"], ids=ascii)
def test_strings_that_name_no_file_are_value_errors(reader, path):
    with pytest.raises(ValueError, match=r": (path|checkpoint) is '.*', expected the path of a file"):
        reader(path)


def test_path_likes_are_paths(tmp_path):
    assert as_path("f", tmp_path) == str(tmp_path)
    assert as_path("f", "\udcff") == "\udcff", "a byte that is not UTF-8"


ODD = """
import json, os, sys
sys.path[:0] = {path!r}
from test_files import *

results = []
for reader in READERS:
    for name in {names!r}:
        try:
            reader(name)
            results.append([reader.__name__, name, "read", ""])
        except Exception as error:
            results.append([reader.__name__, name, type(error).__name__, str(error)])
print(json.dumps(results))
"""


def run(script, names, folder, limit):
    """What the script prints; the time-out and the limit of memory only end what would go on for ever."""
    import resource

    path = [os.path.dirname(__file__), str(Path(fastrnn.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", script.format(path=path, names=names)],
        stdin=subprocess.PIPE,  # nothing comes from there
        stdout=subprocess.PIPE,
        cwd=folder,
        timeout=120,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="devices as Linux has them")
def test_what_is_no_regular_file_is_an_os_error_and_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, target in (("loop", "loop"), ("to fifo", "fifo"), ("to zero", "/dev/zero")):
        (tmp_path / name).symlink_to(target)
    names = [
        "fifo",
        "folder",
        "loop",
        "to fifo",
        "to zero",
        "/dev/zero",
        "/dev/null",
        "/dev/stdin",
        "/dev/random",
    ]
    results = run(ODD, names, tmp_path, 4 << 30)
    assert len(results) == len(READERS) * len(names)
    for reader, name, error, message in results:
        assert error in ("OSError", "IsADirectoryError"), (reader, name, error, message)
        assert repr(name) in message


def test_errors_of_the_body_name_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with open_regular(str(path)) as (file, size):
        assert (file.read(), size) == (b"abc", 3)
    for fault in (OSError(5, "Input/output error"), MemoryError()):
        with pytest.raises(OSError) as caught, open_regular(str(path)):
            raise fault
        assert caught.value.filename == str(path)
        assert str(path) in str(caught.value)


# ---- atomic writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError("no space"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, fault):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise fault

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(fault)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_data_are_synced_before_the_rename_and_the_directory_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def log_fsync(descriptor):
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def log_replace(source, target):
        assert Path(source).read_bytes() == b"data"
        assert Path(source).parent == Path(target).parent
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    write_atomically(tmp_path / "a", b"data")
    assert calls == ["file", "rename", "directory"]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_atomically(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"data"


def test_the_mode_of_a_file_stays(tmp_path):
    path = tmp_path / ("a" * 250)  # a temporary name longer than that would be too long
    write_atomically(path, b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_bytes() == b"new"


def test_only_regular_files_are_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkdir("folder")
    for path, error in (("fifo", OSError), ("folder", IsADirectoryError), ("new/", IsADirectoryError)):
        with pytest.raises(error, match=path):
            write_atomically(path, b"data")
    with pytest.raises(FileNotFoundError, match="'none/a'"):
        write_atomically("none/a", b"data")
    with pytest.raises(ValueError, match="path is ''"):
        write_atomically("", b"data")
    for wrong in (3, None, b"a"):
        with pytest.raises(TypeError, match="path is"):
            write_atomically(wrong, b"data")
    assert sorted(os.listdir()) == ["fifo", "folder"]


# ---- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        10**639,
        1e308,
        -0.0,
        5e-324,
        "",
        'é"\\\n\\"',
        "\ud800",
        [],
        {},
        {"": [1, {"a": "]]"}]},
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_what_json_writes_is_read(value):
    text = json.dumps(value)
    assert repr(parse_json(text)) == repr(value)
    assert repr(parse_json(text.encode())) == repr(value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ('{"a": 1, "b": 2, "a": 3}', "repeated: 'a'"),
        ("[NaN]", "NaN is no JSON number"),
        ("[1e999]", "1e999 is no JSON number"),
        ("1" * (files.MAX_DIGITS + 1), "more than 640 digits"),
        ("0." + "1" * files.MAX_DIGITS, "more than 640 digits"),
        ("[" * 103 + "]" * 103, "nested too deeply"),
        ('{"a":' * 103 + "1" + "}" * 103, "nested too deeply"),
        ("[" * 10**5, "nested too deeply"),
        (b'"\xff"', "codec can't decode"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_json_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        parse_json(text)


def test_the_limits_are_met_exactly():
    deep = "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)
    assert json.dumps(parse_json(deep)) == deep
    for one in (",", "[", "]", "{", "}", ":"):
        assert parse_json(f'["{one * MAX_MARKS}"]') == [one * MAX_MARKS], "in strings they are characters"
    many = "[" + "0," * (MAX_MARKS - 3) + "0]"
    assert len(parse_json(many)) == MAX_MARKS - 2
    with pytest.raises(ValueError, match=f"{MAX_MARKS + 1} brackets, commas and colons"):
        parse_json(many + ",,")
    with pytest.raises(ValueError, match=f"more than {MAX_MARKS} strings"):
        parse_json('""' * (MAX_MARKS + 1))
    for text, most in ((b'"a"', MAX_BYTES), ('"é"'.encode(), MAX_BYTES // 2)):
        assert len(parse_json(text + b" " * (most - len(text)))) == 1
        with pytest.raises(ValueError, match=f"more than {most} bytes"):
            parse_json(text + b" " * (most - len(text) + 1))


def test_one_wide_character_counts_for_all_of_its_string():
    half = MAX_BYTES // 2
    russian = json.dumps(["\N{CYRILLIC SMALL LETTER A}" * 1000] * 5000)
    assert len(russian) > half
    assert len(parse_json(russian)) == 5000, "an escape is one character"
    ascii_and_wide = '["' + "a" * (half + 9) + '", "\\u00e9"]'
    assert parse_json(ascii_and_wide)[1] == "é"
    with pytest.raises(ValueError, match="not all in ASCII"):
        parse_json('["\\u00e9' + "a" * half + '"]')


#: Small in a file, large or slow in Python.
BOMBS = {
    "nested metadata": '{"a":[' * 14 + '{"a":[1,2,3,{"b":[]}]},' * 1_200_000 + "0" + "]}" * 14,
    "lists": "[" + "[]," * 4_000_000 + "0]",
    "objects": "[" + '{"a":0},' * 1_500_000 + "0]",
    "deep": '{"a":' * 5_000_000,
    "numbers": "[" + "0.1," * 6_000_000 + "0]",
    "strings": "[" + '"ab",' * 4_000_000 + "0]",
    "repeated keys": "{" + '"a":0,' * 4_000_000 + '"a":0}',
    "wide string": '"\\ud83d\\ude00' + "a" * 30_000_000 + '"',
    "emoji": '"' + "\N{GRINNING FACE}" * 8_000_000 + '"',
}

EXPLODE = """
import sys
sys.path[:0] = {path!r}
from test_files import *
import resource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

results = []
for reader, name in {names!r}:
    before = peak()
    try:
        globals()[reader](name)
        results.append([name, "read", "", 0])
    except Exception as error:
        results.append([name, type(error).__name__, str(error), peak() - before])
print(json.dumps(results))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_parsed(name, tmp_path):
    text = BOMBS[name]
    (tmp_path / "tokenizer").write_bytes(text.encode())
    content = '{"kind": "model", "version": 1, "document": {"metadata": ' + text + "}}"
    headers = {
        "header": text,
        "content": json.dumps({"__metadata__": {"fastrnn": content}}, ensure_ascii=False),
    }
    for file, header in headers.items():
        data = header.encode()
        (tmp_path / file).write_bytes(len(data).to_bytes(8, "little") + data)
    names = [("load_tokenizer", "tokenizer"), ("load", "header"), ("load", "content"), ("resume", "content")]
    for file, error, message, megabytes in run(EXPLODE, names, tmp_path, 4 << 30):
        assert error == "ValueError", (file, error, message)
        assert message.startswith(f"{file}: ")
        assert len(message) < 1500
        assert megabytes < 200


def test_files_of_absurd_sizes_are_not_read(tmp_path):
    path = tmp_path / "a"
    for head in (b"", (1 << 40).to_bytes(8, "little"), (1 << 63).to_bytes(8, "little")):
        with open(path, "wb") as file:  # sparse: the disk holds next to nothing of it
            file.write(head)
            file.truncate(1 << 41)
        for reader in READERS:
            with pytest.raises(ValueError) as caught:
                reader(path)
            assert str(caught.value).startswith(f"{path}: ")


def test_a_vocabulary_of_a_realistic_size_fits(tmp_path):
    words = [chr(0x4E00 + i % 20_000) + chr(0x4E00 + i // 20_000) for i in range(300_000)]
    text = json.dumps({"tokenizer": "word", "unknown": "<unk>", "vocabulary": ["<unk>", *words]})
    tokenizer = CharTokenizer.__base__.from_json(text)
    tokenizer.save(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").vocabulary == tokenizer.vocabulary
    model = Sequential([Dense(1, 1)])
    model.save(tmp_path / "m", metadata={"tokenizer": text, "author": "é"})
    assert load(tmp_path / "m").metadata["tokenizer"] == text
