"""Which block's [CLS] attention knows the object, and whether the training images alone say so.

``python -m measurements.attention_block --weights FILE --voc VOC2012 --cifar10 CIFAR10``

For each category and block: the image AUROC of a 2-NN search on the mean of the patch tokens, weighted by the block's
[CLS] attention (the last block's tokens, which `Defend` compares; and the block's own), and what some criteria make of
the training images, each of which picks a block:

- ``kept half``, ``kept quarter``: the encoder sees the most attended half or quarter of the patches alone; how near its
  [CLS] then is to that of the whole image (mean cosine), the higher the better.
- ``agreement``: how much the weighted means differ between images as [CLS] does (linear CKA), the higher the better.
- ``nearness``: mean cosine of the weighted mean and [CLS], the higher the better.
- ``compactness``: distance of the weighted means to their nearest two, over that of the plain means, the lower the
  better.

Written before the first run: chosen is the criterion whose picks lose least to the best block, in the mean over the
cells of the ``selection``, which no table shows. It is a rule if, in each of the ``other`` cells, its pick is at least
as good as the last block and, in their mean, loses at most 0.02 to the best. The ``fresh`` cells were added after that
run, for a criterion that the selection had not chosen: see docs/measurements.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from anomalib.data import AnomalibDataset
from sklearn.metrics import roc_auc_score
from timm.models import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_defend.data import SemanticCIFAR10, SemanticDataModule, SemanticVOC
from anomalib_defend.models.components.encoder_weights import load_weights
from anomalib_defend.nn import vit as vits
from anomalib_defend.nn.encoder import data_config
from anomalib_defend.nn.normality.neighbors import neighbor_distance
from anomalib_defend.pre_processing import ResizeNormalize

KEPT = {"kept half": 0.5, "kept quarter": 0.25}
LOWER_IS_BETTER = ("compactness",)
KEPT_IMAGES = 24  # of the training images, whose patches are taken away
CELLS: dict[str, dict[str, tuple[str, ...]]] = {
    "selection": {"VOC": ("sheep", "person"), "CIFAR-10": ()},
    "other": {"VOC": ("dog", "cat", "horse", "cow"), "CIFAR-10": ()},
    "fresh": {"VOC": ("dog+horse", "cow+sheep"), "CIFAR-10": ("automobile", "deer")},
}


class Seen(NamedTuple):
    """What one pass makes of M images, L blocks."""

    cls: Tensor
    """[CLS], unit vectors [M, D]."""
    plain: Tensor
    """Mean of the last block's patch tokens [M, D]."""
    weighted: Tensor
    """The same, weighted with each block's attention [M, L, D]."""
    own: Tensor
    """Each block's own tokens, weighted with its attention [M, L, D]."""
    attention: Tensor
    """[M, L, N]."""


def seen(vit: VisionTransformer, images: Tensor) -> Seen:
    """One pass over images [M, 3, H, W]."""
    with ExitStack() as hooks:
        outputs = [hooks.enter_context(vits.catch_output(block)) for block in vit.blocks]
        products = [hooks.enter_context(vits.catch_output(block.attn.qkv)) for block in vit.blocks]
        vits.patch_tokens(vit, images)
    tokens = [vit.fc_norm(vit.norm(output[0])) for output in outputs]
    rows = zip(vit.blocks, products, strict=True)
    attention = torch.stack([vits.cls_attention(vit, block, product[0]) for block, product in rows], dim=1)
    shares = attention / attention.sum(dim=-1, keepdim=True)
    patches = torch.stack(tokens, dim=1)[:, :, vit.num_prefix_tokens :]
    weighted = shares @ patches[:, -1]
    own = (shares.unsqueeze(2) @ patches).squeeze(2)
    return Seen(F.normalize(tokens[-1][:, 0], dim=-1), patches[:, -1].mean(dim=1), weighted, own, attention)


