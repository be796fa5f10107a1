"""CIFAR-10 and CIFAR-100."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from anomalib_defend.data.class_folders import SPLITS, ClassFolderDataModule, ClassFolders, LabelledPixels, Split
from anomalib_defend.data.download import Source, fetch_folder
from anomalib_defend.data.protocol import Setting

Labels = Literal["coarse", "fine"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = {  # coarse category: its fine classes
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


class _CIFAR(ClassFolderDataModule):
    """What both have in common: torchvision's reader, file names, address and checksums."""

    reader: ClassVar[type[CIFAR10]]

    def read_official_files(self) -> dict[Split, LabelledPixels] | None:
        """Read the pickled batches in ``root`` or where torchvision puts them, or those of the archive in ``root``."""
        folder = self._find_batches()
        archive = self.root / self.reader.filename
        if folder is None and (self.download or archive.is_file()):
            if not self.download and not check_integrity(archive, self.reader.tgz_md5):
                msg = f"{archive} is not {self.reader.url}: its MD5 is not {self.reader.tgz_md5}. Remove or replace it."
                raise RuntimeError(msg)
            fetch_folder(Source(self.reader.url, self.reader.tgz_md5), self.root, self.reader.base_folder)
            folder = self._find_batches()
        if folder is None:
            return None
        self._verify_batches(folder)
        here = type("Here", (self.reader,), {"base_folder": "."})  # the folder may have another name than torchvision's
        datasets = {split: here(folder, train=split == "train") for split in SPLITS}
        return {
            split: LabelledPixels(dataset.data, [dataset.classes[target] for target in dataset.targets])
            for split, dataset in datasets.items()
        }

    def _find_batches(self) -> Path | None:
        first, _ = self.reader.train_list[0]
        places = (self.root / self.reader.base_folder, self.root)
        return next((place for place in places if (place / first).is_file()), None)

    def _verify_batches(self, folder: Path) -> None:
        """Refuse files that are not the official ones before anything in them is unpickled, which can run code."""
        meta = (self.reader.meta["filename"], self.reader.meta["md5"])
        for name, md5 in (*self.reader.train_list, *self.reader.test_list, meta):
            if not check_integrity(folder / name, md5):
                problem = f"its MD5 is not {md5}" if (folder / name).is_file() else "there is no such file"
                msg = (
                    f"{folder / name} is not the file of {self.title} ({problem}). Take it from {self.reader.url}, or "
                    f"move {folder} away and pass download=True."
                )
                raise RuntimeError(msg)


class SemanticCIFAR10(_CIFAR):
    """CIFAR-10: ten categories, each 5,000 colour images of 32 x 32 pixels for training and 1,000 for test.

    The first ``prepare_data`` writes the images below ``cifar10_png`` in ``root``.

    Args:
        root: Folder with the class folders ``{train,test}/<class>/<image>``, or with the official
            ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``.
        category: One category or several, by name or number (0 airplane ... 9 truck): ``[0, 1, 2, 3, 4]``.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        download: Download the official archive (163 MB) into ``root`` if there is nothing else.
        **kwargs: Further arguments of ``SemanticDataModule``.

    Source:
        https://www.cs.toronto.edu/~kriz/cifar.html
    """

    title = "CIFAR-10"
    folder_name = "cifar10_png"
    official_files = f"{CIFAR10.filename} from {CIFAR10.url} or the folder {CIFAR10.base_folder} that it holds"
    reader = CIFAR10

    @property
    def category_of_class(self) -> Mapping[str, str]:
        """Classes are categories."""
        return {name: name for name in CIFAR10_CLASSES}


class SemanticCIFAR100(_CIFAR):
    """CIFAR-100: 20 coarse categories of five classes, each 500 images of 32 x 32 pixels for training and 100 for test.

    The first ``prepare_data`` writes the images by fine class below ``cifar100_png`` in ``root``. Class folders of your
    own may be the fine or the coarse ones.

    Args:
        root: Folder with the class folders ``{train,test}/<class>/<image>``, or with the official
            ``cifar-100-python`` or ``cifar-100-python.tar.gz``.
        category: One category or several, by name or by number in alphabetical order (0 aquatic_mammals ... 19
            vehicles_2; fine: 0 apple ... 99 worm).
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        labels: Whether the 20 ``coarse`` or the 100 ``fine`` classes are the categories.
        **kwargs: ``download``, as of CIFAR-10 (161 MB), and further arguments of ``SemanticDataModule``.

    Raises:
        ValueError: If ``labels`` is something else.

    Source:
        https://www.cs.toronto.edu/~kriz/cifar.html
    """

    title = "CIFAR-100"
    folder_name = "cifar100_png"
    official_files = f"{CIFAR100.filename} from {CIFAR100.url} or the folder {CIFAR100.base_folder} that it holds"
    reader = CIFAR100

    def __init__(
        self,
        root: Path | str,
        category: list[str | int] | str | int,
        setting: Setting = "uni_class",
        *,
        labels: Labels = "coarse",
        **kwargs: Any,  # declared in the base class, where jsonargparse finds them
    ) -> None:
        super().__init__(root=root, category=category, setting=setting, **kwargs)
        if labels not in get_args(Labels):
            msg = f"labels must be one of {', '.join(get_args(Labels))}, got {labels!r}."
            raise ValueError(msg)
        self.labels = labels

    @property
    def category_of_class(self) -> Mapping[str, str]:
        """Fine classes are categories, or fine and coarse classes belong to the coarse ones."""
        if self.labels == "fine":
            return {name: name for name in sorted(name for names in CIFAR100_CLASSES.values() for name in names)}
        coarse = {name: name for name in CIFAR100_CLASSES}
        return coarse | {fine: name for name, names in CIFAR100_CLASSES.items() for fine in names}

    def _check_classes(self, folder: Path, splits: Mapping[Split, ClassFolders]) -> None:
        if self.labels == "fine" and any(folders.keys() & CIFAR100_CLASSES.keys() for folders in splits.values()):
            msg = f"{folder} holds the coarse categories of CIFAR-100, which cannot be divided: pass labels='coarse'."
            raise ValueError(msg)
        super()._check_classes(folder, splits)
