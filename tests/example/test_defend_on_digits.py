"""Defend on the embedded example, down to 8 bits."""

from pathlib import Path

import pytest
import yaml
from anomalib.engine import Engine

from anomalib_defend import Defend, SemanticVOC
from anomalib_defend.example.scenes import write_voc
from measurements.export import VARIANTS, compare

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_novel_scenes_are_found_also_after_export(tmp_path):
    config = yaml.safe_load(CONFIG.read_text())
    model = Defend(**{**config["model"]["init_args"], "distill_epochs": 5, "dense_epochs": 1}, visualizer=False)
    root = write_voc(tmp_path, normal=config["data"]["init_args"]["category"])

    def data():
        return SemanticVOC(root, category=config["data"]["init_args"]["category"], num_workers=0)

    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    assert engine.train(model, datamodule=data())[0]["image_AUROC"] > 0.9

    rows = {row["variant"]: row for row in compare(Path(engine.best_model_path), data(), 200, list(VARIANTS))}
    assert rows["f32"]["max_difference"] < 1e-5
    assert rows["default hint"]["max_difference"] < 1e-2
    for name in ("f32", "int8 weights", "int8 PTQ"):
        assert rows[name]["rank_correlation"] > 0.99, rows
