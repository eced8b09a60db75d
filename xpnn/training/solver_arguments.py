"""Checks of what a Solver is given: each says what was expected and what was received."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpnn.backend import Array, Backend, describe, of
from xpnn.data.augmentation import Compose, as_compose
from xpnn.errors import SettingError
from xpnn.optim import EMA, Lookahead
from xpnn.training.callbacks import Callback


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse what is none of the known names."""
    if value not in known:
        raise SettingError(f"Solver: expected {name} to be one of {', '.join(known)}; received {value!r}")


def check_folder(checkpoint_name: str | None) -> None:
    """Refuse a name in a folder that cannot be written to, before anything is trained."""
    if checkpoint_name is None:
        return
    try:
        tempfile.TemporaryFile(dir=Path(checkpoint_name).parent).close()
    except OSError as error:
        expected = "checkpoint_name in a folder that can be written to"
        raise SettingError(f"Solver: expected {expected}; received {checkpoint_name!r} ({error.strerror})") from None


def made_transforms(augment: Any) -> Compose:
    """Return the transforms as one; refuse a class among them: an object of it was meant."""
    out = as_compose(augment)
    for transform in out.transforms:
        if isinstance(transform, type):
            name = transform.__name__
            raise SettingError(f"Solver: expected augment to be made, as in {name}(); received the class {name}")
    return out


def callbacks_of(callbacks: Any) -> list[Callback]:
    """Return a list of callbacks."""
    if not isinstance(callbacks, Sequence) or not all(isinstance(each, Callback) for each in callbacks):
        raise SettingError(f"Solver: expected callbacks to be a sequence of Callback; received {callbacks!r}")
    return list(callbacks)


def config_of(optim_config: Any) -> Mapping[str, Any]:
    """Return the settings of a rule."""
    config = {} if optim_config is None else optim_config
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise SettingError(f"Solver: expected optim_config to be a dict of settings; received {config!r}")
    return config


def check_views(tta: str, X: Array) -> None:
    """Refuse views of examples that are not images."""
    if tta != "none" and X.ndim != 4:
        shape = tuple(X.shape)
        raise SettingError(f"Solver: expected images X_val (N, C, H, W) for tta {tta!r}; received shape {shape}")


def check_average(average: Any, model: Any) -> None:
    """Refuse an average of other weights than the model's."""
    if average is not None and (not isinstance(average, EMA | Lookahead) or average.params is not model.params):
        raise SettingError(f"Solver: expected average to be an EMA or Lookahead of model.params; received {average!r}")


def whole(name: str, value: Any) -> int:
    """Return a whole number of at least 1, as Python's."""
    try:
        if value == int(value) >= 1:
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise SettingError(f"Solver: expected {name} to be a whole number of at least 1; received {value!r}")


def backend_of(model: Any) -> Backend:
    """The backend of a model of the user's own: that of its parameters."""
    params = getattr(model, "params", None)
    if not isinstance(params, Mapping) or not params:
        raise SettingError(f"Solver: expected a model with a dict of params; received {describe(model)}")
    return of(next(iter(params.values())))
