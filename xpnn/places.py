"""Where the rows, or columns, of images come from, when they are moved."""

from typing import NamedTuple

from xpnn.backend import Array, namespace


class Shifted(NamedTuple):
    """From so many further on, reflected at the edges; int64 (N,)."""

    by: Array


class Mirrored(NamedTuple):
    """From the other end, the first from the last, where a coin is 1; int64 (N,), else 0."""

    coins: Array


Places = Shifted | Mirrored | Array  # or, in int64 (N, size'), which they come from
Chain = tuple[Places, ...]  # of images that are moved several times, first to last


def reflect(indices: Array, size: int) -> Array:
    """Return where indices from ``1 - size`` to ``2 size - 2`` fall when reflected at the first and the last pixel."""
    xp = namespace(indices)
    return (size - 1) - xp.abs((size - 1) - xp.abs(indices))


def places_of(chain: Chain, size: int) -> Array | None:
    """Return which rows, or columns, those of moved images come from, where images had `size` of them.

    In int64 (N, size'); None if nothing moves.
    """
    where: Array | None = None
    for places in chain:
        match places:
            case Shifted(by):
                new = reflect(by[:, None] + _all(size, by), size)
            case Mirrored(coins):
                new = _all(size, coins) + coins[:, None] * (size - 1 - 2 * _all(size, coins))
            case _:
                new = places
        where = new if where is None else namespace(where).take_along_axis(where, new, axis=1)
        size = new.shape[1]
    return where


def _all(size: int, like: Array) -> Array:
    return namespace(like).arange(size, dtype=like.dtype, device=like.device)[None, :]
