"""Images with image-level labels; a missing or unreadable file is named."""

from pathlib import Path

from anomalib.data import AnomalibDataset
from anomalib.data.dataclasses import DatasetItem
from pandas import DataFrame
from PIL import Image
from torchvision.transforms.v2 import Transform


class SemanticDataset(AnomalibDataset):
    """Images with image-level labels.

    Args:
        samples: Frame as ``semantic.make_samples`` returns it.
        category: Name for result paths.
        augmentations: Applied to each image.
    """

    def __init__(self, samples: DataFrame, category: str = "", augmentations: Transform | None = None) -> None:
        super().__init__(augmentations=augmentations)
        self.samples = samples
        self.category = category

    def __getitem__(self, index: int) -> DatasetItem:
        """Return an item.

        Raises:
            OSError: If the image file cannot be read; the message names it.
        """
        try:
            return super().__getitem__(index)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow on a broken PNG
            path = self.samples.iloc[index].image_path
            msg = f"Cannot read image {path} ({error}). Replace the file, or take it off the data set's lists."
            raise OSError(msg) from error


def check_files(paths: list[str]) -> None:
    """Check that all files exist, without opening them.

    Raises:
        FileNotFoundError: If files are missing; the message has their number, folders and first names.
    """
    missing = [Path(path) for path in paths if not Path(path).is_file()]
    if missing:
        folders = ", ".join(sorted({str(path.parent) for path in missing})[:3])
        names = ", ".join(path.name for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        msg = f"{len(missing)} of {len(paths)} images are missing from {folders}: {names}. Put the files there."
        raise FileNotFoundError(msg)
