"""Which examples make up the batches of an epoch."""

from collections.abc import Iterator

from xpnn.backend import Array, Backend
from xpnn.errors import SettingError
from xpnn.random import Generator

SAMPLINGS = ("replacement", "shuffle")


def batches_per_epoch(num_examples: int, batch_size: int) -> int:
    """``max(N // batch_size, 1)``: what does not fill a batch is left for another epoch's order."""
    return max(num_examples // batch_size, 1)


def slices(num_examples: int, batch_size: int) -> Iterator[slice]:
    """Yield slices that cover all examples in order; the last may be shorter."""
    for start in range(0, num_examples, batch_size):
        yield slice(start, min(start + batch_size, num_examples))


def epoch_order(num_examples: int, batch_size: int, sampling: str, rng: Generator, backend: Backend) -> Array:
    """Return the indices of an epoch's examples, a row a batch.

    Parameters
    ----------
    sampling : str
        ``"replacement"`` draws each index by itself, as the course does; ``"shuffle"`` takes each example at most once.
    rng : Generator
    backend : Backend
        Where the indices are to live.

    Returns
    -------
    order : int64 array (batches_per_epoch, batch_size); a smaller batch where "shuffle" has too few examples

    Raises
    ------
    SettingError
        For an unknown sampling.
    """
    count = batches_per_epoch(num_examples, batch_size)
    if sampling == "replacement":
        return rng.integers(0, num_examples, (count, batch_size), backend)
    if sampling != "shuffle":
        raise SettingError(f"sampling: expected one of {', '.join(SAMPLINGS)}; received {sampling!r}")
    size = min(batch_size, num_examples)
    order = rng.permutation(num_examples, backend)
    return backend.namespace.reshape(order[: count * size], (count, size))
