import io
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from gptfl_jax import safe_pickle
from gptfl_jax.safe_pickle import Damaged, Forbidden


def load(content):
    return safe_pickle.load(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_are_what_pickle_reads(protocol):
    value = {
        "numbers": [0, 1, -3, 255, 70_000, 2**70, 1.5, None, True, False],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "text": ["é", "x" * 300, "a\0b"],
        "nested": {"list": [[]], 3: "number"},
    }
    if protocol > 2:  # before, bytes are a call
        value["bytes"] = b"\xff" * 300
    value["twice"] = value["numbers"]
    assert load(pickle.dumps(value, protocol)) == value


def test_pickles_follow_each_other_in_a_file():
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps([2]) + b"rest")
    assert safe_pickle.load(file) == 1
    assert safe_pickle.load(file) == [2]
    assert file.read() == b"rest"


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.arange(6, dtype=">f4").reshape(2, 3).T,
        np.zeros((0, 3), bool),
        np.asarray([-1, 2**40]),
    ],
)
def test_arrays_of_numbers(protocol, array):
    content = pickle.dumps({"x": array, "twice": [array.dtype] * 2}, protocol)
    found = safe_pickle.load_arrays(content)["x"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


class Call:
    """Pickles as a call, and a state, without importing what is called."""

    def __init__(self, name, arguments, state=None):
        self.name, self.arguments, self.state = name, arguments, state


class Name:
    def __init__(self, name):
        self.name = name


class Pickler(pickle._Pickler):
    def save(self, item, save_persistent_id=True):
        if isinstance(item, Name | Call):
            module, name = item.name.rsplit(".", 1)
            self.write(f"c{module}\n{name}\n".encode())
            if isinstance(item, Call):
                self.save(item.arguments)
                self.write(pickle.REDUCE)
                if item.state is not None:
                    self.save(item.state)
                    self.write(pickle.BUILD)
        else:
            super().save(item, save_persistent_id)


def pickled(value):
    file = io.BytesIO()
    Pickler(file, protocol=3).dump(value)
    return file.getvalue()


def dtype(code="u1", order="|", **changes):
    state = {"names": None, "fields": None, "itemsize": -1, "flags": 0} | changes
    return Call(
        "numpy.dtype",
        (code, False, True),
        (3, order, None, *list(state.values())[:3], -1, state["flags"]),
    )


def array(of, shape=(1,), content=b"A" * 8):
    made = (Name("numpy.ndarray"), (0,), b"b")
    state = (1, shape, of, False, content)
    return {b"data": Call("numpy._core.multiarray._reconstruct", made, state)}


# Objects where the flags say that there are none: numpy takes bytes for pointers.
HIDDEN = dtype("V8", names=("a",), fields={"a": (dtype("O8", flags=63), 0)}, itemsize=8)


def test_the_hidden_object_is_a_real_trap():
    """Read by a careful list of allowed names, numpy follows the pointer "AAAAAAAA"."""
    program = (
        "import pickle, sys; "
        "print(pickle.load(sys.stdin.buffer)[b'data'].astype(object).tolist())"
    )
    content = pickled(array(HIDDEN))
    run = subprocess.run([sys.executable, "-c", program], input=content, timeout=60)
    assert run.returncode < 0  # by a signal


NUMBERS = "it holds an array of something else than plain numbers"
FIT = "it holds an array whose data do not fit its shape"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (array(HIDDEN), NUMBERS),
        (array(dtype("O")), NUMBERS),
        (array(dtype("O8")), NUMBERS),
        (array(dtype("V8")), NUMBERS),
        (array(dtype("U2")), NUMBERS),
        (array(dtype("M8[s]")), NUMBERS),
        (array(dtype([("a", "u1")])), NUMBERS),
        (array(dtype("u1", order=">>")), "it holds an array of unknown byte order"),
        (array(dtype("u4"), (3,)), FIT),
        (array(dtype("u1"), (8,), [0] * 8), FIT),
        (array(dtype("u1"), (8,), "A" * 8), FIT),
        (array("u1", (8,)), FIT),
        (array(dtype("u1"), (-8,)), "an array of impossible form"),
        (array(dtype("u1"), (2**62,)), "an array of impossible form"),
        (array(dtype("u1"), [2**40] * 10_000), "an array of impossible form"),
        (array(dtype("u1"), "8"), "an array of impossible form"),
        ([array(dtype("u1"), (8,))], "it holds no dict"),
        (array(Call("numpy.dtype", ([0],))), NUMBERS),
        ({"x": Call("numpy._core.multiarray.scalar", ())}, "it names numpy._core.m"),
        ({"x": Call("_codecs.encode", ("rm", "hex"))}, "bytes of unknown spelling"),
        ({"x": Call("numpy.dtype", ("u1",), None)}, None),
    ],
)
def test_arrays_that_would_break_numpy_are_refused(value, message):
    if message is None:
        safe_pickle.load_arrays(pickled(value))
        return
    with pytest.raises(Damaged, match=message):
        safe_pickle.load_arrays(pickled(value))


