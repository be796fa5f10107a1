"""The papers' own figures."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from .plan import ComparisonError

LABEL = "papers' own figures"
"""Heading of their column; what differs is said in ``papers.yaml``."""


def figures(table: str) -> dict[str, dict[str, float]]:
    """Read one table: of each method the image AUROC, from 0 to 1, of each row that is known.

    Raises:
        ComparisonError: If there is no such table.
    """
    tables: dict[str, Any] = yaml.safe_load((files(__package__) / "papers.yaml").read_text())
    if table not in tables:
        msg = f"paper: unknown table {table!r}; papers.yaml has {', '.join(tables)}."
        raise ComparisonError(msg)
    return {method: {str(row): value / 100 for row, value in rows.items()} for method, rows in tables[table].items()}
