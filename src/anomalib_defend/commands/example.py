"""``anomalib-defend example``: write the embedded example, and say how to train on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser, Namespace

BACKBONE = "vit_digits_patch8_96"  # its weights are in the package


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--root", type=str, required=True, help="folder that receives VOC2012")
    parser.add_argument("--category", type=str, default="three", help="the normal digit, zero to nine")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same scenes")


def run(options: Namespace) -> int:
    """Write the scenes; what is there already stays."""
    from anomalib_defend.example.scenes import write_voc  # noqa: PLC0415 - scikit-learn
    from anomalib_defend.files.names import to_text  # noqa: PLC0415 - torchvision

    folder, category = write_voc(options.root, normal=options.category, seed=options.seed), options.category
    written = to_text(str(folder))
    print(f"{_count(folder, category, 'train')} to train on, {_count(folder, category, 'val')} to test on")
    print(f"written to {written}. Train on them with:\n")
    print(f"anomalib train --model Defend --model.backbone {BACKBONE} \\")
    print(f"    --data SemanticVOC --data.root {written} --data.category {category} --data.setting uni_class")
    return 0


def _count(folder: Path, category: str, split: str) -> str:
    """Count a split's scenes, and those that hold the category."""
    flags = (folder / "ImageSets" / "Main" / f"{category}_{split}.txt").read_text().split()[1::2]
    return f"{len(flags)} scenes ({flags.count('1')} with {category!r})"
