"""A factor of the loss that keeps gradients within what half precision can hold."""

from collections.abc import Mapping

from xpnn.backend import Array, Backend, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.parameters import Parameters


class LossScale:
    """As large as float16 lets it be: halved when gradients overflow, doubled after so many steps without.

    Below 6e-8 float16 is 0, above 65504 infinite, and gradients are mostly small. All of it stays on the device: nobody
    waits to know whether a step overflowed.

    Parameters
    ----------
    backend : Backend
        Where the gradients are.
    examples : int
        Of how many the losses are added up, and the gradients as much larger: the first scale is as much smaller.

    Attributes
    ----------
    arrays : dict of str to array ()
        ``scale``, the factor, and ``steps`` since it has changed; both float32.

    Source: Micikevicius et al., "Mixed precision training", ICLR 2018; the numbers are those of torch.amp.GradScaler.
    """

    FIRST, GROWS_AFTER = 2.0**16, 2000

    def __init__(self, backend: Backend, examples: int = 1) -> None:
        first = {"scale": self.FIRST / 2.0 ** (examples - 1).bit_length(), "steps": 0.0}
        self.arrays: dict[str, Array] = {name: backend.asarray(value, "float32") for name, value in first.items()}

    @property
    def scale(self) -> Array:
        return self.arrays["scale"]

    def update(self, grads: Parameters) -> Array:
        """Return whether all gradients are numbers, an array () of bool; what is not is not to be stepped along."""
        fast = fast_path("training.loss_scale.adjust", library_of(grads.flat))
        return (fast or adjust)(grads.flat, self.arrays["scale"], self.arrays["steps"], self.GROWS_AFTER)

    def load(self, arrays: Mapping[str, Array], backend: Backend) -> None:
        """Go on from another one's arrays."""
        self.arrays = {name: backend.asarray(arrays[name], copy=True) for name in self.arrays}

    def move(self, backend: Backend) -> None:
        self.load(self.arrays, backend)


def adjust(grads: Array, scale: Array, steps: Array, grows_after: int) -> Array:
    """The definition of `LossScale.update`; the scale and its steps change in place: a recorded step knows them."""
    xp = namespace(grads)
    fits, counted = xp.all(xp.isfinite(grads)), steps + 1.0
    grows = counted >= grows_after
    scale[...] = xp.where(fits, xp.where(grows, 2.0 * scale, scale), 0.5 * scale)
    steps[...] = xp.where(fits & ~grows, counted, xp.zeros_like(steps))
    return fits
