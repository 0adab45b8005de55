"""Pickles of arrays are read as the arrays that were written; anything else is refused before it runs."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from medseg.errors import ModelError
from medseg.models.pretrained.zoos.array_pickle import read_array_pickle

ARRAYS = {
    "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big endian": np.arange(5, dtype=">f4"),
    "half": np.ones(3, np.float16),
    "counts": np.array([1, -2], np.int64),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
    "number": np.float32(2.5),
}


def written(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_come_back(tmp_path, protocol):
    content = {
        "model": collections.OrderedDict(ARRAYS),
        "__author__": "Detectron2 Model Zoo",
        "plain": [1, 2.5, None, True, ("a", b"\xff")],
    }
    found = read_array_pickle(written(tmp_path / "model.pkl", content, protocol))
    assert found["__author__"] == content["__author__"]
    assert found["plain"] == content["plain"]
    assert list(found["model"]) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        read = found["model"][name]
        assert np.array_equal(read, expected), name
        assert np.asarray(read).shape == expected.shape
        if name != "number":
            assert read.dtype == expected.dtype.newbyteorder("="), name


def test_names_of_older_numpy_are_known(tmp_path):
    content = pickle.dumps({"a": ARRAYS["kernel"]}, protocol=2)
    other = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    if other == content:
        other = content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert other != content
    path = tmp_path / "model.pkl"
    path.write_bytes(other)
    assert np.array_equal(read_array_pickle(path)["a"], ARRAYS["kernel"])


def test_strings_of_python_2_are_arrays(tmp_path):
    """Python 2 stored the bytes of an array, and the name of its type, as strings."""
    head = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
    )
    kind = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    path = tmp_path / "model.pkl"
    path.write_bytes(head + kind + b"\x89U\x08" + struct.pack("<ff", 1.0, 300.0) + b"tb.")
    assert read_array_pickle(path).tolist() == [1.0, 300.0]


class Calls:
    """An object that calls a function with values when it is unpickled without care."""

    def __init__(self, function, *values):
        self.function, self.values = function, values

    def __reduce__(self):
        return self.function, self.values


class Changed:
    """An array whose state is something else."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        function, values, _ = np.zeros(1).__reduce__()
        return function, values, self.state


FLOAT = np.dtype("f4")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch TRACE"), f"{os.system.__module__}.system"),
        (Calls(open, "TRACE", "w"), "io.open|_io.open"),
        (Calls(builtins.eval, "open('TRACE', 'w')"), "builtins.eval|__builtin__.eval"),
        (Calls(getattr, "text", "upper"), "getattr"),
        (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
        (np.array([Calls(os.system, "touch TRACE")], dtype=object), "system|type 'O8'"),
        (np.array([None], dtype=object), "an array of type 'O8'"),
        (np.zeros(1, [("a", "f4")]), "an array of type 'V4'"),
        (np.array(["text"]), "an array of type 'U4'"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "an array of type 'M8'"),
        (Changed((1, (4,), FLOAT, False, b"\0" * 8)), "8 bytes for an array of 16"),
        (Changed((1, (-1,), FLOAT, False, b"")), r"an array of shape \(-1,\)"),
        (Changed((1, (1 << 62, 1 << 62), FLOAT, False, b"")), "0 bytes for an array of"),
        (Changed((1, (1,), "f4", False, b"\0" * 4)), "without type or shape"),
        (Changed((1, (1,), FLOAT, False, [1.0])), "an array of objects"),
        (Changed((None, {"code": "f4"})), "a readable|not enough values|change of 'code'"),
        (np.zeros, "numpy.zeros"),
        (np.ndarray, "a value of type constructor"),
        ({1, 2}, "builtins.set|__builtin__.set"),
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "model.pkl", {"model": content})
    with pytest.raises(ModelError, match=named) as caught:
        read_array_pickle(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "TRACE").exists()


def test_stand_ins_cannot_be_changed(tmp_path):
    """The operation BUILD sets attributes of an object; here of the function that creates arrays, and of an array."""
    state = pickle.dumps((None, {"_build": "x", "values": 1}), protocol=2)[2:-1]
    for made in (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\n_reconstruct\n)R"):
        path = tmp_path / "model.pkl"
        path.write_bytes(b"\x80\x02" + made + state + b"b.")
        with pytest.raises(ModelError):
            read_array_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x02",
        pickle.dumps(ARRAYS, protocol=2)[:-200],
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.",  # a terabyte of bytes
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
        b"\x80\x02r" + struct.pack("<I", (1 << 31) - 1) + b".",  # an index into the memory of the unpickler
        b"\x80\x02]" + b"(" * 10 + b"l" * 20 + b".",
        b"(" * 100_000 + b"t" * 100_000 + b".",
    ],
    ids=["empty", "text", "header", "cut", "terabyte", "buffer", "index", "marks", "nested"],
)
def test_damaged_pickles_are_refused(tmp_path, content):
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable pickle of arrays"):
        read_array_pickle(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.pkl: no such file"):
        read_array_pickle(tmp_path / "model.pkl")
