"""Test-time augmentation: the scores of several views of an image, averaged."""

from collections.abc import Callable

from xpnn.backend import Array
from xpnn.data.images import check_images, mirror, pad
from xpnn.errors import SettingError

LEVELS = ("none", "mirror", "mirror-translate")


def check_level(where: str, level: str) -> str:
    """Return a level of test-time augmentation; raise SettingError for an unknown one."""
    if level not in LEVELS:
        raise SettingError(f"{where}: expected tta to be one of {', '.join(LEVELS)}; received {level!r}")
    return level


def tta_scores(score: Callable[[Array], Array], x: Array, level: str = "mirror-translate") -> Array:
    """Return the mean scores of views of each image.

    ``"none"``: ``f(x)``. ``"mirror"``: ``m(x) = (f(x) + f(mirror x)) / 2``. ``"mirror-translate"``:
    ``m(x) / 2 + (m(x up left) + m(x down right)) / 4``, where the two are shifted by one pixel, with what comes in
    at the edge reflected.

    Parameters
    ----------
    score : callable
        The function f of images that gives their scores (N, ...).
    x : array (N, C, H, W)
    level : str
        One of `LEVELS`.

    Returns
    -------
    scores : array (N, ...)

    Raises
    ------
    SettingError
        For an unknown level.
    ValueError
        When x are no images.

    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.5.
    """
    if check_level("tta_scores", level) == "none":
        return score(x)
    check_images("tta_scores", x)
    scores = _mirrored(score, x)
    if level == "mirror":
        return scores
    _, _, height, width = x.shape
    padded = pad(x, 1)
    shifted = [padded[:, :, i : i + height, i : i + width] for i in (0, 2)]
    return 0.5 * scores + 0.25 * (_mirrored(score, shifted[0]) + _mirrored(score, shifted[1]))


def _mirrored(score: Callable[[Array], Array], x: Array) -> Array:
    return 0.5 * score(x) + 0.5 * score(mirror(x))
