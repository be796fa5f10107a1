"""A model's arguments, and the trainer's."""

from __future__ import annotations

import math

UNSET_MAX_EPOCHS = 1000  # what Lightning takes for trainer.max_epochs when the user gave none


def as_pair(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """Height and width; one number stands for both."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def check_ranges(**arguments: tuple[float | None, float, float | None]) -> None:
    """Check arguments given as name=(value, lowest, highest); ``None`` is no value, or no limit.

    Raises:
        ValueError: If a value is out of its range, with name and range.
    """
    for name, (value, low, high) in arguments.items():
        if value is not None and not low <= value <= (math.inf if high is None else high):
            msg = f"{name}={value} must be at least {low}{'' if high is None else f' and at most {high}'}."
            raise ValueError(msg)
