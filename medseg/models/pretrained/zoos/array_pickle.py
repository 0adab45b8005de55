"""Pickles of arrays, such as the ``model_final_*.pkl`` of Detectron2, read without running anything in them.

A pickle is a program that may call any function it names. This reader knows a handful of names, and answers each with an
object of its own that can only store numbers. Nothing is imported and no function of NumPy's unpickling is called.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ModelError, no_such_path
from medseg.runtime.formatting import error_reason
from medseg.runtime.out_of_memory import is_out_of_memory

_TYPE_CODE = re.compile(r"[biufc](1|2|4|8|16)|\?")
_PLAIN = (str, bytes, int, float, bool, type(None))


def read_array_pickle(path: Path) -> Any:
    """Read a pickle that holds arrays of numbers and plain values.

    Args:
        path: The file.

    Returns:
        The content: dictionaries, lists, tuples, plain values and arrays.

    Raises:
        ModelError: The file is missing, damaged, or names anything but arrays. Nothing in it was run.
    """
    try:
        with path.open("rb") as file:
            return _plain(_ArrayUnpickler(_BoundedFile(file), encoding="latin1").load())
    except FileNotFoundError:
        raise ModelError(no_such_path(path, "file")) from None
    except PermissionError:
        raise ModelError(f"{path}: cannot be read (Permission denied). Ask its owner for access.") from None
    except _RefusedError as error:
        raise ModelError(
            f"{path}: found {error} in it, expected arrays and plain values only. Nothing in it was run. Do not load files of "
            "unknown origin."
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        if is_out_of_memory(error):
            raise
        reason = error_reason(error)
        raise ModelError(
            f"{path}: not a readable pickle of arrays ({reason}). Copy the file again."
        ) from None


class _RefusedError(Exception):
    """The pickle holds something else than arrays and plain values; the text names it."""


class _Constructor:
    """An object that a pickle may call in place of the function or class that it names.

    It has no attributes that a pickle could change.
    """

    __slots__ = ("_build",)
    _build: Callable[..., Any]

    def __init__(self, build: Callable[..., Any]) -> None:
        object.__setattr__(self, "_build", build)

    def __call__(self, *values: Any) -> Any:
        return self._build(*values)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _RefusedError(f"a change of {name!r}")


class _Type:
    """The type of the numbers of an array: a code such as ``f4``, and the order of bytes."""

    __slots__ = ("code", "order")
    code: str
    order: str

    def __init__(self, code: Any, *_: Any) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(name, str) or not _TYPE_CODE.fullmatch(name):
            raise _RefusedError(f"an array of type {name!r}")
        object.__setattr__(self, "code", name)
        object.__setattr__(self, "order", "=")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _RefusedError(f"a change of {name!r}")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _RefusedError("an array of records")
        object.__setattr__(self, "order", order)

    def numpy(self) -> np.dtype[Any]:
        """Return NumPy's type."""
        kind: np.dtype[Any] = np.dtype(self.code)
        return kind if self.order in ("|", "=") else kind.newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """An array whose shape, type and bytes arrive after it was created."""

    __slots__ = ("values",)
    values: NDArray[Any] | None

    def __init__(self, *_: Any) -> None:
        object.__setattr__(self, "values", None)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _RefusedError(f"a change of {name!r}")

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, content = state
        object.__setattr__(self, "values", _numbers(content, kind, shape, "F" if column_major else "C"))


def _numbers(content: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    """Return bytes as an array, if their number is that of the shape."""
    if not isinstance(kind, _Type) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise _RefusedError("an array without type or shape")
    if isinstance(content, str):
        content = content.encode("latin1")  # the bytes of Python 2
    if not isinstance(content, (bytes, bytearray)):
        raise _RefusedError("an array of objects")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _RefusedError(f"an array of shape {shape!r}")
    wanted = prod(shape) * kind.numpy().itemsize
    if len(content) != wanted:
        raise _RefusedError(f"{len(content)} bytes for an array of {wanted}")
    found = np.frombuffer(bytearray(content), dtype=kind.numpy()).reshape(shape, order=order)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _scalar(kind: Any, content: Any) -> Any:
    return _numbers(content, kind, (), "C").item()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    return _numbers(content, kind, shape, order)


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("an unknown encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""  # older protocols have no other way to write them


def _dictionary(items: Any = ()) -> dict[Any, Any]:
    return dict(items)


def _never(*_: Any) -> NoReturn:
    raise _RefusedError("a call of numpy.ndarray")


_KNOWN: Mapping[str, _Constructor] = {
    "numpy.ndarray": _Constructor(_never),
    "numpy.dtype": _Constructor(_Type),
    "_codecs.encode": _Constructor(_bytes),
    "__builtin__.bytes": _Constructor(_no_bytes),
    "builtins.bytes": _Constructor(_no_bytes),
    "collections.OrderedDict": _Constructor(_dictionary),
} | {
    f"numpy.{core}.{name}": _Constructor(build)
    for core in ("core", "_core")  # before and since NumPy 2
    for name, build in (
        ("multiarray._reconstruct", _Array),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _from_buffer),
    )
}


class _BoundedFile:
    """A file from which no more than its length can be requested, so that a false length costs no memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._length = os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > self._length:
            raise EOFError(f"found {self._length} bytes, expected {size} more")
        return self._file.read(size)


# The unpickler in C reserves memory for any number that a file gives as an index; the one in Python does not.
class _ArrayUnpickler(pickle._Unpickler):
    """An unpickler for which no name exists but those in `_KNOWN`."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            raise _RefusedError(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse objects outside of the file."""
        raise _RefusedError("a reference to another file")

    def load_bytes(self) -> None:
        """Read an array of bytes whose length is checked before memory is reserved for it."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytes


def _plain(found: Any) -> Any:
    """Return the content with arrays in place of their stand-ins; each object is visited once."""
    done: dict[int, Any] = {}

    def visit(item: Any) -> Any:
        if isinstance(item, (*_PLAIN, np.ndarray)):
            return item
        if id(item) not in done:
            done[id(item)] = None  # a container inside itself becomes None
            done[id(item)] = converted(item)
        return done[id(item)]

    def converted(item: Any) -> Any:
        if isinstance(item, dict):
            return {visit(key): visit(value) for key, value in item.items()}
        if isinstance(item, list):
            return [visit(value) for value in item]
        if isinstance(item, tuple):
            return tuple(visit(value) for value in item)
        if isinstance(item, _Array) and item.values is not None:
            return item.values
        raise _RefusedError(f"a value of type {type(item).__name__.lstrip('_').lower()}")

    return visit(found)
