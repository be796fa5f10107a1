"""Base of the semantic-category datamodules: what a format reads, under the protocol, becomes datasets.

Each format derives from ``SemanticDataModule`` and implements only ``read_annotations``.
"""

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, get_args

from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName, TestSplitMode, ValSplitMode
from pandas import DataFrame
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform

from anomalib_defend.data.dataset import SemanticDataset, refuse_missing
from anomalib_defend.data.drawing import permutation, subsample
from anomalib_defend.data.protocol import (
    Annotations,
    Setting,
    check_counts,
    check_splits,
    describe_duplicates,
    make_samples,
    normal_categories,
    one_row_a_file,
    replace_novel,
    resolve_categories,
    with_category_names,
)
from anomalib_defend.data.workers import NUM_WORKERS
from anomalib_defend.files.equal import File, equal_files, find_files, spelled_as
from anomalib_defend.files.names import category_name, is_hidden, on_disk, shortened, shortened_paths, to_text
from anomalib_defend.files.usable import inspect_files, warn_of_rotation

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
OnDuplicates = Literal["warn", "raise"]

_VAL_SPLIT_MODES = (ValSplitMode.FROM_TRAIN, ValSplitMode.FROM_TEST, ValSplitMode.SAME_AS_TEST, ValSplitMode.SYNTHETIC)
_MAX_CATEGORY_BYTES = 100  # it becomes a folder name in the result path


