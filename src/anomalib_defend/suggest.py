"""The nearest names to a misspelt one."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the question that belongs behind an error's first sentence, with a space in front.

    Args:
        name: What was given.
        names: What is possible.

    Returns:
        ``" Did you mean 'dog'?"`` with up to three names, the nearest first, or ``""`` where none is near.
    """
    by_folded = {known.casefold(): known for known in names}
    near = get_close_matches(name.casefold(), by_folded, n=3)
    return f" Did you mean {' or '.join(repr(by_folded[known]) for known in near)}?" if near else ""
