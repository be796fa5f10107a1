"""The loops of docs/deployment.md over the same files: one image after the other, and batches with decoding in threads.

``python -m measurements.deployment --xml model.xml --images FOLDER``
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
HINTS: dict[str, dict[str, str]] = {
    "f32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "its default": {},
}


def of_the_page() -> dict[str, Any]:
    """``read`` and ``score_all``, as they stand on the page."""
    blocks = re.findall("```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "def score_all" in block)
    names: dict[str, Any] = {}
    exec(code[: code.index("\npaths = ")], names)  # noqa: S102 - ours
    return names


def one_by_one(
    read: Callable[[Path], np.ndarray], model: Path, paths: list[Path], config: dict[str, str]
) -> list[float]:
    """Read, score, next."""
    import openvino  # noqa: PLC0415 - optional extra

    compiled = openvino.Core().compile_model(model, "CPU", config)
    return [float(compiled(read(path)[None])["pred_score"].item()) for path in paths]


def inferencer(model: Path, paths: list[Path], config: dict[str, str]) -> list[float]:
    """Let anomalib read and score files, one after the other."""
    from anomalib.deploy import OpenVINOInferencer  # noqa: PLC0415 - torch

    predict = OpenVINOInferencer(model, device="CPU", config={**config, "CACHE_DIR": ""}).predict
    return [float(predict(str(path)).pred_score.item()) for path in paths]


def compare(xml: Path, paths: list[Path], config: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """Take turns, and report medians.

    Returns:
        Per loop: images a second, times as many as one by one, and the largest difference to its scores.
    """
    page = of_the_page()
    loops: dict[str, Callable[[], list[float]]] = {
        "one by one": partial(one_by_one, page["read"], xml, paths, config),
        "anomalib's OpenVINOInferencer": partial(inferencer, xml, paths, config),
        "batches of 16, decoding in threads": partial(page["score_all"], xml, paths, config=config),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    scores = {}
    for _ in range(rounds):
        for name, loop in loops.items():
            start = time.perf_counter()
            scores[name] = np.array(loop())
            seconds[name].append(time.perf_counter() - start)
    rate = {name: len(paths) / statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "loop": name,
            "images a second": round(rate[name], 1),
            "times": round(rate[name] / rate["one by one"], 2),
            "largest difference": float(np.abs(scores[name] - scores["one by one"]).max()),
        }
        for name in loops
    ]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xml", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of .jpg files")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hints", nargs="+", default=["f32"], choices=list(HINTS))
    options = parser.parse_args()
    paths = sorted(options.images.rglob("*.jpg"))[: options.count]
    for hint in options.hints:
        for row in compare(options.xml, paths, HINTS[hint], options.rounds):
            print(hint, row)


if __name__ == "__main__":
    main()
