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
        help="folders, image files, addresses (s3://...), globs, lists of paths (.txt), or - for standard input",
    )
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        metavar="FILE",
        help="the table, .csv or .parquet, or a folder with --engine ray; a run that was killed goes on",
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
    parser.add_argument("--engine", choices=["ray"], help="score on a Ray cluster; default: in this process")
    parser.add_argument(
        "--address", type=str, help="of a running Ray cluster; default: --engine ray uses this machine alone"
    )


def run(options: Namespace) -> int:
    """Score, and return 0, or 3 if there are images with an error."""
    try:
        return _score_on_ray(options) if options.engine == "ray" else _score(options)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return INTERRUPTED


def _score(options: Namespace) -> int:
    from anomalib_defend.scoring.remote import is_address  # noqa: PLC0415 - torch and anomalib
    from anomalib_defend.scoring.run import score  # noqa: PLC0415 - torch and anomalib

    for name in ("out", "maps"):
        where = getattr(options, name)
        if where is not None and is_address(where):
            msg = f"--{name} {where} is an address: give a path, or --engine ray, whose --out may be one."
            raise ValueError(msg)
    if options.address is not None:
        msg = "--address is of --engine ray: give both, or none."
        raise ValueError(msg)
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


def _score_on_ray(options: Namespace) -> int:
    from anomalib_defend.scoring.cluster import score_on_ray  # noqa: PLC0415 - torch and anomalib

    if options.maps is not None:
        msg = "--maps is not of --engine ray: score the images whose pictures you want without --engine."
        raise ValueError(msg)
    if options.first_view is not None:
        msg = "--first-view is not of --engine ray: leave it out, the labels are the same."
        raise ValueError(msg)
    return score_on_ray(
        Path(options.model),
        options.paths,
        options.out,
        target_fpr=options.target_fpr,
        target_fdr=options.target_fdr,
        hint=options.hint,
        address=options.address,
    )
