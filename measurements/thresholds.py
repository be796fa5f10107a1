"""What thresholds, p-values and selections promised and kept on photographs: prints tables of docs/reliability.md.

``python -m measurements.thresholds SHARED``: nearest neighbours (`DN2`) on DeiT-Tiny's features, 300 photographs in the
memory; validation and test photographs are drawn again and again from those that are not.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anomalib.data.utils import read_image

from anomalib_defend import DN2
from anomalib_defend.decision import Calibration, Level, least_fdr, p_values, select
from anomalib_defend.decision.calibration import threshold_and_scale
from anomalib_defend.models.components.encoder_weights import load_weights

MEMORY, TEST = 300, 300
DRAWS = 200
LISTS = "VOC2012/ImageSets/Main/{}_trainval.txt"


class Pool(NamedTuple):
    """Scores of photographs that trained nothing."""

    normal: np.ndarray
    novel: np.ndarray


@torch.inference_mode()
def score(shared: Path, category: str) -> Pool:
    """Score all photographs of a category that are not in the memory, and 300 of others."""
    model = DN2("deit_tiny_patch16_224", pre_trained=False)
    load_weights(model.model.encoder, str(shared / "weights" / "deit_tiny_patch16_224.fp16.safetensors"))
    model.eval()
    with zipfile.ZipFile(shared / "data" / "voc2012_animals.zip") as archive, tempfile.TemporaryDirectory() as folder:
        archive.extractall(folder)
        root = Path(folder)
        pairs = [line.split() for line in (root / LISTS.format(category)).read_text().splitlines()]
        order = np.random.default_rng(0).permutation(len(pairs))
        names = {flag: [pairs[index][0] for index in order if pairs[index][1] == flag] for flag in ("1", "-1")}
        chosen = names["1"] + names["-1"][:TEST]
        files = [root / "VOC2012" / "JPEGImages" / f"{name}.jpg" for name in chosen]
        features = torch.cat(
            [
                model.model.encode(
                    torch.stack(
                        [
                            model.pre_processor.transform(torch.as_tensor(read_image(file, as_tensor=True)))
                            for file in files[start : start + 32]
                        ]
                    )
                )
                for start in range(0, len(files), 32)
            ]
        )
    model.model.normality.fit(features[:MEMORY])
    scores = model.model.normality(features[MEMORY:]).numpy()
    normal = len(names["1"]) - MEMORY
    return Pool(scores[:normal], scores[normal:])


def false_alarms(pool: Pool, count: int, target_fpr: float) -> str:
    """A table's row: what was promised of 300 normal photographs, and what 200 draws kept."""
    rng, rates = np.random.default_rng(1), []
    for _ in range(DRAWS):
        drawn = rng.permutation(pool.normal)
        threshold, _ = threshold_and_scale(drawn[:count], 0.0, target_fpr)
        rates.append((drawn[count : count + TEST] > threshold).mean())
    threshold, scale = threshold_and_scale(drawn[:count], 0.0, target_fpr)
    level = Level(float(threshold), float(scale), 0.0, tuple(drawn[:count].tolist()))
    expected = Calibration(target_fpr, level).expected_count(TEST)
    low, high = np.quantile(rates, [0.025, 0.975])
    inside = np.mean([expected.low <= round(rate * TEST) <= expected.high for rate in rates])
    return (
        f"{count} | {target_fpr} | {expected.mean / TEST:.3f}, {expected.low / TEST:.3f} to {expected.high / TEST:.3f} "
        f"| {np.mean(rates):.3f}, {low:.3f} to {high:.3f} | {inside:.0%}"
    )


def validity(pool: Pool, count: int) -> str:
    """A table's row: the most by which the share of normal photographs with p <= t exceeds t, over every t."""
    rng, shares = np.random.default_rng(3), []
    levels = np.arange(1, count + 1) / (count + 1)
    for _ in range(DRAWS):
        drawn = rng.permutation(pool.normal)
        values = p_values(drawn[count : count + TEST], drawn[:count])
        shares.append((values[:, None] <= levels + 1e-9).mean(axis=0))
    excess = np.mean(shares, axis=0) - levels
    worst = int(excess.argmax())
    error = np.std(shares, axis=0)[worst] / np.sqrt(DRAWS)
    return f"{count} | {excess[worst]:+.3f} ± {error:.3f}, at t = {levels[worst]:.2f}"


def discoveries(pool: Pool, count: int, target_fdr: float, normal: int = 140, novel: int = 60) -> str:
    """A table's row: the share of normal photographs among the selected, and the share of novel ones found."""
    rng, wrong, found = np.random.default_rng(2), [], []
    for _ in range(DRAWS):
        drawn, others = rng.permutation(pool.normal), rng.permutation(pool.novel)[:novel]
        values = p_values(np.concatenate([drawn[count : count + normal], others]), drawn[:count])
        chosen = select(values, target_fdr)
        wrong.append(chosen[:normal].sum() / max(chosen.sum(), 1))
        found.append(chosen[normal:].mean())
    error = np.std(wrong) / np.sqrt(DRAWS)
    return f"{count} | {target_fdr} | {np.mean(wrong):.3f} ± {error:.3f} | {np.mean(found):.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--categories", nargs="+", default=["dog", "cat"])
    arguments = parser.parse_args()
    pools = {category: score(arguments.shared, category) for category in arguments.categories}
    for category, pool in pools.items():
        print(f"{category}: {len(pool.normal)} normal and {len(pool.novel)} novel photographs")
    print("\n| | validation images | target_fpr | promised: mean, 95 % | kept: mean, 95 % | draws inside |")
    print("|---|---|---|---|---|---|")
    for category, pool in pools.items():
        for count in (19, 45, 100, 300):
            for target in (0.05, 0.1):
                print(f"| {category} | {false_alarms(pool, count, target)} |")
    print("\n| | validation images | P(p <= t) - t, at most |\n|---|---|---|")
    for category, pool in pools.items():
        for count in (19, 45, 100, 300):
            print(f"| {category} | {validity(pool, count)} |")
    print("\n| | validation images | target_fdr | normal among the selected | novel found |\n|---|---|---|---|---|")
    for category, pool in pools.items():
        for count in (45, 100, 300):
            for target in (0.1, 0.2, 0.3):
                print(f"| {category} | {discoveries(pool, count, target)} |")
    print("\n| validation images | 1 % | 5 % | 30 % of the images novel |\n|---|---|---|---|")
    for count in (19, 45, 100, 300, 1000):
        cells = [min(1.0, least_fdr(count, share)) for share in (0.01, 0.05, 0.3)]
        print(f"| {count} | {' | '.join('none' if cell >= 1 else f'{cell:.3f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
