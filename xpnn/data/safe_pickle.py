"""Read the pickled batches of CIFAR-10 without running them.

A pickle is a program for a small stack machine, and some of its instructions call whatever function the file
names. The machine below knows only the instructions that dicts, lists and arrays need, and calls nothing:
what the file says of an array is noted, and the array is made here, from its bytes.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from xpnn.errors import DataError

# A batch of CIFAR-10 has 31 MB and some 30,000 instructions.
MAX_BYTES = 64 << 20
_MAX_INSTRUCTIONS = 1_000_000

_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(slots=True, repr=False)
class _Noted:
    """What a pickle would call: the name of a global, the arguments, and the state to set afterwards."""

    name: str
    arguments: Any = None
    state: Any = None


def load_arrays(file: BinaryIO, name: str) -> dict[bytes, Any]:
    """Read a pickled dict of uint8 arrays, lists and numbers; no code in it is run.

    Strings are returned as bytes, as ``pickle.load(file, encoding="bytes")`` returns those of Python 2.

    Parameters
    ----------
    file : binary file
        A pickle of protocol 2 to 4.
    name : str
        The file's name, for errors.

    Returns
    -------
    dict
        With bytes as keys. Arrays are read-only.

    Raises
    ------
    DataError
        If the file is not such a pickle, is truncated, or wants to load anything but arrays.
    """
    try:
        data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        content = _replay(data, name)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return {
            key: _to_array(value, f"{name}: {key[:40]!r}") if isinstance(value, _Noted) else value
            for key, value in content.items()
        }
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere
        received = repr(f"{type(error).__name__}: {error}"[:200])[1:-1]
        raise DataError(f"{name}: expected a pickled dict of arrays; received something else ({received})") from None


def _replay(data: bytes, name: str) -> Any:
    """Do what the instructions of a pickle say, except for calling anything."""
    from pickletools import genops

    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any

    def pop_from(start: int) -> list[Any]:
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in islice(genops(data), _MAX_INSTRUCTIONS):
        match opcode.name:
            case "BININT1" | "BININT2" | "BININT" | "SHORT_BINBYTES" | "BINBYTES":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument.encode("latin-1"))
            case "SHORT_BINUNICODE" | "BINUNICODE":
                stack.append(argument.encode())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop_from(-int(opcode.name[-1]))))
            case "TUPLE":
                stack.append(tuple(pop_from(marks.pop())))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = pop_from(-1 if opcode.name == "APPEND" else marks.pop())
                stack[-1].extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = pop_from(-2 if opcode.name == "SETITEM" else marks.pop())
                # Hashing a deep tuple would overflow the C stack.
                if not all(isinstance(key, bytes) for key in items[::2]):
                    raise ValueError("a key that is not a string")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_note(name, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                module, attribute = pop_from(-2)
                stack.append(_note(name, module.decode(), attribute.decode()))
            case "REDUCE":
                function, arguments = pop_from(-2)
                stack.append(_Noted(function.name, arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case other:
                raise DataError(f"{name}: refused the instruction {other}: a CIFAR-10 batch does without it")
    raise ValueError(f"more than {_MAX_INSTRUCTIONS} instructions")


def _note(name: str, module: str, attribute: str) -> _Noted:
    if (module, attribute) not in _GLOBALS:
        wanted = repr(f"{module}.{attribute}"[:80])[1:-1]
        raise DataError(f"{name}: refused to load {wanted}: a CIFAR-10 batch holds NumPy arrays only")
    return _Noted(attribute)


def _to_array(noted: _Noted, name: str) -> np.ndarray:
    match noted:
        case _Noted("_reconstruct", _, (1, shape, _Noted("dtype", (bytes(code), *_)), fortran, content)):
            if code != b"u1":
                raise DataError(f"{name}: expected an array of uint8 ('u1'); received dtype {code[:20]!r}")
            return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
    raise DataError(f"{name}: expected an array; received a call of {noted.name} that makes none")
