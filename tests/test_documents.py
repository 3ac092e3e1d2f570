"""Documents in files: the same when they come back, and nothing else comes out of a damaged file."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file, save_file

from fastrnn.checkpoint import MAX_TENSORS, open_file, read_file, write_file
from fastrnn.files import MAX_BYTES, MAX_DEPTH, MAX_MARKS

# ---- documents ------------------------------------------------------------------------------------


def test_a_document_comes_back_with_its_arrays(tmp_path, rng):
    document = {
        "none": None,
        "numbers": [1, -(2**130), 0.1, 1e-320, float("inf"), float("-inf"), True],
        "numpy": [np.float64(0.1), np.int32(3), np.bool_(True)],
        "text": 'é \ud800 "$',
        "arrays": {
            name: rng.normal(size=shape).astype(dtype)
            for name, shape, dtype in [
                ("a", (2, 3), "f4"),
                ("b", (), "f8"),
                ("c", (0, 5), "f4"),
                ("d", 3, "u8"),
            ]
        },
        "arrays/a": np.arange(3),
        "strided": rng.normal(size=(4, 6))[::2, ::3].T,
        "tuple": (np.ones(1), None),
    }
    write_file(tmp_path / "a", "checkpoint", document)
    result = read_file(tmp_path / "a", "checkpoint")

    assert list(result) == list(document)
    for key in ("none", "numbers", "text"):
        assert result[key] == document[key]
    assert result["numpy"] == [0.1, 3, True]
    for name, array in document["arrays"].items():
        assert result["arrays"][name].dtype == array.dtype
        assert result["arrays"][name].flags.aligned
        np.testing.assert_array_equal(result["arrays"][name], array)
    np.testing.assert_array_equal(result["arrays/a"], [0, 1, 2])
    np.testing.assert_array_equal(result["strided"], document["strided"])
    assert result["tuple"] == [1.0, None]
    assert len(load_file(tmp_path / "a")) == 7, "the safetensors library reads the file too"


def test_nan_comes_back(tmp_path):
    write_file(tmp_path / "a", "checkpoint", {"x": float("nan")})
    assert np.isnan(read_file(tmp_path / "a", "checkpoint")["x"])


def test_the_same_document_gives_the_same_bytes(tmp_path):
    files = []
    for name in "ab":
        write_file(tmp_path / name, "model", {"z": np.ones(2), "a": np.zeros(3), "m": {"b": 1, "a": 2}})
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "document",
    [
        {"x": {1, 2}},
        {"x": {1: 2}},
        {"x": {"$tensor": 1}},
        {"x": np.array(["a"])},
        {"x": np.array([1j])},
        {"x": b""},
    ],
    ids=["set", "number as key", "reserved key", "strings", "complex", "bytes"],
)
def test_what_does_not_fit_is_refused_before_writing(tmp_path, document):
    with pytest.raises(TypeError, match="x"):
        write_file(tmp_path / "a", "model", document)
    assert os.listdir(tmp_path) == []


def nested(levels, innermost):
    for _ in range(levels):
        innermost = [innermost]
    return innermost


def holding_itself():
    document = {"x": []}
    document["x"].append(document)
    return document


def billions():
    """A few lists that hold each other; written out, they are without end."""
    document = []
    for _ in range(50):
        document = [document] * 10
    return document


class Twin(str):
    """A key that is equal to no other."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"x": nested(MAX_DEPTH, 0)}, r"x/0/.* is nested more than 100 levels deep, or holds itself"),
        ({"x": nested(10**5, 0)}, r"x/0/.* is nested more than 100 levels deep, or holds itself"),
        ({"x": billions()}, "x has more than 524288 values in it"),
        (holding_itself(), r"x/0/x/0/.* is nested more than 100 levels deep, or holds itself"),
        ({"x": [1, -(10**640)]}, "x/1 is an integer of more than 640 digits"),
        ({"x": [0] * (MAX_MARKS - 2)}, "brackets, commas and colons"),
        ({"x": "a" * MAX_BYTES}, "header has .* bytes"),
        ({"x": "é" + "a" * (MAX_BYTES // 2)}, "not all in ASCII"),
        ({"x": "\ud83d\ude00"}, "two surrogates"),
        ({"\ud83d\ude00": 1}, "two surrogates"),
        ({Twin("x"): 1, Twin("x"): 2}, "repeated: 'x'"),
        ({"x": np.zeros((1,) * 33)}, "shape"),
        ({"x": [np.zeros(0)] * (MAX_TENSORS + 1)}, "tensors, expected at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_be_read_again_is_not_written(tmp_path, document, message):
    path = tmp_path / "a"
    write_file(path, "model", {"x": "sound"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        write_file(path, "model", document)
    assert len(str(caught.value)) < 500
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_masked_array_is_refused(tmp_path):
    with pytest.raises(TypeError, match="x/0 is a masked array"):
        write_file(tmp_path / "a", "model", {"x": [np.ma.masked_array([1.0, 2.0], [True, False])]})


class Subclass(np.ndarray):
    pass


def test_documents_at_the_limits_come_back(tmp_path):
    document = {
        "deep": nested(MAX_DEPTH - 2, np.ones(2)),
        "deep float": nested(MAX_DEPTH - 1, float("inf")),
        "integers": [10**640 - 1, -(10**640 - 1)],
        "many": [0] * (MAX_MARKS - 1000),
        "wide": "é" + "a" * (MAX_BYTES // 2 - 99),
        "subclass": np.ones(2).view(Subclass),
        "\ud800": np.arange(2),
        "__metadata__": np.arange(3),
        "": np.arange(4),
    }
    write_file(tmp_path / "a", "model", document)
    assert_same(read_file(tmp_path / "a", "model"), document)


def assert_same(value, like):
    """Equal, in types too; tuples have become lists, and NumPy's numbers Python's."""
    if isinstance(like, dict):
        assert isinstance(value, dict)
        assert list(value) == list(like)
        for key, item in like.items():
            assert_same(value[key], item)
    elif isinstance(like, (list, tuple)):
        assert isinstance(value, list)
        assert len(value) == len(like)
        for item, other in zip(value, like, strict=True):
            assert_same(item, other)
    elif isinstance(like, np.ndarray):
        np.testing.assert_array_equal(value, np.asarray(like), strict=True)
    else:
        like = like.item() if isinstance(like, np.generic) else like
        assert (type(value), repr(value)) == (type(like), repr(like))


dtypes = st.sampled_from(["f4", "f8", "i4", "i8", "u4", "u8"]).map(np.dtype)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**700), 10**700)
    | st.floats()
    | st.floats(width=32).map(np.float32)
    | st.text(st.characters())  # lone surrogates too
    | dtypes.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=3)))
)
documents = st.dictionaries(
    st.text(st.characters(), max_size=4),
    st.recursive(
        leaves,
        lambda items: (
            st.lists(items)
            | st.lists(items).map(tuple)
            | st.dictionaries(st.text(st.characters(), max_size=4), items)
        ),
    ),
)


@given(documents)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_every_document_that_is_written_comes_back(tmp_path, document):
    path = tmp_path / "a"
    path.write_bytes(b"")
    try:
        write_file(path, "checkpoint", document)
    except (ValueError, TypeError):
        assert path.read_bytes() == b""
    else:
        assert_same(read_file(path, "checkpoint"), document)


# ---- damage ---------------------------------------------------------------------------------------


def raw(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_metadata(content: object, **tensors: object) -> dict[str, object]:
    return {
        "__metadata__": {"fastrnn": content if isinstance(content, str) else json.dumps(content)},
        **tensors,
    }


CONTENT = {"kind": "model", "version": 1, "document": {}}


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "empty": (b"", "too few"),
    "seven bytes": (b"1234567", "too few"),
    "text": (b"this is no model at all", "header of"),
    "longer header than file": ((2**63).to_bytes(8, "little") + b"{}", "header of"),
    "no JSON": (raw(b"{{{{"), "not sound JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not sound JSON"),
    "a list": (raw([]), "not a JSON object"),
    "deep": (raw(b"[" * 100_000), "nested too deeply|sound JSON"),
    "NaN": (raw(b'{"a": NaN}'), "NaN is no JSON"),
    "1e999": (raw(b'{"a": 1e999}'), "1e999 is no JSON"),
    "endless integer": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "sound JSON"),
    "repeated name": (raw(b'{"a": 1, "a": 2}'), "repeated: 'a'"),
    "repeated name in the content": (raw(with_metadata('{"a": 1, "a": 2}')), "repeated: 'a'"),
    "deep content": (raw(with_metadata('{"a":' * 5000)), "nested too deeply"),
    "endless number in the content": (raw(with_metadata("1" * 700)), "more than 640 digits"),
    "content of many values": (raw(with_metadata("[" + "0," * MAX_MARKS)), "brackets, commas and colons"),
    "no metadata": (raw({}), "not written by fastrnn"),
    "foreign": (raw({"__metadata__": {"format": "pt"}}), "not written by fastrnn"),
    "metadata no object": (raw({"__metadata__": 3}), "not written by fastrnn"),
    "content no JSON": (raw(with_metadata("{")), "Expecting"),
    "content a list": (raw(with_metadata([])), "not as fastrnn"),
    "more metadata": (raw({"__metadata__": {"fastrnn": json.dumps(CONTENT), "x": ""}}), "not as fastrnn"),
    "other version": (raw(with_metadata({**CONTENT, "version": 2})), "version 2"),
    "true version": (raw(with_metadata({**CONTENT, "version": True})), "version True"),
    "other kind": (
        raw(with_metadata({**CONTENT, "kind": "checkpoint"})),
        "is a 'checkpoint', expected a 'model'",
    ),
    "no document": (raw(with_metadata({"kind": "model", "version": 1})), "no document"),
    "unknown key": (raw(with_metadata({**CONTENT, "x": 1})), "unknown keys"),
    "wrong checksum": (raw(with_metadata({**CONTENT, "sha256": "0" * 64})), "checksum"),
    "entry no object": (raw(with_metadata(CONTENT, a=3)), "entry of tensor 'a'"),
    "entry without shape": (raw(with_metadata(CONTENT, a={"dtype": "F32", "data_offsets": [0, 4]})), "'a'"),
    "unknown dtype": (raw(with_metadata(CONTENT, a=entry("F8_E4M3")), b"1234"), "F8_E4M3"),
    "dtype a list": (raw(with_metadata(CONTENT, a=entry(["F32"])), b"1234"), "dtype is"),
    "negative size": (raw(with_metadata(CONTENT, a=entry(shape=(-1,))), b"1234"), "not a list of sizes"),
    "size a float": (raw(with_metadata(CONTENT, a=entry(shape=(1.0,))), b"1234"), "not a list of sizes"),
    "size a bool": (raw(with_metadata(CONTENT, a=entry(shape=(True,))), b"1234"), "not a list of sizes"),
    "huge": (raw(with_metadata(CONTENT, a=entry(shape=(2**62, 2**62))), b"1234"), "4 bytes for F32"),
    "huge and consistent": (raw(with_metadata(CONTENT, a=entry(shape=(2**60,), end=2**62)), b"1234"), "take"),
    "65 dimensions": (raw(with_metadata(CONTENT, a=entry(shape=(1,) * 65)), b"1234"), "not a list of sizes"),
    "three offsets": (
        raw(with_metadata(CONTENT, a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}), b"1234"),
        "not two sizes",
    ),
    "end before begin": (raw(with_metadata(CONTENT, a=entry(begin=4, end=0)), b"1234"), "-4 bytes"),
    "overlap": (raw(with_metadata(CONTENT, a=entry(), b=entry()), b"1234"), "begins at byte 0, expected 4"),
    "hole": (
        raw(with_metadata(CONTENT, a=entry(begin=4, end=8)), b"12345678"),
        "begins at byte 4, expected 0",
    ),
    "bytes left": (raw(with_metadata(CONTENT, a=entry()), b"12345"), "the file has 5"),
    "bytes missing": (raw(with_metadata(CONTENT, a=entry()), b"123"), "the file has 3"),
    "unmentioned tensor": (raw(with_metadata(CONTENT, a=entry()), b"1234"), "does not mention: 'a'"),
    "missing tensor": (raw(with_metadata({**CONTENT, "document": {"$tensor": "b"}})), "'b' is missing"),
    "tensor name a list": (raw(with_metadata({**CONTENT, "document": {"$tensor": [1]}})), "is missing"),
    "false float": (raw(with_metadata({**CONTENT, "document": {"$float": "1"}})), r"\$float"),
    "float a list": (raw(with_metadata({**CONTENT, "document": {"$float": [1]}})), r"\$float"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_a_value_error_with_file_and_fault(tmp_path, name):
    data, message = DAMAGED[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_file(path, "model")
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def test_a_header_too_long_is_not_parsed(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as file:  # sparse: the disk holds 8 bytes of it
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    with pytest.raises(ValueError, match="expected at most"):
        read_file(path, "model")


def test_a_file_that_shrinks_while_it_is_read_is_a_value_error(tmp_path):
    path = tmp_path / "a"
    write_file(path, "model", {"x": np.arange(1e5)})
    with pytest.raises(ValueError, match=f"{path}: the file was cut short"), open_file(path, "model") as file:  # noqa: PT012
        os.truncate(path, path.stat().st_size - 8)
        file.read_document()


def test_references_are_checked_before_tensors_are_read(tmp_path):
    path = tmp_path / "a"
    size = 1 << 41
    data = raw(with_metadata(CONTENT, a=entry("F32", (size // 4,), 0, size)))
    with open(path, "wb") as file:  # sparse
        file.write(data)
        file.truncate(len(data) + size)
    with pytest.raises(ValueError, match="does not mention: 'a'"):
        read_file(path, "model")


def test_tensors_that_memory_cannot_hold_are_an_os_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    path = tmp_path / "a"
    write_file(path, "model", {"x": np.arange(4.0)})
    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(OSError, match="memory") as caught:
        read_file(path, "model")
    assert caught.value.filename == str(path)


def test_every_bit_of_the_data_is_under_the_checksum(tmp_path):
    path = tmp_path / "a"
    write_file(path, "model", {"x": np.arange(4.0)})
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read_file(path, "model")


def test_a_file_of_another_program_is_refused(tmp_path):
    save_file({"weight": np.ones((2, 2))}, tmp_path / "a")
    with pytest.raises(ValueError, match="not written by fastrnn"):
        read_file(tmp_path / "a", "model")


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "a", "model")
