"""How the views of `ObjectPrototypes` were chosen: on cells that no table of the results shows.

``python -m measurements.layouts --weights FILE --voc VOC2012 --cifar10 CIFAR10 --fashion-mnist FOLDER``

A choice is the share of the sides that a part has, the layout, the score (the smallest distance of the views, or its
sum with the whole image's), and which views of the training images make the prototypes: the whole images; of each
image the view nearest to the whole images' prototypes (one alternating step); or all views. Prints the mean image AUROC
of one view in each group of cells, and what each choice adds to it.

The rule, written before the first run. The default has to serve scenes (the groups of VOC) and images of one centred
object (the others), so a choice that is behind one view in the mean of any group is out. Of the others, those whose
mean gain over the groups is less than 0.003 below the best are equal. Of them the one with the fewest encoder passes
for an image that is scored is chosen, then with the fewest for a training image, then the one with the best mean.

All cells of a data set are tested on the same images, at most 500 and evenly spaced, and each file and view is encoded
once. Some 20 minutes of one core with AMX; the first line says how long it will be.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from statistics import fmean
from time import perf_counter
from typing import Any, Literal, NamedTuple, get_args

import torch
from anomalib.data import AnomalibDataset
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_defend.data import SemanticCIFAR10, SemanticFashionMNIST, SemanticVOC
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.object_prototypes.torch_model import ObjectPrototypesModel
from anomalib_defend.nn.encoder import DataConfig, data_config
from anomalib_defend.nn.normality import Clusters
from anomalib_defend.nn.views import WHOLE, Box, Views, cut, layouts, needed_size
from anomalib_defend.pre_processing import ResizeNormalize

Score = Literal["smallest", "sum"]
Prototypes = Literal["whole", "nearest", "all"]
Seen = dict[float, Tensor]
"""By the part's size: features [M, V, D] of M images in all V views."""

TRAIN_IMAGES, TEST_IMAGES = 200, 500  # at most
PER_CATEGORY = 5  # prototypes, as of the model
EQUAL = 0.003

DATA: dict[str, Any] = {"voc": SemanticVOC, "cifar10": SemanticCIFAR10, "fashion_mnist": SemanticFashionMNIST}
CELLS: dict[str, tuple[str, str, list[Any]]] = {  # group -> data, setting, categories of each cell
    "VOC uni-class": (
        "voc",
        "uni_class",
        [["cat", "dog"], ["horse", "sheep"], ["dog", "sheep"], ["cow", "horse"], "person"],
    ),
    "VOC leave-one-out": ("voc", "leave_one_out", [["horse", "sheep"], ["cow", "horse"], ["cat", "sheep"]]),
    "CIFAR-10 uni-class": ("cifar10", "uni_class", ["bird", "dog", "frog", "horse", "truck"]),
    "Fashion-MNIST uni-class": ("fashion_mnist", "uni_class", [1, 2, 3, 5, 6, 8]),
}


class Choice(NamedTuple):
    """What is to be chosen."""

    part: float
    layout: Views
    score: Score
    prototypes: Prototypes

    @property
    def passes(self) -> int:
        """Of the encoder, for an image that is scored."""
        return len(layouts(self.part)[self.layout])

    @property
    def training_passes(self) -> int:
        """Of the encoder, for a training image."""
        return 1 if self.prototypes == "whole" else self.passes


PARTS = (0.5, 0.6, 0.75)
BOXES: dict[float, tuple[Box, ...]] = {1.0: (WHOLE,), **{part: layouts(part)["whole+centre+corners"] for part in PARTS}}
ONE_VIEW = Choice(1.0, "whole", "smallest", "whole")
CHOICES = [
    ONE_VIEW,
    *(Choice(*values) for values in product(PARTS, get_args(Views)[1:], get_args(Score), get_args(Prototypes))),
]


