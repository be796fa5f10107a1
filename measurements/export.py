"""What export changes: raw scores and labels of OpenVINO models beside the engine's, on the same image files.

``python -m measurements.export --ckpt model.ckpt --root VOC2012 --category dog``
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from anomalib.data.utils import read_image
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from anomalib_defend.data import SemanticVOC
from anomalib_defend.models import Defend

F32 = {"INFERENCE_PRECISION_HINT": "f32"}
VARIANTS: dict[str, tuple[str | None, dict[str, str]]] = {
    "f32": (None, F32),
    "default hint": (None, {}),
    "int8 weights": ("int8", {}),
    "int8 PTQ": ("int8_ptq", {}),
}


class Scores(NamedTuple):
    """Raw scores and labels of the same files, in the same order."""

    raw: np.ndarray
    novel: np.ndarray


@torch.inference_mode()
def engine_scores(model: Defend, paths: list[str]) -> Scores:
    """Score files as the engine does: resized one by one, then normalised, then scored."""
    model.eval()
    results = []
    for path in paths:
        image = model.pre_processor.transform(read_image(path, as_tensor=True))
        results.append(model.post_processor(model.model(image[None])))
    return Scores(*(torch.cat([getattr(r, name) for r in results]).numpy() for name in ("pred_score", "pred_label")))


def openvino_scores(xml: Path, paths: list[str], config: dict[str, str]) -> Scores:
    """Score files with an exported model, which resizes and normalises by itself."""
    import openvino  # noqa: PLC0415 - optional extra

    compiled = openvino.Core().compile_model(xml, "CPU", config)
    results = [compiled(read_image(path, as_tensor=True)[None].numpy()) for path in paths]
    return Scores(*(np.concatenate([r[name].reshape(-1) for r in results]) for name in ("pred_score", "pred_label")))


def batch_difference(xml: Path, paths: list[str], config: dict[str, str]) -> float:
    """Largest difference between scores in a batch of 32 and one by one; files are cut to the smallest one's sides."""
    import openvino  # noqa: PLC0415 - optional extra

    compiled = openvino.Core().compile_model(xml, "CPU", config)
    images = [read_image(path, as_tensor=True).numpy() for path in paths[:32]]
    height, width = (min(image.shape[axis] for image in images) for axis in (1, 2))
    batch = np.stack([image[:, :height, :width] for image in images])
    together = np.array(compiled(batch)["pred_score"]).reshape(-1)
    alone = np.concatenate([np.array(compiled(image[None])["pred_score"]).reshape(-1) for image in batch])
    return float(np.abs(together - alone).max())


def compare(ckpt: Path, data: SemanticVOC, count: int, variants: list[str]) -> list[dict[str, Any]]:
    """Export the checkpoint in each variant and compare it with the engine on ``count`` test images.

    Returns:
        Per variant: largest difference of the raw score, share of labels that differ, rank correlation, AUROC, largest
        difference between scores of a batch and one by one.
    """
    model = Defend.load_from_checkpoint(ckpt, map_location="cpu")
    model.post_processor.enable_normalization = False  # raw scores, labels by the same threshold
    data.setup()
    samples = data.test_data.samples.sample(min(count, len(data.test_data)), random_state=0)
    paths, labels = list(samples.image_path), samples.label_index.to_numpy()
    engine = engine_scores(model, paths)
    rows = [{"variant": "engine", "auroc": roc_auc_score(labels, engine.raw)}]
    with tempfile.TemporaryDirectory() as folder:
        for name in variants:
            compression, config = VARIANTS[name]
            root = Path(folder) / str(compression)
            xml = root / "weights" / "openvino" / "model.xml"
            if not xml.exists():
                model.to_openvino(root, compression_type=compression, datamodule=data)
            scores = openvino_scores(xml, paths, config)
            rows.append(
                {
                    "variant": name,
                    "max_difference": float(np.abs(scores.raw - engine.raw).max()),
                    "labels_flipped": int((scores.novel != engine.novel).sum()),
                    "rank_correlation": float(spearmanr(scores.raw, engine.raw).statistic),
                    "auroc": roc_auc_score(labels, scores.raw),
                    "batch_difference": batch_difference(xml, paths, config),
                }
            )
    return rows


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--root", required=True, help="Pascal VOC 2012")
    parser.add_argument("--category", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    data = SemanticVOC(arguments.root, category=arguments.category, num_workers=0)
    for row in compare(arguments.ckpt, data, arguments.images, arguments.variants):
        print(row)


if __name__ == "__main__":
    main()
