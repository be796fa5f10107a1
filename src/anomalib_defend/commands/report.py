"""``anomalib-defend report``: one page for a browser of a finished test or prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "run", type=str, help="folder of a finished test or predict, or its test.csv or predictions.csv"
    )
    parser.add_argument("--out", type=str, help="the page; default: report.html beside the table")
    parser.add_argument(
        "--model",
        type=str,
        help="checkpoint, export or .calibration.json that made the table, where the folder does not tell what to "
        "expect of new images (runs of older versions)",
    )


def run(options: Namespace) -> int:
    """Write the page, and say where it is."""
    from anomalib_defend.files.names import to_text  # noqa: PLC0415 - torchvision
    from anomalib_defend.reporting.page import write_report  # noqa: PLC0415 - torch and anomalib

    report = write_report(
        Path(options.run),
        None if options.out is None else Path(options.out),
        None if options.model is None else Path(options.model),
    )
    print(report.sentence)
    print(f"{report.images} images of {to_text(str(report.table))}, {report.pictures} of them with a picture.")
    size = report.path.stat().st_size / 1e6
    print(f"Written: {to_text(str(report.path))} ({size:.1f} MB). Open it in a browser; it needs no network.")
    return 0