class SemanticDataModule(AnomalibDataModule):
    """Base of the semantic-category datamodules; a format implements ``read_annotations``.

    Args:
        root: Folder of the data set.
        category: One category or several, by name or, where the data set numbers them, by number.
        setting: ``uni_class``: the categories are normal. ``leave_one_out``: they are novel and all others normal.
        train_batch_size: Batch size for training.
        eval_batch_size: Batch size for validation, test and prediction.
        num_workers: Number of workers of each dataloader; by default the usable cores, at most 8.
        train_augmentations: Applied to the training images.
        val_augmentations: Applied to the validation images.
        test_augmentations: Applied to the test images.
        augmentations: Applied where no augmentations of the stage are given.
        test_split_mode: anomalib's mode; ``from_dir`` takes the official test images.
        test_split_ratio: Unused with the official test images; part of anomalib's interface.
        val_split_mode: ``from_train``, ``from_test``, ``same_as_test`` or ``synthetic``.
        val_split_ratio: Fraction of the split images that becomes the validation set.
        seed: Seed of the splits and of subsampling; ``None`` draws new ones at each setup.
        max_train_images: Use at most this many training images, counted before the validation split.
        max_test_images: Use at most this many test images, stratified by label.
        novel_dataset: Take the novel test images from another data set instead: those of its test images that its own
            ``category`` and ``setting`` make normal. Its further arguments are not used.
        on_error: What to do with a file that is not a usable image: ``raise``, or ``skip`` it with a warning, for
            which every file is decoded once at setup.
        on_duplicates: What to do when several files hold the same bytes, of which some may be for training and others
            for test: ``warn`` of their number, or ``raise``. Paths that lead to one and the same file are refused if
            they are for training and for test, and otherwise count once.

    Raises:
        ValueError: If an argument is outside of what is listed above.
    """

    def __init__(
        self,
        root: Path | str,
        category: list[str | int] | str | int,  # in this order: the command line tries the list first
        setting: Setting = "uni_class",
        *,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = NUM_WORKERS,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.FROM_TRAIN,
        val_split_ratio: float = 0.1,
        seed: int | None = 0,
        max_train_images: int | None = None,
        max_test_images: int | None = None,
        novel_dataset: "SemanticDataModule | None" = None,
        on_error: OnError = "raise",
        on_duplicates: OnDuplicates = "warn",
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root = on_disk(Path(root).expanduser())
        categories = [category] if isinstance(category, str | int) else category
        self.categories = sorted({category_name(str(name)) for name in categories})
        self.setting = setting
        self.max_train_images = max_train_images
        self.max_test_images = max_test_images
        self.novel_dataset = novel_dataset
        self.on_error = on_error
        self.on_duplicates = on_duplicates
        self._normal: frozenset[str] | None = None
        self._check_arguments(val_split_ratio)
        self.category = self._name_for_paths()

    def _name_for_paths(self) -> str:
        """Return a name for the result path: each combination of categories and setting has its own."""
        name = "_".join(self.categories)
        if len(name.encode()) > _MAX_CATEGORY_BYTES:
            name = self.categories[0].encode()[:_MAX_CATEGORY_BYTES].decode(errors="ignore")
            if len(self.categories) > 1:
                name += f"_and_{len(self.categories) - 1}_more"
        if self.setting == "leave_one_out":
            name = f"not_{name}"
        return name if self.novel_dataset is None else f"{name}_vs_{self.novel_dataset.category}"

    def _check_arguments(self, val_split_ratio: float) -> None:
        problem = None
        if self.setting not in get_args(Setting):
            problem = f"setting must be one of {', '.join(get_args(Setting))}, got {self.setting!r}."
        elif self.on_error not in get_args(OnError):
            problem = f"on_error must be one of {', '.join(get_args(OnError))}, got {self.on_error!r}."
        elif self.on_duplicates not in get_args(OnDuplicates):
            problem = f"on_duplicates must be one of {', '.join(get_args(OnDuplicates))}, got {self.on_duplicates!r}."
        elif not self.categories or "" in self.categories:
            problem = "category must name at least one category."
        elif self.val_split_mode not in _VAL_SPLIT_MODES:
            problem = (
                f"val_split_mode must be one of {', '.join(mode.value for mode in _VAL_SPLIT_MODES)}, got "
                f"{self.val_split_mode.value!r}: the threshold is set from the validation images."
            )
        elif not 0 < val_split_ratio < 1:
            problem = f"val_split_ratio must lie between 0 and 1, both excluded, got {val_split_ratio}."
        for name in ("max_train_images", "max_test_images"):
            limit = getattr(self, name)
            if limit is not None and limit < 2:
                problem = f"{name} must be at least 2, got {limit}: each split needs images to divide."
        if problem:
            raise ValueError(problem)

    @abstractmethod
    def read_annotations(self) -> Annotations:
        """Return every category of the data set, and every image with its categories and official split."""

    @property
    def num_normal_categories(self) -> int:
        """Number of normal categories under the setting.

        Raises:
            RuntimeError: If called before ``setup``.
        """
        if self._normal is None:
            msg = "num_normal_categories is known only after setup()."
            raise RuntimeError(msg)
        return len(self._normal)

    def prepare_data(self) -> None:
        """Prepare the data set of the novel images; a format that downloads or converts does so here as well."""
        if self.novel_dataset is not None:
            self.novel_dataset.prepare_data()

    def normal_test_images(self) -> list[str]:
        """Return the paths of the test images that this data set's own category and setting make normal."""
        annotations = self._annotations()
        normal = normal_categories(
            annotations.categories, resolve_categories(self.categories, annotations), self.setting
        )
        samples = make_samples(annotations.images, normal)
        return samples[(samples["split"] == "test") & (samples["label"] == "normal")]["image_path"].tolist()

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test images, as all of anomalib's datamodules do, and say that it is one of them."""
        logger.warning(
            "predict scores the %d test images of %s. To score every image of a folder, pass PredictFolder.",
            len(self.test_data),
            self.name,
        )
        return super().predict_dataloader()

    def _annotations(self) -> Annotations:
        """Return what the format reads, under the rules for names: without hidden files, categories composed."""
        annotations = with_category_names(self.read_annotations())
        root = str(self.root / "x")[:-1]  # it may lie in a hidden folder itself
        hidden = {
            image.path
            for image in annotations.images
            if is_hidden(image.path.removeprefix(root) if image.path.startswith(root) else Path(image.path).name)
        }
        if hidden:
            logger.warning(
                "%d listed images are hidden files or lie in hidden folders, and are left out: %s.",
                len(hidden),
                shortened_paths(sorted(hidden)),
            )
        return annotations._replace(images=[image for image in annotations.images if image.path not in hidden])

    def _setup(self, _stage: str | None = None) -> None:
        annotations = self._annotations()
        self.categories = resolve_categories(self.categories, annotations)
        self._normal = normal_categories(annotations.categories, self.categories, self.setting)
        if self.setting == "uni_class" or self.novel_dataset is None:  # else the chosen ones are not used
            check_counts(annotations, self.categories, self.setting)
        samples, files = self._samples_of_files(make_samples(annotations.images, self._normal))
        check_splits(samples, self.categories, self.setting, annotations.categories)
        samples = subsample(samples, "train", self.max_train_images, self.seed)
        samples = subsample(samples, "test", self.max_test_images, self.seed)
        refuse_missing(samples["image_path"].tolist(), files)
        samples = self._usable(samples)
        check_splits(samples, self.categories, self.setting, annotations.categories)
        self._check_duplicates(samples, files)
        is_train = samples["split"] == "train"
        self.train_data = SemanticDataset(samples[is_train], self.category)
        self.test_data = SemanticDataset(samples[~is_train], self.category)

    def _samples_of_files(self, samples: DataFrame) -> tuple[DataFrame, dict[str, File]]:
        """Put the novel images of another data set in their place, and each file once; return what paths lead to."""
        listed = samples["image_path"].tolist()
        novel = [] if self.novel_dataset is None else self.novel_dataset.normal_test_images()
        files = find_files(dict.fromkeys([*listed, *novel]))
        if self.novel_dataset is not None:
            samples = replace_novel(samples, spelled_as(novel, listed, files))
        unique = one_row_a_file(samples, files)
        if len(unique) < len(samples):
            again = [path for path in samples["image_path"] if path not in set(unique["image_path"])]
            logger.warning(
                "%d of %d listed images are files that another path leads to, and count once, with the categories of "
                "all their paths: %s.",
                len(samples) - len(unique),
                len(samples),
                shortened_paths(again),
            )
        return unique, files | {file.path: file for file in files.values()}

    def _check_duplicates(self, samples: DataFrame, files: dict[str, File]) -> None:
        """Say how many images have the same bytes as others, or refuse them."""
        msg = describe_duplicates(samples, equal_files(files[path] for path in samples["image_path"]))
        if msg and self.on_duplicates == "raise":
            msg += " Remove the copies, or pass on_duplicates='warn'."
            raise ValueError(msg)
        if msg:
            logger.warning("%s Remove the copies; on_duplicates='raise' refuses them.", msg)

    def _usable(self, samples: DataFrame) -> DataFrame:
        """Refuse files that cannot be used, or leave them out."""
        unusable, rotated = inspect_files(samples["image_path"].tolist(), decode=self.on_error == "skip")
        warn_of_rotation(rotated, len(samples))
        if not unusable:
            return samples
        reasons = shortened(f"{to_text(path)} ({reason})" for path, reason in unusable.items())
        msg = f"{len(unusable)} of {len(samples)} files are not usable images: {reasons}."
        if self.on_error == "raise":
            msg += " Replace them, take them off the data set's lists, or leave them out with on_error='skip'."
            raise OSError(msg)
        logger.warning("%s They are skipped.", msg)
        return samples[~samples["image_path"].isin(unusable)].reset_index(drop=True)

    def _create_val_split(self) -> None:
        size = len(self.train_data)
        if self.val_split_mode == ValSplitMode.FROM_TRAIN:  # not the base's: a small split must not be empty
            num_val = min(max(round(size * self.val_split_ratio), 1), size - 1)
            order = permutation(size, self.seed)
            self.val_data = self.train_data.subsample(order[:num_val])
            self.train_data = self.train_data.subsample(order[num_val:])
        else:
            if self.val_split_mode == ValSplitMode.SYNTHETIC and int(size * self.val_split_ratio) < 2:
                msg = f"val_split_ratio={self.val_split_ratio} of {size} training images is less than the 2 needed."
                raise ValueError(msg)
            super()._create_val_split()
        if not self.val_data.has_normal:
            msg = (
                f"val_split_ratio={self.val_split_ratio} leaves no normal validation image for the threshold; raise it."
            )
            raise ValueError(msg)
        logger.info(
            "%s, %s: train %s, val %s, test %s. Normal: %s.",
            self.name,
            self.setting,
            *(_counts(data) for data in (self.train_data, self.val_data, self.test_data)),
            ", ".join(sorted(self._normal or ())),
        )


def _counts(dataset: AnomalibDataset) -> str:
    novel = int((dataset.samples["label_index"] == LabelName.ABNORMAL).sum())
    return f"{len(dataset) - novel} normal / {novel} novel"
