"""What a billion images take on a Ray cluster: cores, hours, network and storage, from measured numbers.

``python -m measurements.billion --rate 19.7 --share 0.94`` prints the assumptions and the plan; `measurements.cluster`
measures the numbers on the processor that will be used.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from .speed.report import table

CORES = (64, 512, 4096)


class Measured(NamedTuple):
    """Numbers of one processor and one model."""

    rate: float
    """Images a second that the single machine scores with a core, from files."""
    share: float
    """Of that, with ``--engine ray``."""
    file_bytes: float
    """Of an image."""
    row_bytes: float
    """Of a row in a partition."""
    actor_bytes: float
    """Memory of a core."""


def plan(images: float, cores: int, measured: Measured) -> dict[str, object]:
    """A row of the table: ``images / (cores * rate * share)`` seconds, in which every file is read once."""
    per_second = cores * measured.rate * measured.share
    return {
        "cores": cores,
        "memory, GB": cores * measured.actor_bytes / 1e9,
        "images/s": per_second,
        "hours": images / per_second / 3600,
        "network, Gbit/s": per_second * measured.file_bytes * 8 / 1e9,
    }


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser("python -m measurements.billion", description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="images a second of a core of the single machine")
    parser.add_argument("--share", type=float, required=True, help="of it with --engine ray")
    parser.add_argument("--file-bytes", type=float, default=87e3, help="of an image")
    parser.add_argument("--row-bytes", type=float, default=72, help="of a row in a partition")
    parser.add_argument("--actor-bytes", type=float, default=1.6e9, help="memory of a core")
    parser.add_argument("--images", type=float, default=1e9)
    options = parser.parse_args()
    measured = Measured(options.rate, options.share, options.file_bytes, options.row_bytes, options.actor_bytes)
    hours = options.images / (measured.rate * measured.share) / 3600
    print(
        f"{options.images:.3g} images of {measured.file_bytes / 1e3:.0f} kB, {measured.rate:.3g} a second a core, "
        f"{measured.share:.2f} of that on a cluster:\n{hours:.0f} hours of a core, "
        f"{options.images * measured.file_bytes / 1e12:.0f} TB read once, "
        f"{options.images * measured.row_bytes / 1e9:.0f} GB of rows, and as long as it runs their paths once more.\n"
    )
    print(table([plan(options.images, cores, measured) for cores in CORES]))


if __name__ == "__main__":
    main()
