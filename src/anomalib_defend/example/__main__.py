"""Write the embedded example: ``python -m anomalib_defend.example --root DIR``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomalib_defend.example.encoder import MODEL_NAME
from anomalib_defend.example.scenes import CATEGORIES, write_voc


def main(argv: Sequence[str] | None = None) -> None:
    """Write the scenes and say how to train on them."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_defend.example",
        description="Write multi-object scenes of handwritten digits in Pascal VOC layout.",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that receives VOC2012")
    parser.add_argument("--category", choices=CATEGORIES, default="three", help="the normal digit")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same scenes")
    args = parser.parse_args(argv)
    folder = write_voc(args.root, normal=args.category, seed=args.seed)
    print(f"{_count(folder, args.category, 'train')} to train on, {_count(folder, args.category, 'val')} to test on")
    print(f"written to {folder}. Train on them with:\n")
    print(f"anomalib train --model Defend --model.backbone {MODEL_NAME} \\")
    print(f"    --data SemanticVOC --data.root {folder} --data.category {args.category} --data.setting uni_class")


def _count(folder: Path, category: str, split: str) -> str:
    """Count a split's scenes, and those that hold the category."""
    flags = (folder / "ImageSets" / "Main" / f"{category}_{split}.txt").read_text().split()[1::2]
    return f"{len(flags)} scenes ({flags.count('1')} with {category!r})"


if __name__ == "__main__":
    main()
