"""``anomalib-defend app``: a page on this machine, to drop images on and move the threshold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Port = restricted_number_type("Port", int, [(">", 0), ("<", 65536)])


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=str, help="checkpoint (.ckpt), .xml, .onnx, or a folder with one export")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen on; the default is reached from this machine alone, 0.0.0.0 from every other one, too",
    )
    parser.add_argument("--port", type=Port, help="default: the first free one from 7860 on")


def run(options: Namespace) -> int:
    """Serve the page until it is interrupted."""
    from anomalib_defend.app.page import LOOPBACK, serve  # noqa: PLC0415 - torch and anomalib

    if options.host != LOOPBACK:
        print(f"Whoever reaches {options.host} can use this page: it asks for no password.", file=sys.stderr)
    serve(Path(options.model), options.host, options.port)
    return 0
