"""Checkpoints that a killed run cannot damage.

A file of its own, imported when a run begins: with anomalib's engine, which takes longer to import than the models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.engine.plugins.checkpoint_io import AnomalibCheckpointIO
from lightning.fabric.plugins import TorchCheckpointIO

from .checkpoints import read_checkpoint, reason

if TYPE_CHECKING:
    from lightning.fabric.plugins import CheckpointIO


class AtomicCheckpointIO(AnomalibCheckpointIO):
    """Write a checkpoint beside its place and move it there when it is complete; read tensors and plain data alone.

    Lightning's own writes into the folder for temporary files. Where that is another file system, the move is a copy
    over the last checkpoint, and a run that is killed meanwhile has lost both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save so that ``path`` holds the old or the new checkpoint, whenever the process or the machine stops.

        Raises:
            OSError: If it cannot be written; the old checkpoint is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            part.unlink(missing_ok=True)
            msg = f"The checkpoint {path} could not be written ({reason(error)}); one that was there is unchanged."
            raise OSError(msg) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
        """Load a checkpoint, on the CPU unless told otherwise, whatever device it was saved from.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a checkpoint, is damaged, or holds code.
        """
        del weights_only  # Lightning passes None for "not given"
        if "://" in str(path):
            return super().load_checkpoint(path, map_location=map_location, weights_only=True)
        return read_checkpoint(path, map_location, extra_safe_globals=self.extra_safe_globals)


def made_atomic(checkpoint_io: CheckpointIO) -> CheckpointIO:
    """Ours in place of anomalib's and Lightning's own; a user's stays."""
    is_default = type(checkpoint_io) in {AnomalibCheckpointIO, TorchCheckpointIO}
    return AtomicCheckpointIO() if is_default else checkpoint_io
