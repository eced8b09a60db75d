"""The gradients of several batches, for one step."""

from collections.abc import Mapping
from typing import Any

from xpnn.backend import Array, Backend, namespace
from xpnn.parameters import Parameters


class GradientSum:
    """Adds up gradients batch by batch, in memory of its own.

    Parameters
    ----------
    params : mapping of str to array
        Gradients have their names and shapes.

    Attributes
    ----------
    sum : mapping of str to array
        Of the gradients so far, each times its weight.
    """

    def __init__(self, params: Mapping[str, Array]) -> None:
        self.sum: Any = params.like() if isinstance(params, Parameters) else _zeros(params)

    def add(self, grads: Mapping[str, Array], is_first: bool, weight: float = 1.0) -> None:
        """Add the gradients of a batch; the first one's take the place of what was there."""
        if isinstance(self.sum, Parameters):
            if not isinstance(grads, Parameters):  # gradients that a model made one by one
                buffer = self.sum.like()
                buffer.update(grads)
                grads = buffer
            flat = grads.flat if weight == 1 else weight * grads.flat
            self.sum.flat[...] = flat if is_first else self.sum.flat + flat
        else:
            for name, grad in grads.items():
                weighted = namespace(grad).asarray(grad, copy=True) if weight == 1 else weight * grad
                self.sum[name] = weighted if is_first else self.sum[name] + weighted

    def divided(self, total: float) -> Mapping[str, Array]:
        """Return the sum divided by the weights' total, which makes it their mean; that takes the sum's place."""
        if total == 1:
            return self.sum
        if isinstance(self.sum, Parameters):
            self.sum.flat[...] = self.sum.flat / total
        else:
            self.sum.update({name: grad / total for name, grad in self.sum.items()})
        return self.sum

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Go on from another sum."""
        self.sum.update(arrays)

    def clear(self) -> None:
        """Forget the gradients so far: the next batch's are added to zeros."""
        for name, grad in self.sum.items():
            if isinstance(self.sum, Parameters):
                grad[...] = 0.0
            else:
                self.sum[name] = namespace(grad).zeros_like(grad)

    def move(self, backend: Backend) -> None:
        """Move the sum to where the parameters have gone."""
        if isinstance(self.sum, Parameters):
            self.sum.move(backend)
        else:
            self.sum = {name: backend.asarray(grad) for name, grad in self.sum.items()}


def _zeros(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: namespace(array).zeros_like(array) for name, array in arrays.items()}
