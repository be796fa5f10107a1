"""A progress bar beside the trainer's own, or in its place, for what is not a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lightning.pytorch.callbacks import RichProgressBar
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lightning.pytorch import Trainer

Item = TypeVar("Item")


def track(trainer: Trainer, description: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """Yield the items, with a bar wherever the trainer shows its own one.

    Args:
        trainer: Its progress bar decides whether there is one, and on which process.
        description: What is going on.
        items: What is counted.
        total: Number of items.
    """
    own = trainer.progress_bar_callback
    if own is None or not getattr(own, "is_enabled", True):
        yield from items
        return
    live = getattr(own, "progress", None) if isinstance(own, RichProgressBar) else None
    if live is None:
        yield from tqdm(items, description, total, leave=False)
        return
    if hasattr(own, "instead"):  # the bar of all stages: there is one row
        with own.instead(trainer, description, total) as task:
            for item in items:
                yield item
                live.update(task, advance=1)
                own.refresh()
        return
    task = live.add_task(f"[white]{description}", total=total)  # two live displays at once are none
    try:
        for item in items:
            yield item
            live.update(task, advance=1)
            own.refresh()
    finally:
        live.remove_task(task)