def test_a_text_is_not_copied_again_and_again():
    text = "x" * 2**20
    calls = [Call("_codecs.encode", (text, "latin1")) for _ in range(300)]
    with pytest.raises(Damaged, match="it copies more than it holds"):
        safe_pickle.load_arrays(pickled({"x": calls}))
    assert len(safe_pickle.load_arrays(pickled({"x": calls[:9]}))["x"]) == 9


LONG = struct.pack("<I", 2**31 - 1)
HASH = (2**61 - 1).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "pickle exhausted before seeing STOP"),
        (b"\x80\x02]", "pickle exhausted before seeing STOP"),
        (b".", "pop from empty list"),
        (b"cos\nsystem\n(S'true'\ntR.", "it names os.system, which is forbidden"),
        (b"\x8c\x02os\x8c\x06system\x93.", "it names os.system, which is forbidden"),
        (b"cos\nsys\x1b[31mtem\n.", r"it names os.sys\\x1b\[31mtem"),
        (b"(S'true'\nios\nsystem\n.", r"more than plain data \(opcode INST\)"),
        (b"cbuiltins\nobject\n)\x81.", "it names builtins.object"),
        (b"])\x81.", r"more than plain data \(opcode NEWOBJ\)"),
        (b"\x82\x01.", r"more than plain data \(opcode EXT1\)"),
        (b"P1\n.", r"more than plain data \(opcode PERSID\)"),
        (b"NQ.", r"more than plain data \(opcode BINPERSID\)"),
        (b"\x96" + bytes(8) + b".", r"more than plain data \(opcode BYTEARRAY8\)"),
        (b"\x8f.", r"more than plain data \(opcode EMPTY_SET\)"),
        (b"]]R.", "it calls what is no function"),
        (b"]}b.", "it changes what is no array"),
        (b"NNa.", "it appends to what is no list"),
        (b"]NNs.", "it puts items into what is no dict"),
        (b"a.", "it takes what it has not made"),
        (b"h\x05.", "KeyError: 5"),
        (b"\x8e" + b"\xff" * 7 + b"\x0fx.", "expected .* bytes in a bytes8"),
        (b"\x8d" + b"\xff" * 7 + b"\x0fx.", "expected .* bytes in a unicodestring8"),
        (b"X\xff\xff\xff\xffx.", "expected 4294967295 bytes in a unicodestring4"),
        # The hash of so deep a tuple overflows the stack of an unpickler in C.
        (b"})" + b"\x85" * 10**5 + b"Ns.", "keys that are no text or numbers"),
        # A hundred thousand keys of one hash take minutes.
        (b"}\x8a\x08" + HASH + b"Ns.", "keys that are no text or numbers"),
    ],
)
def test_programs_that_are_no_data_are_refused(content, message):
    with pytest.raises(Damaged, match=message) as info:
        load(content)
    assert len(str(info.value)) < 300 and str(info.value).isprintable()


def test_a_program_has_an_end(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MOST_OPCODES", 1000)
    assert load(b"]" * 999 + b".") == []
    with pytest.raises(Damaged, match="it has more than 1,000 parts"):
        load(b"]" * 1000 + b".")


def test_a_forbidden_name_is_told_from_damage():
    with pytest.raises(Forbidden):
        load(pickle.dumps(os.getcwd))


def test_nine_bytes_take_no_memory_for_a_memo():
    program = (
        "import io, resource, sys; from gptfl_jax import safe_pickle;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "before = peak();"
        "content = io.BytesIO(sys.stdin.buffer.read());"
        "print(safe_pickle.load(content), peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=b"\x80\x02Nr" + LONG + b".",
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    value, grown_mb = run.stdout.split()
    assert value == b"None" and int(grown_mb) < 50
