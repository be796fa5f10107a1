"""The folders that anomalib numbers runs with."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path


def number_latest(root: Path) -> None:
    """Give a run in a folder ``latest`` a number, and let ``latest`` lead to it, whether it exists or will be made.

    Where there was no training yet, anomalib's `validate`, `test` and `predict` write into ``latest`` as a folder
    instead of a link, and the next training ends in IsADirectoryError when it wants to replace it.

    Args:
        root: The run's folder.
    """
    if root.name != "latest" or root.is_symlink() or (root.exists() and not root.is_dir()):
        return
    with suppress(OSError):  # no rights, or no links: anomalib's own error comes with the next training
        root.parent.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.name[1:]) for path in root.parent.iterdir() if re.fullmatch(r"v\d+", path.name)]
        version = root.with_name(f"v{max(numbers, default=-1) + 1}")
        if root.is_dir():
            root.rename(version)
        else:
            version.mkdir()
        root.symlink_to(version.name, target_is_directory=True)
