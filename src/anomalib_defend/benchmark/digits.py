"""Defend on the embedded example over several seeds, with the shipped and with a random teacher.

``python -m anomalib_defend.benchmark.digits``

The settings are those of ``configs/quickstart.yaml``; only seed and teacher change.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from anomalib_defend.benchmark.runs import Cell, run_missing, table
from anomalib_defend.example.scenes import write_voc
from anomalib_defend.nn.digits_vit import MODEL_NAME


def make_cells(root: Path, seeds: list[int], student_lr: float, dense_epochs: int, distill_epochs: int) -> list[Cell]:
    """The yardstick, then each seed with both teachers."""
    base: Cell = {
        "root": str(root), "category": "three", "setting": "uni_class", "backbone": MODEL_NAME, "weights": None,
        "distill_epochs": distill_epochs,
    }  # fmt: skip
    none = {"dense_epochs": None, "student_lr": None, "seed": 0}
    ours = {"method": "Defend", "dense_epochs": dense_epochs, "student_lr": student_lr}
    return [{**base, "method": "CLS 2-NN", "teacher": "pretrained", **none}] + [
        {**base, **ours, "teacher": teacher, "seed": seed} for teacher in ("pretrained", "random") for seed in seeds
    ]


def main() -> None:
    """Run the missing cells; print the table, and median and spread over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--student-lr", type=float, default=1e-3)
    parser.add_argument("--dense-epochs", type=int, default=1)
    parser.add_argument("--distill-epochs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/digits.jsonl"), help="results, one line a cell")
    arguments = parser.parse_args()
    root = write_voc(arguments.out.parent / "digits", normal="three")
    cells = make_cells(root, arguments.seeds, arguments.student_lr, arguments.dense_epochs, arguments.distill_epochs)
    results = run_missing(cells, arguments.out)
    print(table(results))
    for teacher in ("pretrained", "random"):
        values = [row["auroc"] for row in results if row["method"] == "Defend" and row["teacher"] == teacher]
        print(
            f"{teacher} teacher: median {statistics.median(values):.3f}, "
            f"from {min(values):.3f} to {max(values):.3f} over {len(values)} seeds"
        )


if __name__ == "__main__":
    main()
