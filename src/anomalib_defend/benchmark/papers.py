"""The papers' own figures, and what has to be known of them."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import yaml

from .plan import ComparisonError

LABEL = "papers' own figures"
"""Heading of their column."""
NOTES = "notes"
"""What ``papers.yaml`` has beside the tables."""


def figures(table: str) -> dict[str, dict[str, float]]:
    """Read one table: of each method the image AUROC, from 0 to 1, of each row that is known.

    Raises:
        ComparisonError: If there is no such table.
    """
    tables = {name: methods for name, methods in _read().items() if name != NOTES}
    if table not in tables:
        msg = f"paper: unknown table {table!r}; papers.yaml has {', '.join(tables)}."
        raise ComparisonError(msg)
    return {method: {str(row): value / 100 for row, value in rows.items()} for method, rows in tables[table].items()}


def notes(table: str) -> list[str]:
    """How the figures of one table came about: encoders, who ran them, and what is not comparable.

    Raises:
        ComparisonError: If there is no such table.
    """
    methods = figures(table)
    found = []
    for note in _read()[NOTES]:
        named = [method for method in methods if method in note["methods"]]
        if named and table in note.get("tables", [table]):
            found.append(f"{'; '.join(named)}: {note['text']}")
    return found


@functools.cache
def _read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files(__package__) / "papers.yaml").read_text())
    return content
