"""``anomalib-defend score``: score any number of images with a checkpoint or an exported model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

INTERRUPTED = 130  # as of a process that Ctrl-C ends


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "model", type=str, help="OpenVINO model (.xml), checkpoint (.ckpt), or a folder with one export"
    )
    parser.add_argument(
        "paths",
        type=str,
        nargs="+",
        help="folders, image files, globs, lists of paths (.txt), or - for a list on standard input",
    )
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        metavar="FILE",
        help="the table, .csv or .parquet; a run that was killed goes on",
    )
    parser.add_argument("--target-fpr", type=float, help="share of new normal images that may be called novel")
    parser.add_argument(
        "--target-fdr", type=float, help="mark images of which at most this share is expected to be normal"
    )
    parser.add_argument("--hint", type=str, help="OpenVINO's precision (f32, bf16); default: OpenVINO's own")
    parser.add_argument("--maps", type=str, metavar="DIR", help="folder for a picture of each image")
    parser.add_argument(
        "--first-view",
        type=str,
        metavar="FILE",
        help="model of the first view of an ObjectPrototypes, or the checkpoint again: what it makes normal is not "
        "looked at any further; labels are the same",
    )


def run(options: Namespace) -> int:
    """Score, and return 0, or 3 if there are images with an error."""
    from anomalib_defend.scoring.run import score  # noqa: PLC0415 - torch and anomalib

    try:
        return score(
            Path(options.model),
            options.paths,
            Path(options.out),
            target_fpr=options.target_fpr,
            target_fdr=options.target_fdr,
            hint=options.hint,
            maps=None if options.maps is None else Path(options.maps),
            first_view=None if options.first_view is None else Path(options.first_view),
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
