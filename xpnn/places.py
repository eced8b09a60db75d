"""Where the rows, or columns, of images come from, when they are moved."""

from typing import NamedTuple

from xpnn.backend import Array, namespace


class Shifted(NamedTuple):
    """From so many further on, int64 (N,).

    Either reflected at the edges, where they are fewer than there are rows, or columns; or, ``"zero"``, there are zeros
    beyond the edges.
    """

    by: Array
    edges: str = "reflect"


class Mirrored(NamedTuple):
    """From the other end, the first from the last, where a coin is 1; int64 (N,), else 0."""

    coins: Array


Places = Shifted | Mirrored | Array  # or, in int64 (N, size'), which they come from
Chain = tuple[Places, ...]  # of images that are moved several times, first to last


def reflect(indices: Array, size: int) -> Array:
    """Return where indices from ``1 - size`` to ``2 size - 2`` fall when reflected at the first and the last pixel."""
    xp = namespace(indices)
    return (size - 1) - xp.abs((size - 1) - xp.abs(indices))


def have_zeros(chain: Chain) -> bool:
    """Whether some of the moved rows, or columns, may be of zeros."""
    return any(isinstance(places, Shifted) and places.edges != "reflect" for places in chain)


def places_of(chain: Chain, size: int) -> Array | None:
    """Return which rows, or columns, those of moved images come from, where images had `size` of them.

    In int64 (N, size'); `size` is one of zeros, if they `have_zeros`. None if nothing moves.
    """
    where: Array | None = None
    of_zeros = size if have_zeros(chain) else None
    for places in chain:
        match places:
            case Shifted(by, edges):
                new = _shifted(by[:, None] + _range(size, by), size, edges)
            case Mirrored(coins):
                new = _range(size, coins) + coins[:, None] * (size - 1 - 2 * _range(size, coins))
            case _:
                new = places
        where = new if where is None else _then(where, new, of_zeros)
        size = new.shape[1]
    return where


def _shifted(indices: Array, size: int, edges: str) -> Array:
    if edges == "reflect":
        return reflect(indices, size)
    return namespace(indices).where((indices >= 0) & (indices < size), indices, size)


def _then(where: Array, new: Array, of_zeros: int | None) -> Array:
    """Places in the place of places: what comes from behind the last is of zeros."""
    xp = namespace(where)
    if of_zeros is not None:
        zeros = xp.full((where.shape[0], 1), of_zeros, dtype=where.dtype, device=where.device)
        where = xp.concat((where, zeros), axis=1)
    return xp.take_along_axis(where, new, axis=1)


def _range(size: int, like: Array) -> Array:
    return namespace(like).arange(size, dtype=like.dtype, device=like.device)[None, :]
