"""Fast paths. One table says which function has a kernel for which library.

A kernel stands in for a function elsewhere in xpnn, which stays the definition: same signature, same
results. It registers itself here under the function's name; the function asks `fast_path` for it. A
library's kernels are imported when the first of them is asked for. ``XPNN_FAST=0`` switches all off.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

TABLE: dict[tuple[str, str], Callable[..., Any]] = {}


def kernel(function: str, library: str) -> Callable[[Function], Function]:
    """Register the decorated kernel for `function` (``"random.philox"``) on arrays of `library`."""

    def register(fast: Function) -> Function:
        TABLE[function, library] = fast
        return fast

    return register


@functools.cache
def fast_path(function: str, library: str) -> Callable[..., Any] | None:
    """Return the kernel for `function` on `library`, or None where the definition is to be used."""
    if os.environ.get("XPNN_FAST") == "0":
        return None
    load(library)
    return TABLE.get((function, library))


def load(library: str) -> None:
    """Import the kernels of `library`, if it has any, so that `TABLE` lists them."""
    module = f"{__name__}.{library.replace('-', '_')}"
    if importlib.util.find_spec(module):
        importlib.import_module(module)