def kept(vit: VisionTransformer, images: Tensor, attention: Tensor, share: float) -> Tensor:
    """[CLS] of the most attended patches [M, N] alone, unit vectors [M, D]."""
    keep = attention.topk(round(share * attention.shape[1]), dim=1).indices.sort(dim=1).values
    with vits.catch_output(vit.blocks[-1]) as last:
        vits.patch_tokens(vit, images, keep=keep)
    return F.normalize(vit.fc_norm(vit.norm(last[0]))[:, 0], dim=-1)


class Features:
    """Passes over data sets, each image of which is seen once."""

    def __init__(self, vit: VisionTransformer, prepare: ResizeNormalize) -> None:
        self._vit, self._prepare = vit, prepare
        self._known: dict[str, Seen] = {}

    def images(self, dataset: AnomalibDataset, rows: Iterable[int]) -> Iterable[tuple[list[str], Tensor]]:
        """Batches of files and prepared images."""
        loader = DataLoader(dataset, batch_size=32, sampler=list(rows), collate_fn=list)
        for items in loader:
            yield [item.image_path for item in items], torch.stack([self._prepare.transform(i.image) for i in items])

    def of(self, dataset: AnomalibDataset) -> Seen:
        """All images of a data set."""
        paths = list(dataset.samples.image_path)
        unknown = [row for row, path in enumerate(paths) if path not in self._known]
        for names, images in self.images(dataset, unknown):
            for name, *values in zip(names, *seen(self._vit, images), strict=True):
                self._known[name] = Seen(*values)
        return Seen(*(torch.stack(values) for values in zip(*(self._known[path] for path in paths), strict=True)))

    def nearness_of_kept(self, dataset: AnomalibDataset, share: float) -> Tensor:
        """Mean cosine [L] of [CLS] of the most attended patches and of all."""
        whole = self.of(dataset)
        rows = torch.linspace(0, len(dataset) - 1, min(KEPT_IMAGES, len(dataset))).round().long().tolist()
        near, first = torch.zeros(len(self._vit.blocks)), 0
        for names, images in self.images(dataset, rows):
            part = rows[first : first + len(names)]
            first += len(names)
            for block in range(len(near)):
                cls = kept(self._vit, images, whole.attention[part, block], share)
                near[block] += (cls * whole.cls[part]).sum() / len(rows)
        return near


def spread(features: Tensor) -> float:
    """Mean cosine distance of features [M, D] to the nearest two others."""
    similarities = F.normalize(features, dim=-1)
    similarities = similarities @ similarities.T
    similarities.fill_diagonal_(-1)
    return float(1 - similarities.topk(2, dim=1).values.mean())


def cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two features of the same images, [M, D] and [M, E]: 1 for equal differences."""
    first, second = first - first.mean(dim=0), second - second.mean(dim=0)
    return float((first.T @ second).square().sum() / ((first.T @ first).norm() * (second.T @ second).norm()))


def criteria(features: Features, train: AnomalibDataset) -> dict[str, list[float]]:
    """What each criterion makes of each block, from the training images alone."""
    known = features.of(train)
    weighted = [F.normalize(block, dim=-1) for block in known.weighted.unbind(dim=1)]
    return {
        **{name: features.nearness_of_kept(train, share).tolist() for name, share in KEPT.items()},
        "agreement": [cka(block, known.cls) for block in weighted],
        "nearness": [float((block * known.cls).sum(dim=1).mean()) for block in weighted],
        "compactness": [spread(block) / spread(known.plain) for block in weighted],
    }


def aurocs(train: Tensor, test: Tensor, labels: list[int]) -> list[float]:
    """Of a 2-NN search, for each block's features [M, L, D]."""
    blocks = zip(F.normalize(train, dim=-1).unbind(1), F.normalize(test, dim=-1).unbind(1), strict=True)
    return [float(roc_auc_score(labels, neighbor_distance(queries, memory, 2).numpy())) for memory, queries in blocks]


