"""Which examples make up the batches of an epoch."""

from collections.abc import Iterator

from xpnn.backend import Array, Backend
from xpnn.errors import SettingError
from xpnn.random import Generator

SAMPLINGS = ("replacement", "shuffle", "sequential")


def batches_per_epoch(num_examples: int, batch_size: int, drop_last: bool = True) -> int:
    """Return how many batches an epoch has: at least one.

    With `drop_last` it is ``N // batch_size``: what does not fill a batch is left for another epoch's order. Without,
    a last batch may be smaller.
    """
    return max(num_examples // batch_size if drop_last else -(-num_examples // batch_size), 1)


def slices(num_examples: int, batch_size: int) -> Iterator[slice]:
    """Yield slices that cover all examples in order; the last may be shorter."""
    for start in range(0, num_examples, batch_size):
        yield slice(start, min(start + batch_size, num_examples))


def epoch_order(
    num_examples: int, batch_size: int, sampling: str, rng: Generator, backend: Backend, drop_last: bool = True
) -> Array:
    """Return the indices of an epoch's examples, one batch after the other.

    Parameters
    ----------
    sampling : str
        ``"replacement"`` draws each index by itself, as the course does; ``"shuffle"`` takes each example at most once,
        in random order; ``"sequential"`` takes them in order.
    rng : Generator
    backend : Backend
        Where the indices are to live.
    drop_last : bool
        Whether to leave out what does not fill a batch, unless there is no other.

    Returns
    -------
    order : int64 array (n,)
        Cut by ``slices(n, batch_size)`` into batches, all full but perhaps the last.

    Raises
    ------
    SettingError
        For an unknown sampling.
    """
    count = batches_per_epoch(num_examples, batch_size) * batch_size if drop_last else num_examples
    if sampling == "replacement":
        return rng.integers(0, num_examples, count, backend)
    count = min(count, num_examples)
    if sampling == "shuffle":
        return rng.permutation(num_examples, backend)[:count]
    if sampling == "sequential":
        return backend.namespace.arange(count, dtype=backend.namespace.int64, device=backend.device)
    raise SettingError(f"sampling: expected one of {', '.join(SAMPLINGS)}; received {sampling!r}")
