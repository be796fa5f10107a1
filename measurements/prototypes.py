"""How the constants of `nn.normality.Clusters` were chosen: on categories that no table of the results shows.

``python -m measurements.prototypes --weights FILE --voc VOC2012 --cifar10 CIFAR10 --fashion-mnist FOLDER``

Prints, for each group of categories, the mean image AUROC of the nearest-neighbour search (DN2) and what each choice
adds to it, all from the same [CLS] features. Where several categories are normal, a second column takes them for one:
the user's category may be of several kinds, too. Chosen is the best mean over the columns and, among choices less than
0.001 apart, the one that is behind the search in the fewest of them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import product

import torch
from anomalib.data import AnomalibDataset
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_defend.data import SemanticCIFAR10, SemanticDataModule, SemanticFashionMNIST, SemanticVOC
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.models.dn2.torch_model import DN2Model
from anomalib_defend.nn.encoder import data_config
from anomalib_defend.nn.normality import Clusters
from anomalib_defend.nn.normality.neighbors import neighbor_distance
from anomalib_defend.pre_processing import ResizeNormalize

PER_CATEGORY = (1, 3, 5, 10)
SHRINKAGE = (0.5, 0.75, 0.9, 0.97, 1.0)

Choice = tuple[int, float]


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, SemanticDataModule]]:
    """Name of the group, and data of one cell."""
    limits = {"max_train_images": 300, "max_test_images": 500, "num_workers": 0, "seed": arguments.seed}
    if arguments.voc:
        for name in ("sheep", "person"):
            yield "VOC uni-class", SemanticVOC(arguments.voc, category=name, setting="uni_class", **limits)
        for name in ("sheep", "horse", "cat", "cow"):
            yield "VOC leave-one-out", SemanticVOC(arguments.voc, category=name, setting="leave_one_out", **limits)
    if arguments.cifar10:
        for name in ("automobile", "bird", "deer", "dog", "frog", "horse", "truck"):
            yield "CIFAR-10 uni-class", SemanticCIFAR10(arguments.cifar10, category=name, **limits)
        for split in ("56789", "02468", "13579"):
            yield (
                "CIFAR-10 splits",
                SemanticCIFAR10(arguments.cifar10, category=[int(digit) for digit in split], **limits),
            )
        for name in ("automobile", "bird", "deer"):
            data = SemanticCIFAR10(arguments.cifar10, category=name, setting="leave_one_out", **limits)
            yield "CIFAR-10 leave-one-out", data
    if arguments.fashion_mnist:
        for number in (1, 2, 3, 5, 6, 8):
            yield "Fashion-MNIST uni-class", SemanticFashionMNIST(arguments.fashion_mnist, category=number, **limits)
        for number in (1, 2, 3):
            data = SemanticFashionMNIST(arguments.fashion_mnist, category=number, setting="leave_one_out", **limits)
            yield "Fashion-MNIST leave-one-out", data


@torch.inference_mode()
def features(model: DN2Model, dataset: AnomalibDataset, prepare: ResizeNormalize) -> Tensor:
    """[CLS] on the unit sphere of every image, [M, D]."""
    loader = DataLoader(dataset, batch_size=32, collate_fn=lambda items: [prepare.transform(i.image) for i in items])
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([model.encode(torch.stack(images)) for images in loader])


def aurocs(normal: Tensor, images: Tensor, labels: list[int], categories: int) -> dict[Choice | None, float]:
    """AUROC of DN2 (``None``) and of each choice."""
    scores: dict[Choice | None, Tensor] = {None: neighbor_distance(images, normal, 2)}
    for per_category, shrinkage in product(PER_CATEGORY, SHRINKAGE):
        clusters = Clusters(normal.shape[1], per_category * categories, shrinkage)
        clusters.fit(normal)
        scores[per_category, shrinkage] = clusters(images)
    return {choice: float(roc_auc_score(labels, score.numpy())) for choice, score in scores.items()}


def main() -> None:
    """Measure every cell, and print a row for each choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--voc", help="Pascal VOC 2012")
    parser.add_argument("--cifar10", help="CIFAR-10")
    parser.add_argument("--fashion-mnist", help="Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    config = data_config(arguments.backbone)
    model = DN2Model(arguments.backbone, config.image_size)
    load_weights(model.encoder, arguments.weights)
    prepare = ResizeNormalize(*config)
    groups: dict[str, list[dict[Choice | None, float]]] = defaultdict(list)
    for name, data in cells(arguments):
        data.setup()
        labels = data.test_data.samples.label_index.tolist()
        train, test = (features(model, part, prepare) for part in (data.train_data, data.test_data))
        groups[name].append(aurocs(train, test, labels, data.num_normal_categories))
        if data.num_normal_categories > 1:
            groups[f"{name}, as one"].append(aurocs(train, test, labels, 1))
        print(f"{name}: {data.category}, DN2 {groups[name][-1][None]:.3f}", flush=True)

    def mean(name: str, choice: Choice | None) -> float:
        return sum(cell[choice] for cell in groups[name]) / len(groups[name])

    print(f"\n| clusters a category | shrinkage | {' | '.join(groups)} | mean | behind |")
    print("|---" * (len(groups) + 4) + "|")
    print(f"| DN2 | | {' | '.join(f'{mean(name, None):.3f}' for name in groups)} | | |")
    for choice in product(PER_CATEGORY, SHRINKAGE):
        gains = [mean(name, choice) - mean(name, None) for name in groups]
        summary = (f"{sum(gains) / len(gains):+.4f}", str(sum(gain < 0 for gain in gains)))
        columns = [*map(str, choice), *(f"{gain:+.3f}" for gain in gains), *summary]
        print(f"| {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
