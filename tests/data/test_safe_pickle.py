"""load_arrays reads what a CIFAR-10 batch holds, runs nothing, and says in one line what else it met."""

import copyreg
import os
import pickle
import struct
import tracemalloc
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest

from xpnn.data import safe_pickle
from xpnn.data.safe_pickle import load_arrays
from xpnn.errors import DataError

# What Python 2 writes for {"data": array([[1, 2, 3], [4, 5, 6]], uint8), "labels": [7, 8]} by protocol 2.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
    b"U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x01\x02\x03\x04\x05\x06tbU\x06labelsq\x08]q\x09"
    b"(K\x07K\x08eu."
)


def load(data):
    return load_arrays(BytesIO(data), "batch")


def refusal(data):
    """The one line with which a file is refused."""
    with pytest.raises(DataError) as caught:
        load(data)
    message = str(caught.value)
    assert message.startswith("batch: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


def stack_global(module, name):
    return b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"


def in_a_dict(value):
    return b"\x80\x04}\x8c\x04data" + value + b"s."


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_reads_what_python_2_wrote():
    content = load(PYTHON_2)
    assert list(content) == [b"data", b"labels"]
    assert content[b"data"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert content[b"data"].dtype == np.uint8
    assert content[b"labels"] == [7, 8]


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_numpy_writes(protocol, order):
    array = np.asarray(np.arange(6, dtype=np.uint8).reshape(2, 3), order=order)
    read = load(pickle.dumps({"a": array, "b": [array]}, protocol=protocol))
    assert read[b"a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_good_file_for_which_memory_is_short_is_not_called_damaged(monkeypatch):
    def short(*args):
        raise MemoryError

    monkeypatch.setattr(safe_pickle, "_to_array", short)
    with pytest.raises(MemoryError):
        load(PYTHON_2)


def test_keeps_lists_numbers_and_strings_as_bytes():
    content = {"label": "é", "rows": 10000, "signed": -1, "names": [b"cat", None, True], "pair": (1, 2)}
    assert load(pickle.dumps(content, protocol=4)) == {
        b"label": "é".encode(),
        b"rows": 10000,
        b"signed": -1,
        b"names": [b"cat", None, True],
        b"pair": (1, 2),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refuses_a_system_call_and_does_not_make_it(tmp_path, protocol):
    marker = tmp_path / "marker"
    hostile = pickle.dumps({b"data": Call(os.mkdir, str(marker))}, protocol=protocol)
    refusal(hostile)
    assert not marker.exists()
    pickle.loads(hostile)
    assert marker.exists(), "the file is as hostile as it should be"


def test_names_the_function_that_it_refuses():
    assert refusal(b"\x80\x02cposix\nsystem\nU\x04true\x85R.") == (
        "batch: refused to load posix.system: a CIFAR-10 batch holds NumPy arrays only"
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (b"builtins", b"eval"),
        (b"builtins", b"getattr"),
        (b"numpy", b"load"),
        (b"numpy", b"ndarray.tofile"),
        (b"numpy", b"dtype.__class__"),
        (b"numpy.core.multiarray", b"_reconstruct.__self__"),
        (b"numpy.core", b"multiarray._reconstruct"),
        (b"os", b"system"),
    ],
)
def test_refuses_every_global_but_those_of_an_array(module, name):
    line = f"batch: refused to load {(module + b'.' + name).decode()}: a CIFAR-10 batch holds NumPy arrays only"
    assert refusal(in_a_dict(stack_global(module, name))) == line
    assert refusal(in_a_dict(b"c" + module + b"\n" + name + b"\n")) == line


def test_a_name_with_a_line_break_stays_on_one_line():
    assert r"refused to load os.a\nb\x1b[2J" in refusal(in_a_dict(stack_global(b"os", b"a\nb\x1b[2J")))


def test_refuses_the_extension_registry(tmp_path):
    marker = tmp_path / "marker"
    copyreg.add_extension(os.mkdir.__module__, "mkdir", 240)
    try:
        hostile = pickle.dumps({b"data": Call(os.mkdir, str(marker))}, protocol=4)
        assert b"\x82\xf0" in hostile
        message = refusal(hostile)
    finally:
        copyreg.remove_extension(os.mkdir.__module__, "mkdir", 240)
    assert message == "batch: refused the instruction EXT1: a CIFAR-10 batch does without it"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("instruction", "data"),
    [
        ("PERSID", b"Pid\n."),
        ("BINPERSID", b"\x80\x02U\x02idQ."),
        ("INST", b"(iposix\nsystem\n."),
        ("NEWOBJ", b"\x80\x02cnumpy\nndarray\n)\x81."),
        ("EMPTY_SET", b"\x80\x04\x8f."),
        ("BINFLOAT", pickle.dumps({b"labels": [0.5]}, protocol=4)),
        ("LONG1", pickle.dumps({b"rows": 1 << 40}, protocol=4)),
    ],
)
def test_refuses_instructions_that_a_batch_does_without(instruction, data):
    assert refusal(data) == f"batch: refused the instruction {instruction}: a CIFAR-10 batch does without it"


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros(3), "f8"),
        (np.zeros(3, np.int8), "i1"),
        (np.zeros(3, bool), "b1"),
        (np.array([None]), "O8"),
        (np.zeros(3, "u1,u1"), "V2"),
    ],
)
def test_refuses_an_array_that_is_not_uint8(array, code):
    assert refusal(pickle.dumps({b"data": array}, protocol=4)).endswith(
        f"expected an array of uint8 ('u1'); received dtype b'{code}'"
    )


