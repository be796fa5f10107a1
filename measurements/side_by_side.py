"""Images made of a normal and a novel one side by side: how many does `ObjectPrototypes` call normal?

``python -m measurements.side_by_side --weights FILE --voc VOC2012``

The normal object is there, so each should be called normal; images made of two novel ones, beside them, should
not. One model with all views: a layout takes the smallest of its own views' scores, and the threshold that
those of the validation images set (``target_fpr`` 0.05). The halves are test images, cropped to squares.
"""

from __future__ import annotations

import argparse
from tempfile import TemporaryDirectory

import numpy as np
import torch
from anomalib.engine import Engine
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop, resize

from anomalib_defend import ObjectPrototypes, SemanticVOC
from anomalib_defend.data import SemanticDataModule
from anomalib_defend.decision.conformal import p_values
from anomalib_defend.models.object_prototypes.torch_model import ObjectPrototypesModel
from anomalib_defend.nn.views import LAYOUTS

TARGET_FPR = 0.05
SIDE = 480  # of a half: no part of the joined image is enlarged more than the photographs themselves


def square(image: Tensor) -> Tensor:
    """The middle of an image [3, H, W] as a square [3, SIDE, SIDE]."""
    return resize(center_crop(image, [min(image.shape[-2:])] * 2), [SIDE, SIDE], antialias=True)


@torch.inference_mode()
def distances(model: ObjectPrototypes, images: Tensor) -> Tensor:
    """Of each view of images [B, 3, H, W], [B, V]."""
    return model.model.distances(model.pre_processor(images))


def joined(model: ObjectPrototypes, lefts: list[Tensor], rights: list[Tensor]) -> Tensor:
    """Distances [M, V] of pairs side by side, every other one with its halves changed over."""
    rows = []
    for number, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        halves = (left, right) if number % 2 else (right, left)
        rows.append(distances(model, torch.cat([square(half) for half in halves], dim=-1)[None]))
    return torch.cat(rows)


def single(model: ObjectPrototypes, images: list[Tensor]) -> Tensor:
    """Distances [M, V] of images as they are."""
    return torch.cat([distances(model, image[None]) for image in images])


def best(found: Tensor) -> NDArray[np.float32]:
    """Scores [M] of images from their views' distances [M, V]."""
    scores: NDArray[np.float32] = ObjectPrototypesModel.scores(found).amin(dim=1).numpy()
    return scores


def read(data: SemanticDataModule, label: int, first: int, number: int) -> list[Tensor]:
    """Test images of a label, from the ``first`` on."""
    rows = data.test_data.samples.index[data.test_data.samples.label_index == label][first : first + number]
    return [item.image for item in DataLoader(data.test_data, sampler=rows.tolist(), batch_size=None, collate_fn=None)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm encoder")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--voc", required=True, help="Pascal VOC 2012")
    parser.add_argument("--categories", nargs="+", default=["cat", "dog"])
    parser.add_argument("--pairs", type=int, default=100, help="of each kind and category")
    arguments = parser.parse_args()

    print(
        "| normal | layout | normal and novel: called normal | two novel: called normal | novel alone: called normal |"
    )
    print("|---|---|---|---|---|")
    for category in arguments.categories:
        data = SemanticVOC(arguments.voc, category=category, num_workers=0, seed=0)
        model = ObjectPrototypes(arguments.backbone, weights=arguments.weights, views="whole+centre+corners")
        with TemporaryDirectory() as folder:
            Engine(accelerator="cpu", default_root_dir=folder, logger=False).fit(model, datamodule=data)
        model.eval()
        validation = single(model, [item.image for item in data.val_data])
        normal, novel = read(data, 0, 0, arguments.pairs), read(data, 1, 0, 2 * arguments.pairs)
        number = min(len(normal), len(novel) // 2)
        kinds = [
            joined(model, normal[:number], novel[:number]),
            joined(model, novel[number : 2 * number], novel[:number]),
            single(model, novel[:number]),
        ]
        boxes = list(LAYOUTS["whole+centre+corners"])
        for layout, chosen in LAYOUTS.items():
            views = [boxes.index(box) for box in chosen]
            calibration = best(validation[:, views])
            shares = [(p_values(best(kind[:, views]), calibration) > TARGET_FPR).mean() for kind in kinds]
            print(f"| {category} | {layout} | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
