"""Pickles from strangers, read as data: numbers, text, bytes, lists, tuples and dicts.

`pickle.Unpickler` does what a file says, also with a short list of allowed names: it
sets attributes of whatever stands on its stack, takes memory for as many memo entries
as nine bytes ask for, follows pointers that a file puts into numpy's constructors, and
hashes tuples nested so deep that the stack overflows. Here `pickletools` cuts the file
into opcodes, and only those that build plain data are obeyed.
"""

import io
import math
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gptfl_jax import user_files

# An honest file has a few opcodes for each number, text or tensor in it: 200,000 for
# the 50,000 pictures of CIFAR-100.
MOST_OPCODES = 2_000_000
# In bytes, by the functions it calls: a few opcodes could copy a long text at will. The
# pictures of CIFAR-100 are such a text, of 154 MB.
_MOST_COPIED = 2**28


class Damaged(ValueError):
    """Not a pickle, or one of something else than plain data."""


class Forbidden(Damaged):
    """A pickle that names a function or class that its reader does not know."""


class Function(NamedTuple):
    """What a pickle may call, with arguments that nobody checked."""

    call: Callable[..., Any]


def load(
    file: io.BufferedIOBase,
    names: Mapping[tuple[str, str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    encoding: str = "utf-8",
) -> Any:
    """Reads the next pickle of a file; nothing in it is imported or executed.

    Args:
        file: positioned at the pickle, and afterwards behind it.
        names: what stands for each (module, name) that the pickle may mention: a
            `Function`, or a value.
        persistent: gives the objects that the pickle knows by a persistent id.
        encoding: of the strings of Python 2; "bytes" leaves them bytes.

    Raises:
        Forbidden: it mentions another name.
        Damaged: it is no such pickle, or not a whole one.
    """
    machine = _Machine(names or {}, persistent, encoding)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MOST_OPCODES:
                raise Damaged(f"it has more than {MOST_OPCODES:,} parts")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.obey(opcode.name, argument)
    except Damaged:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise Damaged(user_files.brief(error)) from error
    raise Damaged("it ends too early")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_OLD_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(self, names, persistent, encoding):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._names, self._persistent, self._encoding = names, persistent, encoding
        self._may_copy = _MOST_COPIED

    def obey(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in _VALUES:
                stack.append(argument)
            case _ if opcode in _OLD_STRINGS:
                content = argument.encode("latin1")  # what pickletools decoded it by
                old = self._encoding
                stack.append(content if old == "bytes" else content.decode(old))
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(self._last(int(opcode[-1])))
            case "TUPLE":
                stack.append(self._since_mark())
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(list(self._since_mark()))
            case "APPEND":
                self._extend(self._last(1))
            case "APPENDS":
                self._extend(self._since_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._update(items)
            case "SETITEM":
                self._update(self._last(2))
            case "SETITEMS":
                self._update(self._since_mark())
            case "GLOBAL":
                self._name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self._name(*self._last(2))
            case "REDUCE":
                stack.append(self._call(*self._last(2)))
            case "BUILD":
                (state,) = self._last(1)
                if isinstance(stack[-1], _Numpy):
                    stack[-1].build(state)
                elif not isinstance(stack[-1], dict):  # whose attributes do not count
                    raise Damaged("it changes what is no array")
            case "BINPERSID" if self._persistent is not None:
                stack.append(self._persistent(stack.pop()))
            case _:
                raise Damaged(f"it holds more than plain data (opcode {opcode})")

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise Damaged("it takes what it has not made")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def _since_mark(self) -> tuple[Any, ...]:
        start = self._marks.pop()
        items = tuple(self.stack[start:])
        del self.stack[start:]
        return items

    def _extend(self, items: tuple[Any, ...]) -> None:
        if type(self.stack[-1]) is not list:
            raise Damaged("it appends to what is no list")
        self.stack[-1].extend(items)

    def _update(self, items: tuple[Any, ...]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise Damaged("it puts items into what is no dict")
        _put(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise Damaged("it calls what is no function")
        for argument in arguments:
            if isinstance(argument, str | bytes | list | tuple | dict):
                plain = isinstance(argument, str | bytes)
                self._may_copy -= len(argument) * (1 if plain else 8)
        if self._may_copy < 0:
            raise Damaged("it copies more than it holds")
        return function.call(*arguments)

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Damaged("it names something without a name")
        try:
            self.stack.append(self._names[module, name])
        except KeyError:
            named = user_files.printable(f"{module}.{name}")[:200]
            raise Forbidden(f"it names {named}, which is forbidden") from None


def _put(target: dict, items: Iterable[tuple[Any, Any]]) -> None:
    for key, value in items:
        # Numbers beyond 61 bits can be chosen to have one hash, all of them.
        small = type(key) is int and abs(key) < 2**48
        if not isinstance(key, str | bytes) and not small:
            raise Damaged("it has keys that are no text or numbers")
        target[key] = value


def is_size(value: Any) -> bool:
    """Whether something is a whole number that can count bytes or items."""
    return type(value) is int and 0 <= value < 2**48


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of an array that a pickle names.

    Raises:
        Damaged: it is none.
    """
    if (
        not isinstance(shape, tuple | list)
        or len(shape) > 32
        or not all(map(is_size, shape))
    ):
        raise Damaged("an array of impossible form")
    return tuple(shape)


def ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """What `collections.OrderedDict` makes; today every dict keeps its order."""
    made: dict[Any, Any] = {}
    _put(made, items)
    return made


# Arrays of numpy --------------------------------------------------------------------

# Plain numbers: no objects, structures or text, hence nothing that holds a pointer.
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {
    *("b1", "f2", "f4", "f8"),
}


class _Numpy:
    """What a pickle makes in two steps: a call, then a state."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


class _Dtype(_Numpy):
    def __init__(self, code: Any = "", *_: Any):
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or code not in _NUMBERS:
            raise Damaged("it holds an array of something else than plain numbers")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        order = state[1]
        order = order.decode() if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise Damaged("it holds an array of unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(_Numpy):
    array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, columns_first, content = state
        shape = checked_shape(shape)
        if (
            not isinstance(dtype, _Dtype)
            or not isinstance(content, bytes)
            or math.prod(shape) * dtype.dtype.itemsize != len(content)
        ):
            raise Damaged("it holds an array whose data do not fit its shape")
        array = np.frombuffer(content, dtype.dtype)
        self.array = array.reshape(shape, order="F" if columns_first else "C")


def _bytes_of(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise Damaged("it holds bytes of unknown spelling")
    return text.encode("latin1")


_ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): Function(lambda *_: _Array()),
    ("numpy._core.multiarray", "_reconstruct"): Function(lambda *_: _Array()),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): Function(_Dtype),
    # How Python 3 spells bytes, and none of them, for Python 2.
    ("_codecs", "encode"): Function(_bytes_of),
    ("__builtin__", "bytes"): Function(lambda: b""),
}


def load_arrays(content: bytes) -> dict[str, Any]:
    """Reads a dict whose values are arrays of plain numbers or plain data.

    Keys and other strings that Python 2 wrote come as bytes, but for the dict's own.

    Raises:
        Damaged, Forbidden: as `load`, or it is no such dict.
    """
    value = load(io.BytesIO(content), _ARRAY_NAMES, encoding="bytes")
    if not isinstance(value, dict):
        raise Damaged("it holds no dict")
    result = {}
    for key, item in value.items():
        key = key.decode("latin1") if isinstance(key, bytes) else key
        result[key] = item.array if isinstance(item, _Array) else item
    return result
