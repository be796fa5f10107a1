"""``anomalib-defend threshold``: tell, move or compute anew the threshold of a checkpoint or an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=str, help="checkpoint (.ckpt), .xml, .onnx, or a folder with one export")
    parser.add_argument("--target-fpr", type=float, help="share of new normal images that may be called novel")
    parser.add_argument(
        "--calibrate",
        type=str,
        metavar="FOLDER",
        help="normal images that trained nothing: compute the threshold anew from what the model says of them",
    )
    parser.add_argument(
        "--hint", type=str, help="OpenVINO's precision (f32, bf16) to calibrate in; default: OpenVINO's own"
    )
    parser.add_argument(
        "--labels",
        type=bool,
        help="for a checkpoint: false leaves labels out of predictions and exports, which then need no threshold",
    )
    parser.add_argument("--output", type=str, help="where the new model is written; default: beside the old one")


def run(options: Namespace) -> int:
    """Tell the threshold, or write the model with another one."""
    from anomalib_defend.decision.command import threshold  # noqa: PLC0415 - torch

    threshold(
        Path(options.model),
        target_fpr=options.target_fpr,
        calibrate=None if options.calibrate is None else Path(options.calibrate),
        hint=options.hint,
        labels=options.labels,
        output=None if options.output is None else Path(options.output),
    )
    return 0