def test_refuses_a_call_that_makes_no_array_without_allocating_it():
    huge = stack_global(b"numpy", b"ndarray") + b"J\x00\x00\x00\x7f\x85\x85R"
    tracemalloc.start()
    try:
        assert refusal(in_a_dict(huge)) == (
            "batch: b'data': expected an array; received a call of ndarray that makes none"
        )
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_state_set_on_a_class_changes_nothing():
    before = repr(np.dtype)
    refusal(in_a_dict(stack_global(b"numpy", b"dtype") + b"N}\x8c\x04nameK\x01s\x86b"))
    assert repr(np.dtype) == before
    assert np.dtype("u1").name == "uint8"


def test_refuses_a_shape_that_disagrees_with_the_bytes():
    assert "cannot reshape array of size 6" in refusal(PYTHON_2.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"))


def test_a_huge_memo_index_takes_no_memory():
    tracemalloc.start()
    try:
        assert load(b"\x80\x02}r" + struct.pack("<I", 0xFFFF_FFFF) + b".") == {}
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_deep_tuple_as_a_key_is_refused_before_it_is_hashed():
    assert "a key that is not a string" in refusal(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.")


def test_depth_does_not_crash():
    assert "it holds a tuple" in refusal(b"\x80\x02)" + b"\x85" * 500_000 + b".")


def test_every_truncation_is_refused():
    for end in range(len(PYTHON_2)):
        refusal(PYTHON_2[:end])


@pytest.mark.parametrize("data", [b"", b"<!DOCTYPE html>\n<title>404</title>", b"hello\n", b"\x80\x02.", b"\x00" * 99])
def test_refuses_what_is_no_pickle(data):
    assert "expected a pickled dict of arrays" in refusal(data)


def test_refuses_what_is_no_dict():
    assert refusal(pickle.dumps([1], protocol=4)).endswith("received something else (ValueError: it holds a list)")


def test_damage_ends_in_content_or_in_a_data_error():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(PYTHON_2)
        for position in rng.integers(len(damaged), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        with suppress(DataError):
            load(bytes(damaged))


def test_refuses_a_file_larger_than_any_batch(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 100)
    assert "larger than 100 bytes" in refusal(PYTHON_2)


def test_refuses_more_instructions_than_any_batch_has(monkeypatch):
    monkeypatch.setattr(safe_pickle, "_MAX_INSTRUCTIONS", 10)
    assert "more than 10 instructions" in refusal(PYTHON_2)
