"""Resident memory of continuous OpenVINO inference, minute by minute.

``python -m measurements.reliability.soak --minutes 30``

One exported model scores image files of various sizes, over and over.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from anomalib.deploy import OpenVINOInferencer

from .memory import BATCH, DIFFERENT, resident_mib, train, write_images


class Reading(NamedTuple):
    """What was reached after some minutes."""

    minutes: float
    images: int
    mib: float


def soak(minutes: float, every: float = 1) -> Iterator[Reading]:
    """Score images for some minutes, and read the memory again and again.

    Yields:
        A reading after each ``every`` minutes; the first one after the first period, when all sizes have been seen.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inferencer = OpenVINOInferencer(train(folder, BATCH).to_openvino(folder), device="CPU")
        paths = write_images(folder / "test", DIFFERENT)
        start, readings = time.monotonic(), 0
        for images, path in enumerate(cycle(paths), start=1):
            inferencer.predict(path)
            elapsed = (time.monotonic() - start) / 60
            if elapsed >= (readings + 1) * every:
                readings += 1
                yield Reading(elapsed, images, resident_mib())
                if elapsed >= minutes:
                    return


def main() -> None:
    """Print the readings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    first = None
    for reading in soak(arguments.minutes):
        first = first or reading
        print(
            f"{reading.minutes:4.0f} min  {reading.images:7d} images  {reading.mib:.1f} MiB  "
            f"{reading.mib / first.mib - 1:+.2%} since the first minute",
            flush=True,
        )


if __name__ == "__main__":
    main()
