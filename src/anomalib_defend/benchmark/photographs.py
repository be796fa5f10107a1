"""Defend on real photographs, beside a nearest-neighbour search with the same encoder.

``python -m anomalib_defend.benchmark.photographs --root VOC2012 --backbone deit_tiny_patch16_224 --weights FILE``

Every cell runs in a process of its own, so that its peak memory is its own, and appends one line to ``--out``; cells
that stand there already are not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from anomalib_defend.benchmark.runs import Cell, run_missing, table


def make_cells(arguments: argparse.Namespace) -> list[Cell]:
    """The table's cells, quick ones first."""
    common: Cell = {
        key: getattr(arguments, key) for key in ("root", "backbone", "weights", "setting", "distill_epochs")
    }
    cells = []
    for seed in arguments.seeds:
        base = {**common, "teacher": "pretrained", "seed": seed}
        none = {"dense_epochs": None, "student_lr": None}
        cells += [
            {**base, "category": name, "method": method, **none}
            for method in ("CLS 2-NN", "mean-patch 2-NN")
            for name in arguments.categories
        ]
        cells += [
            {**base, "category": name, "method": "Defend", "dense_epochs": dense, "student_lr": rate}
            for rate in arguments.student_lr
            for name in arguments.categories
            for dense in arguments.dense_epochs
        ]
    return cells


def main() -> None:
    """Run the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="Pascal VOC 2012 (VOC2012, VOCdevkit or its parent)")
    parser.add_argument("--backbone", default="deit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--weights", required=True, help="its weights, .safetensors or .pth")
    parser.add_argument("--categories", nargs="+", default=["horse", "cat", "dog"])
    parser.add_argument("--setting", default="uni_class", choices=["uni_class", "leave_one_out"])
    parser.add_argument("--dense-epochs", nargs="+", type=int, default=[0, 3])
    parser.add_argument("--distill-epochs", type=int, default=10)
    parser.add_argument("--student-lr", nargs="+", type=float, default=[1e-5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/photographs.jsonl"), help="results, one line a cell")
    arguments = parser.parse_args()
    print(table(run_missing(make_cells(arguments), arguments.out)))


if __name__ == "__main__":
    main()