def pick(name: str, values: list[float]) -> int:
    """The block that a criterion picks, from 0."""
    return values.index((min if name in LOWER_IS_BETTER else max)(values))


def data_of(group: str, category: str, arguments: argparse.Namespace) -> SemanticDataModule:
    """Images of a cell."""
    limits = {
        "max_train_images": arguments.train_images,
        "max_test_images": arguments.test_images,
        "num_workers": 0,
        "seed": 0,
    }
    if group == "VOC":
        return SemanticVOC(arguments.voc, category=[*category.split("+")], setting="uni_class", **limits)
    return SemanticCIFAR10(arguments.cifar10, category=category, **limits)


def row(*columns: object) -> str:
    """Of a table."""
    return f"| {' | '.join(map(str, columns))} |"


class Measured(NamedTuple):
    """A cell."""

    name: str
    weighted: list[float]
    """AUROC of each block."""
    picks: dict[str, int]
    """The block that each criterion picks, from 0."""

    def lost(self, name: str) -> float:
        """What a pick loses to the best block."""
        return max(self.weighted) - self.weighted[self.picks[name]]


def measure(features: Features, data: SemanticDataModule, name: str) -> Measured:
    """Measure a cell and print its table."""
    data.setup()
    labels = data.test_data.samples.label_index.tolist()
    train, test = features.of(data.train_data), features.of(data.test_data)
    found = criteria(features, data.train_data)
    (cls,), (plain,) = (
        aurocs(normal.unsqueeze(1), images.unsqueeze(1), labels)
        for normal, images in ((train.cls, test.cls), (train.plain, test.plain))
    )
    weighted = aurocs(train.weighted, test.weighted, labels)
    table = {"AUROC": weighted, "AUROC, own tokens": aurocs(train.own, test.own, labels), **found}
    print(f"\n{name}: [CLS] {cls:.3f}, plain mean {plain:.3f}\n")
    print(row("block", *range(1, len(weighted) + 1)))
    print("|---" * (len(weighted) + 1) + "|")
    for line, values in table.items():
        print(row(line, *(f"{value:.3f}" for value in values)), flush=True)
    picks = {criterion: pick(criterion, values) for criterion, values in found.items()}
    return Measured(name, weighted, {**picks, "last block": len(weighted) - 1})


@torch.inference_mode()
def main() -> None:
    """Print a table for each cell, and what the criteria's picks lose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--voc", help="Pascal VOC 2012")
    parser.add_argument("--cifar10", help="CIFAR-10")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--train-images", type=int, default=150)
    parser.add_argument("--test-images", type=int, default=445)
    arguments = parser.parse_args()

    config = data_config(arguments.backbone)
    vit = vits.create_vit(arguments.backbone, config.image_size).eval()
    load_weights(vit, arguments.weights)
    features = Features(vit, ResizeNormalize(*config))
    given = [name for name, root in (("VOC", arguments.voc), ("CIFAR-10", arguments.cifar10)) if root]
    kinds: dict[str, list[Measured]] = {}
    for kind in arguments.cells:
        names = [(group, category) for group in given for category in CELLS[kind][group]]
        kinds[kind] = [measure(features, data_of(*name, arguments), " ".join(name)) for name in names]

    columns = list(next(iter(kinds.values()))[0].picks)
    print("\n" + row("cells", "category", "best block", *columns))
    print("|---" * (len(columns) + 3) + "|")
    for kind, measured in kinds.items():
        for cell in measured:
            best = cell.weighted.index(max(cell.weighted)) + 1
            picked = (f"{cell.picks[name] + 1}: -{cell.lost(name):.3f}" for name in columns)
            print(row(kind, cell.name, f"{best}: {max(cell.weighted):.3f}", *picked))
        means = (sum(cell.lost(name) for cell in measured) / len(measured) for name in columns)
        print(row(kind, "mean", "", *(f"-{mean:.3f}" for mean in means)))


if __name__ == "__main__":
    main()
