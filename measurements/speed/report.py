"""Options of a run, and what a part of it returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    quick: bool = False
    threads: int = 1
    backbones: tuple[str, ...] = ("deit_tiny_patch16_224", "vit_small_patch16_224")
    batch: int = 32
    repeats: int = 10
    counts: tuple[int, ...] = (250, 500, 1000, 2000)
    images: Path | None = None
    plot: Path | None = None
    json: Path | None = None
    cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """Elapsed time, or this process's own on all cores together."""
        return time.process_time if self.cpu_time else time.perf_counter


@dataclass
class Result:
    """One table of a part: Markdown for docs/measurements.md, and figures by name."""

    markdown: str
    figures: dict[str, Any] = field(default_factory=dict)


def by_backbone(figures: dict[str, float], backbone: str, options: Options) -> dict[str, float]:
    """Figures under names that tell the encoder; those of the first encoder under their plain names, too."""
    named = {f"{name} {backbone}": value for name, value in figures.items()}
    return {**figures, **named} if backbone == options.backbones[0] else named


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table; numbers with three significant digits, what a row lacks as a dash."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
