"""Values from a JSON file, held against the type hints of the dataclass that they are to make."""

from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def check_fields(cls: type, values: Any) -> None:
    """Raise TypeError where `values` is no mapping, lacks a field of `cls`, or has one of another type."""
    if not isinstance(values, Mapping):
        raise TypeError(f"expected an object; received {type(values).__name__}")
    for name, hint in get_type_hints(cls).items():
        if name not in values:
            raise TypeError(f"{name} is missing")
        if not fits(values[name], hint):
            raise TypeError(f"expected {name} to be {getattr(hint, '__name__', hint)}; received {values[name]!r:.60}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value read from JSON is of a type: a list will do for a tuple, a whole number for a float."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(fits(value, option) for option in inner)
    if kind in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(item, inner[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or type(value) is hint
