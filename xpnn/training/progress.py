"""How far a run has come: what its checkpoint holds besides arrays."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from xpnn.errors import CheckpointError
from xpnn.training.typed import check_fields


@dataclass(frozen=True)
class Progress:
    """All of a Solver that is to be the same when training goes on, but for its arrays.

    `task` says what must agree for that: the data's size, the batch's, the augmentation, the update rule. The states
    are those of random generators, (seed, stream, counter); `order_state` is from before this epoch's order was drawn.
    """

    epoch: int
    iteration: int
    seconds: float
    loss_history: list[float]
    train_acc_history: list[float]
    val_acc_history: list[float]
    best_val_acc: float
    best_epoch: int
    rate_factor: float
    order_state: tuple[int, ...]
    augmentation_state: tuple[int, ...]
    evaluation_state: tuple[int, ...]
    model_rng: dict[str, tuple[int, ...]]
    optimizer: dict[str, dict[str, Any]]
    task: dict[str, Any]

    def to_meta(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, meta: dict[str, Any], task: dict[str, Any], iterations_per_epoch: int) -> "Progress":
        """Return the progress in a checkpoint's meta.

        Raises
        ------
        CheckpointError
            When something is missing, of another type, at odds with the rest, or of another task.
        """
        if "task" not in meta:
            raise CheckpointError("expected a checkpoint to train on from; it holds weights alone")
        try:
            check_fields(cls, meta)
        except TypeError as error:
            raise CheckpointError(f"expected the progress of a run; it is damaged ({error})") from None
        progress = cls(**{field.name: meta[field.name] for field in fields(cls)})
        for key, expected in task.items():
            if progress.task.get(key) != expected:
                raise CheckpointError(f"expected {key} {expected!r}; received {progress.task.get(key)!r}")
        checks = progress.epoch + 1 if progress.iteration else 0  # the last may be due, but not done
        whole = (
            progress.iteration == len(progress.loss_history)
            and progress.epoch == progress.iteration // iterations_per_epoch
            and checks - 1 <= len(progress.train_acc_history) == len(progress.val_acc_history) <= checks
            and 0 <= progress.best_val_acc <= 1
            and len(progress.order_state) == len(progress.augmentation_state) == len(progress.evaluation_state) == 3
        )
        if not whole:
            raise CheckpointError("expected the progress of a run; its numbers are at odds with each other")
        return progress
