"""The example of docs/pictures.md: ``python -m measurements.picture_examples [--to docs/pictures.png]``.

Trains configs/quickstart.yaml (minutes on two cores) and shows the pictures of the first test scene with the normal
digit and of the first without it, whatever their verdicts are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from anomalib.engine import Engine
from PIL import Image

from anomalib_defend import Defend, SemanticVOC
from anomalib_defend.example.scenes import write_voc
from anomalib_defend.visualization import NoveltyVisualizer, picture_name

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SIDE, GAP, COLOURS = 192, 8, 255  # a small file


def make_pictures(folder: Path) -> list[Image.Image]:
    """Train, test, and read the pictures of a normal and a novel scene."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    category = config["data"]["init_args"]["category"]
    data = SemanticVOC(write_voc(folder, normal=category), category=category, num_workers=0)
    model = Defend(**config["model"]["init_args"], visualizer=NoveltyVisualizer(SIDE))
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1)
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data)
    samples = data.test_data.samples
    firsts = [samples[samples.label_index == label].image_path.iloc[0] for label in (0, 1)]
    images = Path(engine.trainer.default_root_dir) / "images"
    return [Image.open(images / picture_name(path)).convert("RGB") for path in firsts]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=CONFIG.parents[1] / "docs" / "pictures.png")
    target = parser.parse_args(argv).to
    with tempfile.TemporaryDirectory() as scratch:
        pictures = make_pictures(Path(scratch))
    size = (sum(one.width + GAP for one in pictures) - GAP, max(one.height for one in pictures))
    sheet = Image.new("RGB", size, (128, 128, 128))
    for index, one in enumerate(pictures):
        sheet.paste(one, (index * (one.width + GAP), 0))
    palette = sheet.quantize(COLOURS)
    sheet.quantize(palette=palette).save(target, optimize=True)  # the second time mixes colours, which hides steps
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
