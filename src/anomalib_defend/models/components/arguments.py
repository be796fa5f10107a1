"""A model's arguments."""

from __future__ import annotations

import math

from anomalib_defend.suggest import did_you_mean


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


def check_choices(**arguments: tuple[object, tuple[object, ...]]) -> None:
    """Check arguments given as name=(value, choices).

    Raises:
        ValueError: If a value is none of its choices, with name and choices.
    """
    for name, (value, choices) in arguments.items():
        if value not in choices:
            near = did_you_mean(str(value), map(str, choices))
            msg = f"{name}={value!r} must be one of {', '.join(map(repr, choices))}.{near}"
            raise ValueError(msg)
