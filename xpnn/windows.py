"""How a window moves over an image: the sizes and slices that convolution and pooling share."""

from itertools import product
from typing import Any, NamedTuple

from xpnn.arguments import BOUND

Pair = tuple[int, int]  # of the vertical and the horizontal axis


class Window(NamedTuple):
    """A window of `size` that moves by `stride` over an image with `pad` zeros on each side.

    `dilation` is how far apart the numbers of one window lie.
    """

    size: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    dilation: Pair = (1, 1)

    @property
    def extent(self) -> Pair:
        """How much of an image one window covers."""
        return self.dilation[0] * (self.size[0] - 1) + 1, self.dilation[1] * (self.size[1] - 1) + 1

    def padded(self, image: Pair) -> Pair:
        """The size of the image with its zeros."""
        return image[0] + 2 * self.pad[0], image[1] + 2 * self.pad[1]

    def counts(self, image: Pair) -> Pair:
        """How many windows fit on each axis: ``1 + (size + 2 pad - extent) // stride``."""
        (height, width), extent, stride = self.padded(image), self.extent, self.stride
        return 1 + (height - extent[0]) // stride[0], 1 + (width - extent[1]) // stride[1]

    def slices(self, counts: Pair) -> list[tuple[slice, slice]]:
        """For each number of a window, row by row: the rows and columns of the padded image that it meets."""
        (sh, sw), (dh, dw) = self.stride, self.dilation
        return [
            (slice(dh * u, dh * u + sh * (counts[0] - 1) + 1, sh), slice(dw * v, dw * v + sw * (counts[1] - 1) + 1, sw))
            for u, v in product(range(self.size[0]), range(self.size[1]))
        ]

    def check(self, where: str, image: Pair) -> None:
        """Raise ValueError where no window fits into the padded image."""
        if min(self.counts(image)) < 1:
            raise ValueError(
                f"{where}: expected a window no larger than the padded image {self.padded(image)}; "
                f"received {self.extent}"
            )


def as_pair(where: str, name: str, value: Any, least: int) -> Pair:
    """Return a size given as one number for both axes, or as one for each; a whole float will do.

    Raises
    ------
    ValueError
        For anything else, or a number below `least`.
    """
    try:
        pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
        high, wide = (int(size) for size in pair)
        if (high, wide) == pair and least <= min(pair) and max(pair) < BOUND:
            return high, wide
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(
        f"{where}: expected {name} of at least {least}, one number or two below 2**31; received {value!r:.60}"
    )
