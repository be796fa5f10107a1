"""One progress bar for all stages of a training."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.models.components import AnomalibModule
    from lightning.pytorch import Trainer
    from rich.progress import Task, TaskID

    from .stage_runner import StageRunner


class StageProgressBar(RichProgressBar):
    """Lightning's bar, counting the batches of all stages: it names the stage, and says how long is left over all.

    Outside of a training it is Lightning's own. A validation shows as a word in it.

    Args:
        runner: Knows the stages.
    """

    progress: Any
    train_progress_bar_id: Any

    def __init__(self, runner: StageRunner) -> None:
        super().__init__()
        self._runner = runner
        self._left = TimeLeft()

    @property
    def is_shown(self) -> bool:
        """Whether a person sees it."""
        return self.is_enabled and get_console().is_terminal

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """In a training, what is counted and the time left; elsewhere Lightning's columns."""
        if trainer.state.fn != "fit":
            return super().configure_columns(trainer)
        return [
            TextColumn("{task.description}"),
            BarColumn(16, complete_style=self.theme.progress_bar, finished_style=self.theme.progress_bar_finished),
            MofNCompleteColumn(),
            _TimeLeftColumn(self._left),
        ]

    def on_train_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Begin."""
        self._left.__init__()  # type: ignore[misc] # nothing is left of an earlier fit
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Name the stage and the epoch; what the stage before has logged is gone."""
        self._show(trainer)
        self._left.begin(self._runner.index, self._done(trainer, 0), self._total(trainer))
        self._update_metrics(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, *_args: object) -> None:
        """Name the stage and the epoch where a run was resumed in an epoch's middle."""
        if self.train_progress_bar_id is None:
            self._show(trainer)
            self._left.begin(self._runner.index, self._done(trainer, 0), self._total(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: AnomalibModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count a batch."""
        del outputs, batch
        done = self._done(trainer, batch_idx + 1)
        self._left.count(done)
        self._update(self.train_progress_bar_id, done)
        self._update_metrics(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """After the last epoch, leave the bar on the screen, and make room for the lines that follow."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.progress is not None and self._runner.run.in_last_epoch:
            self.progress.stop()
            self.progress = None

    def on_validation_start(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Say so."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._describe("validation")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """There is no second bar in a training."""
        if trainer.state.fn != "fit":
            super().on_validation_batch_start(trainer, *args, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Go on."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._describe()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: AnomalibModule) -> None:
        """Leave the bar on the screen, and make room for the lines that follow."""
        del trainer, pl_module
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    @contextmanager
    def instead(self, trainer: Trainer, what: str, total: int) -> Iterator[TaskID]:
        """Let the bar count something else for a while."""
        if self.train_progress_bar_id is None:
            self._show(trainer)
        before, task = self.train_progress_bar, self.train_progress_bar_id
        completed, of = before.completed, before.total
        self.progress.update(task, description=self._runner.where(what), completed=0, total=total)
        try:
            yield task
        finally:
            self.progress.update(task, description=self._runner.where(), completed=completed, total=of)

    def _show(self, trainer: Trainer) -> None:
        """Always one row: rich loses log lines where the number of rows changes meanwhile."""
        if self.progress is None or self.is_disabled:
            return
        where, total, done = self._runner.where(), self._total(trainer), self._done(trainer, 0)
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self.progress.add_task(where, total=total, completed=done)
        else:
            self.progress.update(self.train_progress_bar_id, total=total, completed=done, description=where)
        used = max(len(where), len(self._runner.where("validation"))) + 2 * len(str(total)) + 36
        room = max(0, self.progress.console.width - used)
        self._metric_component._table_column = Column(no_wrap=True, overflow="ellipsis", max_width=room)

    def _describe(self, what: str | None = None) -> None:
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, description=self._runner.where(what))
            self.refresh()

    @staticmethod
    def _total(trainer: Trainer) -> float:
        """Batches of all epochs."""
        return (trainer.max_epochs or 1) * trainer.num_training_batches

    @staticmethod
    def _done(trainer: Trainer, batches: int) -> int:
        """Batches of the epochs before this one, and some of its own."""
        per_epoch = trainer.num_training_batches
        return batches + (trainer.current_epoch * int(per_epoch) if math.isfinite(per_epoch) else 0)


class TimeLeft:
    """How long all that is left will take, if each batch takes as long as those of the current stage so far."""

    def __init__(self) -> None:
        self._stage = -1
        self._start = self._first = 0.0
        self._done, self._total = 0.0, math.inf
        self._each: float | None = None  # seconds for a batch

    def begin(self, stage: int, done: float, total: float) -> None:
        """Begin an epoch.

        Args:
            stage: Number of its stage.
            done: Batches that have been trained.
            total: Batches of the whole training, as planned now.
        """
        if stage != self._stage:  # until its first batch is through, those of the stage before are what is known
            self._stage, self._start, self._first = stage, time.monotonic(), done
        self._done, self._total = done, total

    def count(self, done: float) -> None:
        """Note how many batches have been trained."""
        self._done = done
        if done > self._first:
            self._each = (time.monotonic() - self._start) / (done - self._first)

    @property
    def seconds(self) -> float | None:
        """Seconds left, or ``None`` before the first batch and where there is no end."""
        if self._each is None or not math.isfinite(self._total):
            return None
        return max(0.0, self._total - self._done) * self._each


class _TimeLeftColumn(ProgressColumn):
    """The time left, whatever the row counts."""

    max_refresh = 0.5

    def __init__(self, left: TimeLeft) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        """``0:12:30 left``."""
        del task
        seconds = self._left.seconds
        return Text("-:--:-- left" if seconds is None else f"{timedelta(seconds=round(seconds))} left", style="dim")


def stage_progress_bar(trainer: Trainer, runner: StageRunner) -> list[StageProgressBar]:
    """The bar that takes the place of the trainer's, unless it has none or one that the user has chosen."""
    own = trainer.progress_bar_callback
    chosen = type(own) is not StageProgressBar and (type(own) is not RichProgressBar or vars(own) != _DEFAULT)
    if own is None or chosen:
        return []
    runner.make_room(trainer, own)
    return [StageProgressBar(runner)]


_DEFAULT = vars(RichProgressBar())