class Cell(NamedTuple):
    """Images, and which are normal."""

    group: str
    name: str
    train: AnomalibDataset
    test: AnomalibDataset
    num_categories: int

    @property
    def files(self) -> set[str]:
        """All images."""
        return {*self.train.samples.image_path, *self.test.samples.image_path}


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Those of the data sets that are given."""
    for group, (name, setting, categories) in CELLS.items():
        root = getattr(arguments, name)
        for category in categories if root else ():
            drawn = {"max_train_images": TRAIN_IMAGES, "num_workers": 0, "seed": arguments.seed}
            data = DATA[name](root, category=category, setting=setting, **drawn)
            data.prepare_data()
            data.setup()
            number = len(data.test_data)  # sorted by file, and those of a category lie in one folder
            rows = torch.linspace(0, number - 1, min(number, TEST_IMAGES)).round().long().tolist()
            test = data.test_data.subsample(rows)
            yield Cell(group, data.category, data.train_data, test, data.num_normal_categories)


class Features:
    """What the encoder makes of images in all views of all sizes; a file that it has seen is not read again."""

    def __init__(self, model: ObjectPrototypesModel, config: DataConfig) -> None:
        self._model = model
        self._prepare = {
            part: ResizeNormalize(needed_size(model.image_size, boxes), config.mean, config.std)
            for part, boxes in BOXES.items()
        }
        self._known: dict[str, Seen] = {}

    def of(self, dataset: AnomalibDataset) -> Seen:
        """All images of a data set."""
        paths = list(dataset.samples.image_path)
        rows = [row for row, path in enumerate(paths) if path not in self._known]
        for items in DataLoader(dataset, batch_size=32, sampler=rows, collate_fn=list):
            seen = self._look([item.image for item in items])
            for index, item in enumerate(items):
                self._known[item.image_path] = {part: features[index] for part, features in seen.items()}
        return {part: torch.stack([self._known[path][part] for path in paths]) for part in BOXES}

    @torch.inference_mode()
    def _look(self, images: list[Tensor]) -> Seen:
        seen = {}
        for part, boxes in BOXES.items():
            resized = torch.stack([self._prepare[part].transform(image) for image in images])
            with torch.autocast("cpu", torch.bfloat16):
                views = [self._model.features(cut(resized, box, self._model.image_size)) for box in boxes]
            seen[part] = torch.stack(views, dim=1)
        return seen

    def seconds(self, dataset: AnomalibDataset) -> float:
        """What an image takes, measured on the second half of at most 32."""
        half = min(32, len(dataset)) // 2
        self.of(dataset.subsample(list(range(half))))
        start = perf_counter()
        self.of(dataset.subsample(list(range(half, 2 * half))))
        return (perf_counter() - start) / half

    def missing(self, measured: list[Cell]) -> int:
        """How many images of cells have not been seen."""
        return len(set().union(*(cell.files for cell in measured)) - self._known.keys())


def fitted(features: Tensor, number: int) -> Clusters:
    """At most ``number`` prototypes of features [M, D]."""
    clusters = Clusters(features.shape[1], number)
    clusters.fit(features)
    return clusters


def distances(clusters: Clusters, views: Tensor) -> Tensor:
    """Of each view [M, V, D]: [M, V]."""
    return torch.stack([clusters(view) for view in views.unbind(dim=1)], dim=1)


def prototypes(train: Tensor, of: Prototypes, number: int) -> Clusters:
    """At most ``number`` prototypes of training images in several views [M, V, D], the whole image first."""
    if of == "all":
        return fitted(train.flatten(0, 1), number)
    clusters = fitted(train[:, 0], number)
    if of == "nearest":
        nearest = distances(clusters, train).argmin(dim=1)
        clusters = fitted(train[torch.arange(len(train)), nearest], number)
    return clusters


def scored(found: Tensor, score: Score) -> Tensor:
    """Scores [M] from the views' distances [M, V], the whole image's first."""
    smallest = found.amin(dim=1)
    return smallest if score == "smallest" else smallest + found[:, 0]


def scores(choice: Choice, train: Seen, test: Seen, number: int) -> Tensor:
    """What a choice makes of the test images, with at most ``number`` prototypes."""
    boxes = BOXES[choice.part]
    views = [boxes.index(box) for box in layouts(choice.part)[choice.layout]]
    clusters = prototypes(train[choice.part][:, views], choice.prototypes, number)
    return scored(distances(clusters, test[choice.part][:, views]), choice.score)


def aurocs(features: Features, cell: Cell) -> dict[Choice, float]:
    """Of each choice."""
    train, test = features.of(cell.train), features.of(cell.test)
    labels, number = cell.test.samples.label_index.tolist(), PER_CATEGORY * cell.num_categories
    return {c: float(roc_auc_score(labels, scores(c, train, test, number).numpy())) for c in CHOICES}


def choose(gains: dict[Choice, list[float]]) -> Choice:
    """What the rule makes of each choice's mean gains over one view in the groups."""
    means = {choice: fmean(values) for choice, values in gains.items() if min(values) >= 0}  # one view is among them
    best = max(means.values())
    equal = [choice for choice, mean in means.items() if best - mean < EQUAL]
    return min(equal, key=lambda choice: (choice.passes, choice.training_passes, -means[choice]))


def row(*columns: object) -> str:
    """Of a table."""
    return f"| {' | '.join(map(str, columns))} |"


def show(groups: dict[str, list[dict[Choice, float]]]) -> None:
    """Print a row for each choice, and what the rule chooses."""
    means = [{choice: fmean(cell[choice] for cell in cells) for choice in CHOICES} for cells in groups.values()]
    gains = {choice: [values[choice] - values[ONE_VIEW] for values in means] for choice in CHOICES}
    print("\n" + row("part", "layout", "score", "prototypes of", "passes", *groups, "mean"))
    print("|---" * (len(groups) + 6) + "|")
    print(row("", "whole", "", "whole", 1, *(f"{values[ONE_VIEW]:.3f}" for values in means), ""))
    for choice in CHOICES[1:]:
        columns = (f"{gain:+.3f}" for gain in gains[choice])
        print(row(*choice, choice.passes, *columns, f"{fmean(gains[choice]):+.4f}"))
    print(f"\nChosen: {', '.join(map(str, choose(gains)))}")


def main() -> None:
    """Measure every cell, print a row for each choice, and choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm encoder")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--voc", help="Pascal VOC 2012")
    parser.add_argument("--cifar10", help="CIFAR-10")
    parser.add_argument("--fashion-mnist", help="Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    config = data_config(arguments.backbone)
    model = ObjectPrototypesModel(arguments.backbone, config.image_size, views="whole")
    load_weights(model.encoder, arguments.weights)
    features = Features(model, config)
    measured = list(cells(arguments))
    if not measured:
        parser.error("give one of --voc, --cifar10 and --fashion-mnist")
    files, seconds = features.missing(measured), features.seconds(measured[0].train)
    views = sum(map(len, BOXES.values()))
    print(f"{len(measured)} cells, {files} images in {views} views: {files * seconds / 60:.0f} minutes", flush=True)
    groups: dict[str, list[dict[Choice, float]]] = defaultdict(list)
    for number, cell in enumerate(measured, start=1):
        found = aurocs(features, cell)
        groups[cell.group].append(found)
        left = f"{number} of {len(measured)}, {features.missing(measured) * seconds / 60:.0f} minutes left"
        print(f"{cell.group}: {cell.name}, one view {found[ONE_VIEW]:.3f} ({left})", flush=True)
    show(groups)


if __name__ == "__main__":
    main()
