"""What stands below a picture: its words, and their lines."""

from __future__ import annotations

import math
from collections.abc import Callable

VERDICTS = {None: "no verdict", False: "normal", True: "NOVEL"}
OUTLINE_LEGEND = "Outlined: above it."
CLIPPED_LEGEND = "Values outside of 0 to 1 are shown as 0 or 1."
BOX_LEGEND = "Box: where the normal object was found."
NOVEL_BOX_LEGEND = "Box: what comes nearest to the normal object."
_DIGITS, _MOST_DIGITS = 3, 6  # the table has more


def map_legend(threshold: float | None) -> str:
    """What the colours say; without a threshold, if there is none on their scale."""
    end = "" if threshold is None else f"; {threshold:g} is the map's threshold"
    return f"Map: dark is normal, bright is novel{end}."


def numbers(score: float | None, threshold: float | None, p_value: float | None) -> str:
    """Score, threshold and p-value in words; a score never looks like the threshold unless it is equal to it."""
    if score is None:
        return "no score"
    digits, words = _DIGITS, [f"score {score:.{_DIGITS}f}", "no threshold"]
    if threshold is not None:
        while score != threshold and digits < _MOST_DIGITS and f"{score:.{digits}f}" == f"{threshold:.{digits}f}":
            digits += 1
        words = [f"score {score:.{digits}f}"]
        if not math.isnan(threshold):
            words.append(f"threshold {threshold:.{digits}f}")
    if p_value is not None and not math.isnan(p_value):
        words.append(f"p-value {p_value:.3g}")
    return ", ".join(words)


def wrapped(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Break a text into lines between words, and within words that are wider than a line.

    Args:
        text: Words with single spaces between them.
        width: Of a line, in the unit of ``measure``; at least the widest character's.
        measure: Gives the width of a text.
    """
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if measure(candidate) <= width:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and measure(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines
