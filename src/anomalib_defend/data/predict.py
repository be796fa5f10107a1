"""All images of a folder, to be scored: no labels, no split."""

import logging
from pathlib import Path
from typing import get_args

from anomalib.data import AnomalibDataModule
from anomalib.data.utils import LabelName
from pandas import DataFrame

from anomalib_defend.data.dataset import SemanticDataset
from anomalib_defend.data.semantic import OnError
from anomalib_defend.data.workers import NUM_WORKERS
from anomalib_defend.files.images import images_in
from anomalib_defend.files.names import on_disk, to_text
from anomalib_defend.files.usable import inspect_files, warn_of_rotation

logger = logging.getLogger(__name__)


class PredictFolder(AnomalibDataModule):
    """Every image of a folder, of the folders in it, or one image alone, for ``predict``.

    ``anomalib predict --model Defend --data PredictFolder --data.root some/folder --ckpt_path model.ckpt`` scores
    every image there, whatever its name, in batches, and names the files that are no usable images. anomalib's own
    ``--data some/folder`` stops at the first of those without a name, and refuses a folder whose name is not ASCII.

    Hidden files are ignored, and images in formats that anomalib does not read are counted in a warning.

    Args:
        root: The folder, or an image file.
        eval_batch_size: Batch size.
        num_workers: Number of workers of the dataloader; by default the usable cores, at most 8.
        on_error: What to do with files that are not usable images; each is named. ``skip`` leaves them out with a
            warning, and the table of predictions tells their errors; ``raise`` stops before the first score. All files
            are decoded once at setup, to know.

    Attributes:
        unusable: What is wrong with the files that are left out, by path.

    Raises:
        ValueError: If ``on_error`` is something else.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        eval_batch_size: int = 32,
        num_workers: int = NUM_WORKERS,
        on_error: OnError = "skip",
    ) -> None:
        super().__init__(train_batch_size=1, eval_batch_size=eval_batch_size, num_workers=num_workers)
        self.root = Path(root).expanduser()
        if on_error not in get_args(OnError):
            msg = f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}."
            raise ValueError(msg)
        self.on_error = on_error
        self.unusable: dict[str, str] = {}

    def _setup(self, _stage: str | None = None) -> None:
        """List the images and look at each.

        Raises:
            FileNotFoundError: If there is no such folder or file, or it holds no image.
            OSError: If files are no usable images and ``on_error`` is ``raise``, or if none of them is one.
        """
        paths = self._images()
        self.unusable, rotated = inspect_files(paths, decode=True)
        unusable = self.unusable
        warn_of_rotation(rotated, len(paths))
        if unusable:
            reasons = "".join(f"\n  {to_text(path)} ({reason})" for path, reason in unusable.items())
            msg = f"{len(unusable)} of {len(paths)} files are not usable images:{reasons}"
            if self.on_error == "raise" or len(unusable) == len(paths):
                msg += "\nReplace them, or leave them out with on_error='skip', if any others are there."
                raise OSError(msg)
            logger.warning("%s\nThey are not scored; the other %d are.", msg, len(paths) - len(unusable))
        usable = [path for path in paths if path not in unusable]
        samples = DataFrame({"image_path": usable}, dtype=object)  # as `protocol` makes them
        samples = samples.assign(split="test", label_index=LabelName.UNKNOWN, mask_path="")
        samples.attrs["task"] = "classification"
        self.test_data = SemanticDataset(samples)

    def _create_test_split(self) -> None:
        """Nothing is split."""

    def _create_val_split(self) -> None:
        """Nothing is split."""

    def _images(self) -> list[str]:
        root = on_disk(self.root)
        if root.is_file():
            return [str(root)]
        if not root.is_dir():
            msg = f"No images: root={to_text(str(self.root))!r} is neither a folder nor a file."
            raise FileNotFoundError(msg)
        images = images_in(root)
        if not images:
            msg = f"{to_text(str(root))} and the folders in it hold no image that anomalib reads."
            raise FileNotFoundError(msg)
        return images
