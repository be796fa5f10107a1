"""A stage of a training: all that is a model's own about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from torch import Tensor, nn

if TYPE_CHECKING:
    from anomalib.data import Batch

    from .run import Run


Optimizers: TypeAlias = Any
"""What Lightning's ``configure_optimizers`` may return."""


class Step(NamedTuple):
    """What one step computes."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = {}
    """Logged beside the loss, by name."""


class Stage:
    """A part of a training, with its length, its optimiser and its step; `StageRunner` drives it.

    Subclasses say what is theirs. They get the torch model and the arguments, and ask the `Run` for the rest.

    Args:
        model: The torch model.
        arguments: The model's arguments, by name.
    """

    name: ClassVar[str]
    """As the log says it."""
    loss_name: ClassVar[str] = "loss"
    """As it is logged."""
    advice: ClassVar[str] = "train with --trainer.precision 32"
    """What to do about a loss that is not finite."""
    length: ClassVar[str]
    """The argument that says how long it is."""
    validates: ClassVar[bool] = True
    """Whether there is something to validate; else early stopping sees nothing of it, either."""
    trains: ClassVar[bool] = True
    """Whether it takes steps; else it only completes the model with one pass over the normal images."""
    gradient_clip: ClassVar[float | None] = None
    """Largest norm of the gradient, unless the trainer was told one."""

    def __init__(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        self.model: Any = model
        self.arguments = arguments

    @property
    def skipped(self) -> bool:
        """Whether the arguments leave it out."""
        return False

    def plan(self, run: Run) -> int:
        """Check what it needs, before the first epoch; return its number of epochs, at most."""
        return 1 if run.is_trial else self.arguments[self.length]

    @property
    def reused(self) -> bool:
        """Whether what an earlier run has made stands in for it, as known once it is planned.

        The epochs that it took are counted, but not trained again: those behind it keep their numbers, from which their
        random numbers follow.
        """
        return False

    def prepare(self, run: Run, epochs: int) -> None:
        """Decide and announce what depends on its number of epochs, before the first one of the training."""

    def optimizers(self) -> Optimizers:
        """Its optimiser, with schedules if there are any, as Lightning's ``configure_optimizers``."""
        return None

    def enter(self, run: Run) -> None:
        """Begin, or go on with a resumed run."""

    def step(self, batch: Batch, run: Run) -> Step | None:
        """One step on a batch of normal images; ``None`` if nothing is to be optimised."""
        raise NotImplementedError

    def updated(self, run: Run) -> None:
        """Look at the weights after an optimiser step."""

    @property
    def finished(self) -> bool:
        """Whether it ends before its last epoch."""
        return False

    def end_epoch(self, run: Run) -> None:
        """Look back at an epoch."""

    def complete(self, run: Run) -> None:
        """Make the model ready to score: before each validation, and after the last epoch.

        Its buffers are the same in all processes by then.
        """

    def leave(self, run: Run) -> None:
        """End, before the next stage begins."""

    def close(self, run: Run, failed: bool) -> None:
        """Let go of what only the training needs, however it ends."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know beside the weights, as plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
